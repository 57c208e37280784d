// Errors of the engine. Message form: "where: rule, got value; what to do".

export type EngineErrorCode =
  | "bad-file" // safetensors, config or adapter that is not what it claims to be
  | "bad-request" // a call with arguments outside its contract
  | "unsupported" // a model or adapter feature that this engine does not have
  | "device" // no such device, device lost, out of memory
  | "disposed"
  | "aborted";

export class EngineError extends Error {
  readonly code: EngineErrorCode;
  constructor(code: EngineErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "EngineError";
    this.code = code;
  }
}
