export { ATTRIBUTES } from "./attributes.ts";
export * from "./vocabulary.ts";
