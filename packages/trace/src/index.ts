export { ATTRIBUTES } from "./attributes.ts";
export * from "./errors.ts";
export * from "./ids.ts";
export * from "./transitions.ts";
export * from "./vocabulary.ts";
