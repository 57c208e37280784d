export { ATTRIBUTES } from "./attributes.ts";
export * from "./errors.ts";
export * from "./ids.ts";
export { createMemoryStore } from "./memory.ts";
export * from "./status.ts";
export type { StoreOptions } from "./store.ts";
export * from "./transitions.ts";
export type { Redact } from "./values.ts";
export * from "./vocabulary.ts";
