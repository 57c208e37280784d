// What a kernel is before a device has seen it: WGSL text, the tensors that it binds, and how many workgroups a run takes.
// Every step of a plan becomes one dispatch or two or three; they run in order and see each other's writes.
// The text depends on the operation and its variant, never on a width, a head count or a scale: those are constants of the step and
// reach the kernel through the parameter slot. So a policy needs about thirty pipelines whatever its model, and starts fast.
// Nothing here touches WebGPU, so every kernel's text can be read and tested without a device.

import { type Rows, sizeOf, type Tensor } from "../../plan/step.ts";
import type { Reductions } from "../../wgsl/reduce.ts";

/** f32 for f32 tensors, i32 for i32 tensors; u32 reads the bits of either and the words of packed ones; vec4f and vec4u read four at once. */
export type Element = "f32" | "i32" | "u32" | "vec4f" | "vec4u";

/** Partial sums between two dispatches of one step. Its contents never outlive the step. */
export const SCRATCH: Tensor = { name: "scratch", shape: [0], dtype: "f32", home: "arena" };

export type Groups = readonly [x: number, y: number, z: number];

export interface Constant {
  readonly type: "u32" | "f32";
  readonly value: number;
}

export interface Dispatch {
  /** Names the pipeline in errors and profilers. */
  readonly label: string;
  readonly source: string;
  /** In binding order, from binding 1 on; binding 0 is the parameter slot. */
  readonly bindings: readonly Tensor[];
  /** "r" or "w" (read_write) for each binding. */
  readonly access: string;
  readonly rows?: Rows;
  readonly outRows?: Rows;
  /** Workgroups for these row counts; a zero anywhere: nothing to do. */
  readonly groups: (rows: number, outRows: number) => Groups;
  /** The step's own parameters, in the order of their members in struct Params. */
  readonly constants: readonly Constant[];
  /** Multiply-adds for one row (without rows: for the whole dispatch), rough: it decides where a long plan is cut. */
  readonly work: number;
  /** Bytes of SCRATCH that it needs; 0 if it binds none. */
  readonly scratchBytes: number;
}

/** Binding name in the WGSL text → what it is; a tensor alone is bound as what it holds, f32 or i32. */
export type Bindings = Readonly<Record<string, Tensor | Binding>>;

export interface Binding {
  readonly tensor: Tensor;
  readonly as: Element;
  /** Read only, and alone in its buffer among the operands, whatever its home: a LoRA matrix then shares the frozen weights' kernel. */
  readonly isFrozen?: boolean;
}

/**
 * A constant that compilers do not see: `params.block` is this number at run time. Loops up to it stay loops, where a compiler that
 * knew their length would unroll them; on a software device that is seconds for each kernel.
 */
export const BLOCK = 16;

/** What every slot begins with, in the order in which executable.ts writes it: 3 u32, then f32. */
export const SHARED_PARAMS: readonly string[] = [
  "rows",
  "outRows",
  "block",
  "learningRate",
  "beta1",
  "beta2",
  "eps",
  "weightDecay",
  "gradClipNorm",
  "correction1",
  "correction2",
];
/** How many of them are u32. */
export const SHARED_COUNTS = 3;
/** Size of a bound parameter slot: the shared ones and up to 21 constants. */
export const PARAMS_BYTES = 128;

const paramsStruct = (sizes: readonly string[], numbers: readonly string[]): string => {
  const members = [
    ...SHARED_PARAMS.map((name, i) => `${name}: ${i < SHARED_COUNTS ? "u32" : "f32"}`),
    ...sizes.map((name) => `${name}: u32`),
    ...numbers.map((name) => `${name}: f32`),
  ];
  return `struct Params { ${members.join(", ")} }\n@group(0) @binding(0) var<uniform> params: Params;\n`;
};

/**
 * Weights are bound `read`, everything else `read_write`: within one dispatch a buffer may not be bound both ways, and arena tensors
 * that a step reads and writes share buffers. Disjoint read_write ranges of one buffer are valid.
 */
const accessOf = ({ tensor, isFrozen }: Binding): "r" | "w" => (isFrozen || (tensor.view?.of ?? tensor).home === "weights" ? "r" : "w");

