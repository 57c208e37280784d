// What differs between a browser and Node, and nothing else. browser/edge.ts and node/edge.ts implement it; the package's
// "#edge" import picks one.

import type { Backend, BackendOptions, DeviceKind, Policy, PolicyOptions } from "@fulgurite/engine";
import type { Store } from "@fulgurite/trace";
import type { ModelCache } from "./modelCache.ts";

export interface StartOptions extends Omit<PolicyOptions, "backend"> {
  readonly device: DeviceKind | "auto";
  /** WASM threads; absent: what the machine allows. */
  readonly threads?: number;
}

export interface ReadOptions {
  readonly signal?: AbortSignal;
  readonly onBytes?: (bytes: number, totalBytes: number) => void;
}

export interface Edge {
  /** The URL of a model folder, with a slash at its end. Browser: relative to the page; Node: a path or a URL. */
  folderUrl(source: string): URL;
  /** Node: whether a folder has this path. Browser: never. */
  isLocalFolder(source: string): Promise<boolean>;
  /** Node: bytes behind a file: URL, undefined where there is none. Browser: rejects. */
  readFile(url: URL, options?: ReadOptions): Promise<Uint8Array | undefined>;
  /** Whether a request may have any header without a browser asking the server first. */
  isPreflightFree(url: URL): boolean;
  /** Node: below `folder`. Browser: the origin's Cache API; rejects where there is none. */
  openCache(folder?: string): Promise<ModelCache>;
  /** What the machine has, where the platform says so: a policy that needs more would only make it swap. */
  memoryBytes(): number | undefined;
  /** The device that startPolicy would open, here and not in a worker: for a look at it. The caller disposes it. */
  openDevice(device: DeviceKind | "auto", options?: BackendOptions): Promise<Backend>;
  /** Browser: in a worker of its own, into which the model's bytes are moved. Node: in this process. */
  startPolicy(options: StartOptions): Promise<Policy>;
  /** Browser: an IndexedDB database of this name. Node: a folder. */
  openStore(name: string): Promise<Store>;
}
