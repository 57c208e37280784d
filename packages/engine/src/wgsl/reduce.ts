// Workgroup reductions in WGSL text. In workgroup memory: two levels, 16 lanes each combine every sixteenth value, upwards, then every
// lane combines the 16 results, upwards. The order depends on the number of threads alone. Two barriers instead of a tree's eight: a
// software device compiles and runs a barrier dearly. It is the form that every device has.
// With subgroups: each subgroup by the device's own operation, then every lane combines their results, upwards, after one barrier.

import type { OpName } from "../plan/step.ts";
import { chosen, type Target, type Variant } from "../webgpu/kernels/target.ts";

export type Reductions = "shared" | "subgroups";

/** Directives of a text that reduces by subgroups. */
const SUBGROUP_PRELUDE = "enable subgroups;\nrequires subgroup_id;\n";

const SHARED: Variant = { name: "shared" };
const SUBGROUPS: Variant = { name: "subgroups", needs: ["subgroups"] };

/** How a kernel of this operation reduces on such a device, with what its text begins with and what its label ends with. */
export const reductionsFor = (
  op: OpName,
  target: Target,
): { readonly how: Reductions; readonly prelude: string; readonly suffix: string } => {
  const candidates = target.isSoftware ? [SHARED, SUBGROUPS] : [SUBGROUPS, SHARED];
  const { name } = chosen(target, { op, rows: 0, sizes: {}, format: "f32" }, candidates);
  return name === "subgroups"
    ? { how: "subgroups", prelude: SUBGROUP_PRELUDE, suffix: " subgroups" }
    : { how: "shared", prelude: "", suffix: "" };
};

const shared = (
  name: string,
  threads: number,
  combine: (a: string, b: string) => string,
): string => `fn ${name}(value: f32, lane: u32) -> f32 {
  reduced[lane] = value;
  workgroupBarrier();
  if (lane < 16u) {
    var part = reduced[lane];
    for (var i = lane + 16u; i < ${threads / 16}u * params.block; i += params.block) { part = ${combine("part", "reduced[i]")}; }
    sixteen[lane] = part;
  }
  workgroupBarrier();
  var whole = sixteen[0];
  for (var i = 1u; i < params.block; i++) { whole = ${combine("whole", "sixteen[i]")}; }
  return whole;
}
`;

/** The first barrier keeps a fast lane from overwriting what a slow one still reads of the call before. */
const bySubgroup = (
  name: string,
  builtin: string,
  combine: (a: string, b: string) => string,
): string => `fn ${name}(value: f32, lane: u32) -> f32 {
  let own = ${builtin}(value);
  workgroupBarrier();
  if (subgroupElect()) { reduced[subgroup.x] = own; }
  workgroupBarrier();
  var whole = reduced[0];
  for (var i = 1u; i < subgroup.y; i++) { whole = ${combine("whole", "reduced[i]")}; }
  return whole;
}
`;

/**
 * sumOf(value, lane) and maxOf(value, lane): every lane gets the result. `threads` is a multiple of 16; uses 4·threads + 64 bytes of
 * workgroup memory. Must be called in uniform control flow; calls may follow each other without a barrier. With subgroups, main()
 * comes from byRow(…, "subgroups") and the kernel needs the feature.
 */
export const reductions = (threads: number, how: Reductions = "shared"): string => {
  const [sum, most] = [(a: string, b: string) => `${a} + ${b}`, (a: string, b: string) => `max(${a}, ${b})`];
  return how === "shared"
    ? `var<workgroup> reduced: array<f32, ${threads}>;
var<workgroup> sixteen: array<f32, 16>;
${shared("sumOf", threads, sum)}${shared("maxOf", threads, most)}`
    : `var<workgroup> reduced: array<f32, ${threads}>;
var<private> subgroup: vec2u;
${bySubgroup("sumOf", "subgroupAdd", sum)}${bySubgroup("maxOf", "subgroupMax", most)}`;
};
