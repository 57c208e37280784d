// Errors of the engine. Message form: "where: rule, got value; what to do".

export type EngineErrorCode =
  | "bad-file" // safetensors, config or adapter that is not what it claims to be
  | "bad-request" // a call with arguments outside its contract
  | "unsupported" // a model or adapter feature that this engine does not have
  | "device" // no such device, a failing one, out of memory
  | "wrong-results" // a device that computes wrong numbers; use another one
  | "lost" // the device went away; recovery.ts opens another one
  | "disposed"
  | "aborted";

export interface EngineErrorOptions extends ErrorOptions {
  readonly clearsGradients?: boolean;
}

export class EngineError extends Error {
  readonly code: EngineErrorCode;
  /** A forwardBackward failed half-way: all gradients that were accumulated for the next step are zero now. */
  readonly clearsGradients: boolean;
  constructor(code: EngineErrorCode, message: string, { clearsGradients = false, ...options }: EngineErrorOptions = {}) {
    super(message, options);
    this.name = "EngineError";
    this.code = code;
    this.clearsGradients = clearsGradients;
  }
}