export interface KernelParts {
  readonly label: string;
  readonly bindings: Bindings;
  readonly body: string;
  /** Directives (`enable f16;`), which WGSL wants before everything else. */
  readonly prelude?: string;
  readonly groups: Dispatch["groups"];
  readonly work: number;
  readonly rows?: Rows;
  readonly outRows?: Rows;
  readonly scratchBytes?: number;
  /** Constants of the step: `params.NAME` in the body, u32 and f32. */
  readonly sizes?: Readonly<Record<string, number>>;
  readonly numbers?: Readonly<Record<string, number>>;
}

export const kernel = ({
  label,
  bindings,
  body,
  prelude = "",
  groups,
  work,
  rows,
  outRows,
  scratchBytes = 0,
  sizes = {},
  numbers = {},
}: KernelParts): Dispatch => {
  const list = Object.entries(bindings).map(([name, bound]): [string, Binding] => [
    name,
    "tensor" in bound ? bound : { tensor: bound, as: bound.dtype === "i32" ? "i32" : "f32" },
  ]);
  const access = list.map(([, binding]) => accessOf(binding)).join("");
  const declarations = list.map(
    ([name, { as }], i) =>
      `@group(0) @binding(${i + 1}) var<storage, ${access[i] === "r" ? "read" : "read_write"}> ${name}: array<${as}>;\n`,
  );
  return {
    label,
    source: prelude + paramsStruct(Object.keys(sizes), Object.keys(numbers)) + declarations.join("") + body,
    bindings: list.map(([, { tensor }]) => tensor),
    access,
    groups,
    work,
    scratchBytes,
    constants: [
      ...Object.values(sizes).map((value): Constant => ({ type: "u32", value })),
      ...Object.values(numbers).map((value): Constant => ({ type: "f32", value })),
    ],
    ...(rows && { rows }),
    ...(outRows && { outRows }),
  };
};

/** Texts by label, which names one text: a plan of a deep model asks for the same few hundreds of times. */
const bodies = new Map<string, string>();
export const bodyOf = (label: string, make: () => string): string => {
  const body = bodies.get(label) ?? make();
  bodies.set(label, body);
  return body;
};

/** The columns of a [rows, columns] tensor; a vector is one column. */
export const columnsOf = (tensor: Tensor): number => (tensor.shape.length > 1 ? sizeOf(tensor) / tensor.shape[0]! : 1);

export const times = (n: number, line: (i: number) => string, separator = "\n"): string =>
  Array.from({ length: n }, (_, i) => line(i)).join(separator);

/** WebGPU's guaranteed count of workgroups along one axis. */
const MAX_GROUPS = 65_535;

/** `count` workgroups in a row, folded into y where x alone cannot hold them; `linearGroup` undoes it and may count too far. */
export const foldedGroups = (count: number, z = 1): Groups => [Math.min(count, MAX_GROUPS), Math.ceil(count / MAX_GROUPS), count ? z : 0];

/** The arguments of every main(), and the index of a workgroup in a folded grid. Both are uniform, so barriers may follow a return on them. */
export const MAIN_ARGUMENTS =
  "@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32";
export const linearGroup = "group.y * groups.x + group.x";

const FLAT_THREADS = 256;

/** One thread an element: `i` runs over `total` (a WGSL expression). */
export const flat = (total: string, body: string): string => `@compute @workgroup_size(${FLAT_THREADS})
fn main(${MAIN_ARGUMENTS}) {
  let i = (${linearGroup}) * ${FLAT_THREADS}u + lane;
  if (i >= ${total}) { return; }
  ${body}
}
`;

export const flatGroups = (total: number): Groups => foldedGroups(Math.ceil(total / FLAT_THREADS));

/** main(), ready for reductions of either kind (wgsl/reduce.ts). */
export const mainLine = (reductions: Reductions): string =>
  reductions === "shared"
    ? `fn main(${MAIN_ARGUMENTS}) {`
    : `fn main(${MAIN_ARGUMENTS}, @builtin(subgroup_id) subgroupId: u32, @builtin(num_subgroups) subgroups: u32) {
  subgroup = vec2u(subgroupId, subgroups);`;

/** One workgroup a row (and, along z, a head): `row`, `group.z` and `lane` are set. `reductions`: the kind that the body calls. */
export const byRow = (threads: number, body: string, reductions: Reductions = "shared"): string => `@compute @workgroup_size(${threads})
${mainLine(reductions)}
  let row = ${linearGroup};
  if (row >= params.rows) { return; }
  ${body}
}
`;
