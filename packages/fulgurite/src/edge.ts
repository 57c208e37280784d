// What differs between a browser and Node, and nothing else. browser/edge.ts and node/edge.ts implement it; the package's
// "#edge" import picks one.

import type { DeviceKind, Policy, PolicyOptions } from "@fulgurite/engine";
import type { Store } from "@fulgurite/trace";

export interface StartOptions extends Omit<PolicyOptions, "backend"> {
  readonly device: DeviceKind | "auto";
  /** WASM threads; absent: what the machine allows. */
  readonly threads?: number;
}

export interface Edge {
  /** The URL of a model folder, with a slash at its end. Browser: relative to the page; Node: a path or a URL. */
  folderUrl(source: string): URL;
  /** Bytes behind a URL. Rejects with a message that names it. */
  readFile(url: URL, signal?: AbortSignal): Promise<Uint8Array>;
  /** Browser: in a worker of its own. Node: in this process. */
  startPolicy(options: StartOptions): Promise<Policy>;
  /** Browser: an IndexedDB database of this name. Node: a folder. */
  openStore(name: string): Promise<Store>;
}
