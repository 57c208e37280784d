// What differs between a browser and Node, and nothing else. browser/edge.ts and node/edge.ts implement it; the package's
// "#edge" import picks one.

import type { Backend, BackendOptions, DeviceKind, Policy, PolicyModel, PolicyOptions, Precision } from "@fulgurite/engine";
import type { Redact, Store } from "@fulgurite/trace";
import type { FileEdge } from "./fileEdge.ts";
import type { LoadProgress } from "./modelFiles.ts";
import type { WeightPlace } from "./weightPlace.ts";

export interface StartOptions extends Omit<PolicyOptions, "backend" | "model" | "converted" | "onProgress" | "signal"> {
  readonly device: DeviceKind | "auto";
  /** WASM threads; absent: what the machine allows. */
  readonly threads?: number;
  readonly precision?: Precision;
  readonly model: Omit<PolicyModel, "weights">;
  /** Where the weights are; they are read where the policy lives. */
  readonly weights: WeightPlace;
}

export interface StartHooks {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly onReport?: (message: string) => void;
}

export interface StoreHooks {
  /** What is kept of spans, tasks and errors. Default: everything but secret headers. */
  readonly redact?: Redact;
  /** Asks a browser, once, not to delete the data when disks run short; the answer goes to onReport. Node's folders are nobody's to delete. */
  readonly persist?: boolean; // false
  /** Hears what a person should know: damage and what was done, another tab in the way, the answer to `persist`. Default: console.warn. */
  readonly onReport?: (message: string) => void;
}

export interface Edge extends FileEdge {
  /** What the machine has, where the platform says so: a policy that needs more would only make it swap. */
  memoryBytes(): number | undefined;
  /** The device that startPolicy would open, here and not in a worker: for a look at it. The caller disposes it. */
  openDevice(device: DeviceKind | "auto", options?: BackendOptions): Promise<Backend>;
  /** Browser: in a worker of its own. Node: in this process. */
  startPolicy(options: StartOptions, hooks?: StartHooks): Promise<Policy>;
  /** Browser: an IndexedDB database of this name. Node: a folder. */
  openStore(name: string, hooks: StoreHooks): Promise<Store>;
}
