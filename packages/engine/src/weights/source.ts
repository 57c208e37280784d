// Weights that arrive: one file after the other, each from its first byte on, in parts of any size. Where from (a network, a disk, an
// array) is the source's business; what the bytes mean is stream.ts's.

import { INDEX, type WeightFiles } from "./checkpoint.ts";
import type { StreamHash } from "./sha256.ts";

export interface WeightReceiver {
  /** The file begins; a second time when it was changed meanwhile and all of it comes again. */
  begin(totalBytes: number | undefined): void;
  /** The next bytes; they stay as they are until it resolves, and are the source's again then. */
  part(bytes: Uint8Array): Promise<void>;
}

export interface WeightSource {
  /** model.safetensors.index.json of a sharded model; absent or undefined: there is one file, model.safetensors. Asked before the first read. */
  index?(): Promise<Uint8Array | undefined>;
  /** Sends a file. Rejects with what the receiver rejects with. */
  read(file: string, receiver: WeightReceiver): Promise<void>;
  /** The platform's SHA-256 of a stream, where it has one. */
  readonly createHash?: () => StreamHash;
}

export const isWeightSource = (weights: WeightFiles | WeightSource): weights is WeightSource =>
  typeof (weights as { readonly read?: unknown }).read === "function";

const PART_BYTES = 4 << 20;

/** Of whole files the platform's hash is faster: hashWeights. */
const noHash: StreamHash = { update: () => {}, digest: () => "" };

/** Files that are here already, as they would arrive; not hashed. */
export const toSource = (files: WeightFiles): WeightSource => {
  return {
    index: async () => (files instanceof Uint8Array ? undefined : files[INDEX]),
    createHash: () => noHash,
    read: async (file, receiver) => {
      const bytes = files instanceof Uint8Array ? files : files[file]!;
      receiver.begin(bytes.length);
      for (let at = 0; at < bytes.length; at += PART_BYTES) await receiver.part(bytes.subarray(at, at + PART_BYTES));
    },
  };
};
