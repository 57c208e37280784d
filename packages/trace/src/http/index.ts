export { type HttpStoreOptions, openHttpStore } from "./openHttpStore.ts";
export { type ServeOptions, serveStore } from "./serveStore.ts";
