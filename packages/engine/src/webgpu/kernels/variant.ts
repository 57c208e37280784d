// A variant is how the kernels of a backend are written: the same operations, other instructions or other tiles. The baseline runs on
// what WebGPU promises; every other variant needs a feature that the device said it has, or a tile that a timing chose.
// One backend has one variant for its whole life, so sampler and trainer round alike. Each pipeline's label names what differs.

/** Queries and keys of one tile of attention; multiples of 32, at most 64. */
export interface AttentionTile {
  readonly queries: number;
  readonly keys: number;
}

export interface Variant {
  /** Sums and maxima over a workgroup: through workgroup memory alone, or within subgroups first. */
  readonly reductions: "shared" | "subgroups";
  /** What q, k, v and the weights of attention are in workgroup memory. Sums, gradients and softmax are f32 whatever it is. */
  readonly attentionTiles: "f32" | "f16";
  readonly attention: AttentionTile;
}

/** Runs everywhere: f32, no feature, 16 KiB of workgroup memory, 256 threads, 8 storage buffers. */
export const BASELINE: Variant = { reductions: "shared", attentionTiles: "f32", attention: { queries: 32, keys: 32 } };

/** WebGPU features (and WGSL's subgroup_id) that a part of a variant needs. */
export type Need = "subgroups" | "shader-f16";

/** The lines that a text begins with. */
export const PRELUDES: { readonly [N in Need]: string } = {
  subgroups: "enable subgroups;\nrequires subgroup_id;\n",
  "shader-f16": "enable f16;\n",
};

/** What a device must offer for this variant. */
export const needsOf = ({ reductions, attentionTiles }: Variant): readonly Need[] => [
  ...(reductions === "subgroups" ? (["subgroups"] as const) : []),
  ...(attentionTiles === "f16" ? (["shader-f16"] as const) : []),
];
