export type * from "./contract.ts";
export { EngineError, type EngineErrorCode } from "./errors.ts";
