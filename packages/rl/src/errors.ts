// Errors of the learning side. Message form: "where: rule, got value; what to do".

export type RlErrorCode =
  | "bad-options" // an option outside its contract
  | "bad-data" // a number or a shape that must not be trained on
  | "rollouts-failed" // too few rollouts ended well to learn from them
  | "checkpoint"; // a checkpoint that is not one, or of another run

export class RlError extends Error {
  readonly code: RlErrorCode;
  constructor(code: RlErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "RlError";
    this.code = code;
  }
}
