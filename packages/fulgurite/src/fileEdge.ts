// How a browser and Node differ in reading and keeping a model's files; "#files" picks one. The policy's worker needs this much and
// no more: it could not start a worker of its own.

import type { ConvertedEntry, StreamHash, WeightReceiver } from "@fulgurite/engine";
import type { ModelCache } from "./modelCache.ts";

export interface ReadOptions {
  readonly signal?: AbortSignal;
  readonly onBytes?: (bytes: number, totalBytes: number) => void;
}

/** Converted weights, one entry for each model and format; another version takes the old one's place. */
export interface ConvertedStore {
  entry(name: string, key: string): ConvertedEntry;
}

export interface FileEdge {
  /** The URL of a model folder, with a slash at its end. Browser: relative to the page; Node: a path or a URL. */
  folderUrl(source: string): URL;
  /** Node: whether a folder has this path. Browser: never. */
  isLocalFolder(source: string): Promise<boolean>;
  /** Node: bytes behind a file: URL, undefined where there is none. Browser: rejects. */
  readFile(url: URL, options?: ReadOptions): Promise<Uint8Array | undefined>;
  /** Node: whether there is one. Browser: rejects. */
  hasFile(url: URL): Promise<boolean>;
  /** Node: the same bytes in parts. Browser: rejects. */
  streamFile(url: URL, receiver: WeightReceiver, signal?: AbortSignal): Promise<void>;
  /** Whether a request may have any header without a browser asking the server first. */
  isPreflightFree(url: URL): boolean;
  /** Node: below `folder`. Browser: the origin's Cache API; rejects where there is none. */
  openCache(folder?: string): Promise<ModelCache>;
  /** Node: below `folder`. Browser: the origin's private file system, else its Cache API; rejects where there is neither. */
  openConverted(folder?: string): Promise<ConvertedStore>;
  /** The platform's SHA-256 of a stream, where it has one. */
  readonly createHash?: () => StreamHash;
}
