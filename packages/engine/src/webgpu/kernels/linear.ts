// linear and linearBackward: products of rows with a weight (wgsl/gemm.ts, wgsl/skinny.ts); the head's (head.ts) are made here too, with another
// ending. weightGrad has a file of its own.
//   y[t, o]  = residual + bias + scale · Σ_i x[t, i]·w[o, i]
//   dx[t, i] = (dx) + scale · Σ_o dy[t, o]·w[o, i]
// They come in variants (productVariants.ts) for different row counts; all that a plan may need are dispatches, and each run passes
// by those that are not for its row count. A weight in shards is a product for each of them.

import { type Rows, type Step, sizeOf, type Tensor } from "../../plan/step.ts";
import { isPacked, packedLayout, type WeightFormat } from "../../weights/formats.ts";
import { type Gemm, gemm, HALF_PRELUDE, threadsOf } from "../../wgsl/gemm.ts";
import { elementOf, type Matrix, wideElementOf } from "../../wgsl/matrix.ts";
import { SKINNY, skinny } from "../../wgsl/skinny.ts";
import { shardsOf, sliceOf } from "../shards.ts";
import { type Bindings, bodyOf, type Dispatch, flat, flatGroups, foldedGroups, type Groups, kernel, SCRATCH } from "./kernel.ts";
import { type ProductVariant, productCandidates, rowClasses, type TileVariant } from "./productVariants.ts";
import { chosen, type Target } from "./target.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const isSame = (a: Tensor, b: Tensor): boolean =>
  a === b || ((a.view?.of ?? a) === (b.view?.of ?? b) && (a.view?.offset ?? 0) === (b.view?.offset ?? 0));

/** What becomes of a product's results. */
export interface Ending {
  /** Behind the kernel's label. */
  readonly label: string;
  readonly bindings: Bindings;
  readonly sizes?: Readonly<Record<string, number>>;
  /** As in gemm.ts. */
  readonly store: string;
  /** Declarations (of a workgroup's threads and rows), the workgroups along the columns, which columns each of them makes, and what it does after each tile (gemm.ts). */
  readonly tiles?: { readonly text: (threads: number, rows: number) => string; readonly groups: number } & Required<
    Pick<Gemm, "columns" | "after">
  >;
}

/** y[m, first + n] (+)= scale · Σ_k a[m, aFirst + k]·w(k, n), w a whole weight, a shard of one, or rows of one from wFirst on. */
export interface Product {
  readonly op: "linear" | "linearBackward";
  readonly rows: Rows;
  readonly a: Tensor;
  readonly w: Tensor;
  readonly y: Tensor;
  readonly bias?: Tensor | undefined;
  /** Not y itself: that is accumulate. */
  readonly residual?: Tensor | undefined;
  readonly accumulate: boolean;
  readonly scale: number;
  /** Widths of a and y, and where the product begins in them. */
  readonly aWidth: number;
  readonly aFirst: number;
  readonly yWidth: number;
  readonly yFirst: number;
  /** Columns of the product, depth, and the depth's slices. */
  readonly N: number;
  readonly K: number;
  readonly slice: number;
  readonly wFirst?: number;
  /** In the place of everything that is said of y. */
  readonly ending?: Ending;
}

const NOTHING: Groups = [0, 0, 0];

/** Sets `base`: what y[e] holds before slice 0, or what the slices so far have made of it. */
const base = (isFirst: string, { residual, bias }: Product): string => `var base = y[e];
  if (${isFirst}) { base = ${residual ? "residual[e]" : "select(0.0, base, params.accumulate == 1u)"}${bias ? " + bias[params.first + n]" : ""}; }`;

const endings = ({ residual, bias, y }: Product): Bindings => ({
  ...(bias && { bias }),
  ...(residual && { residual }),
  y,
});

const suffix = ({ residual, bias }: Product): string => `${residual ? " residual" : ""}${bias ? " bias" : ""}`;

export const scaleWordOf = (w: Tensor): number => (isPacked(w.dtype) ? packedLayout(w.dtype, sizeOf(w)).scaleWord : 0);

const sizesOf = (product: Product) => {
  const { N, K, aWidth, aFirst, yWidth, yFirst, slice, accumulate, w, wFirst = 0 } = product;
  const wOffset = wFirst * w.shape[1]!;
  const scaleWord = scaleWordOf(w);
  return { N, K, slice, pitch: yWidth, first: yFirst, accumulate: accumulate ? 1 : 0, aPitch: aWidth, aFirst, scaleWord, wOffset };
};

export const STORE_PLACE = `if (m >= params.rows || n >= params.N) { return; }
  let e = m * params.pitch + params.first + n;`;

const endingOf = (product: Product): Ending =>
  product.ending ?? {
    label: suffix(product),
    bindings: endings(product),
    store: `${STORE_PLACE}
  ${base("isFirst", product)}
  y[e] = fma(params.scale, v, base);`,
  };

export const formatOf = (w: Tensor): WeightFormat => (isPacked(w.dtype) ? w.dtype : "f32");

/** The second dispatch of a split depth: slices are added to y in the order in which one workgroup would have. */
const splitSum = (product: Product, groups: (n: number) => Groups): Dispatch => {
  const { rows, N, K, slice, scale, yWidth, yFirst, accumulate } = product;
  return kernel({
    label: `split sum${suffix(product)}`,
    bindings: { scratch: SCRATCH, ...endings(product) },
    body: flat(
      "params.rows * params.N",
      `let m = i / params.N;
  let n = i % params.N;
  let e = m * params.pitch + params.first + n;
  ${base("true", product)}
  for (var z = 0u; z < params.slices; z++) { base = fma(params.scale, scratch[z * params.rows * params.N + i], base); }
  y[e] = base;`,
    ),
    sizes: { N, slices: Math.ceil(K / slice), pitch: yWidth, first: yFirst, accumulate: accumulate ? 1 : 0 },
    numbers: { scale },
    rows,
    groups,
    work: (N * K) / slice,
  });
};

export const isFour = (...numbers: number[]): boolean => numbers.every((number) => number % 4 === 0);

const tiled = (product: Product, variant: TileVariant, { from, to }: { from: number; to: number }): Dispatch[] => {
  const { op, rows, a, w, scale, N, K, aWidth, aFirst, slice } = product;
  const { tile, isSplit, isHalf } = variant;
  const format = formatOf(w);
  const isForward = op === "linear";
  const wideA = variant.isWide && isFour(K, aWidth, aFirst);
  const wideB = variant.isWide && !isPacked(format) && isFour(isForward ? K : N);
  const read = `${wideA || !variant.isWide ? "" : " narrow a"}${wideB || !variant.isWide || isPacked(format) ? "" : " narrow b"}`;
  const slices = isSplit ? Math.ceil(K / slice) : 1;
  const ending = endingOf(product);
  const matrixA: Matrix = {
    name: "a",
    rows: "params.rows",
    columns: "params.K",
    pitch: "params.aPitch",
    offset: "params.aFirst",
    depth: "columns",
    format: "f32",
    isWide: wideA,
  };
  const matrixB: Matrix = {
    name: "w",
    rows: isForward ? "params.N" : "params.K",
    columns: isForward ? "params.K" : "params.N",
    depth: isForward ? "columns" : "rows",
    format,
    isWide: wideB,
    offset: "params.wOffset",
    scaleWord: "params.scaleWord",
  };
  const isHere = (n: number): boolean => n >= from && n <= to;
  const text: Pick<Gemm, "depthFrom" | "depthTo" | "store"> = isSplit
    ? {
        depthFrom: "group.z * params.slice",
        depthTo: "min(params.K, (group.z + 1u) * params.slice)",
        store: `if (m >= params.rows || n >= params.N) { return; }
  scratch[(z * params.rows + m) * params.N + n] = v;`,
      }
    : {
        depthFrom: "0u",
        depthTo: "params.K",
        store: ending.store,
      };
  const label = `${op} ${variant.name}${read} ${format}${isSplit ? "" : ending.label}`;
  const main = kernel({
    label,
    prelude: isHalf ? HALF_PRELUDE : "",
    bindings: {
      a: { tensor: a, as: elementOf("f32", wideA) },
      w: { tensor: w, as: elementOf(format, wideB), isFrozen: true },
      ...(isSplit ? { scratch: SCRATCH } : ending.bindings),
    },
    body: bodyOf(
      label,
      () =>
        (ending.tiles?.text(threadsOf(tile), tile.BM) ?? "") +
        gemm({ tile, a: matrixA, b: matrixB, slice: "params.slice", isHalf, ...text, ...ending.tiles }),
    ),
    sizes: { ...sizesOf(product), ...ending.sizes },
    numbers: { scale },
    rows,
    groups: (n) => (isHere(n) ? [ending.tiles?.groups ?? Math.ceil(N / tile.BN), Math.ceil(n / tile.BM), slices] : NOTHING),
    work: N * K,
    scratchBytes: isSplit ? slices * Math.min(to, rows.capacity) * N * 4 : 0,
  });
  return isSplit ? [main, splitSum(product, (n) => (isHere(n) ? flatGroups(n * N) : NOTHING))] : [main];
};

const skinnied = (product: Product, { from, to }: { from: number; to: number }): Dispatch[] => {
  const { op, rows, a, w, scale, N, K } = product;
  const format = formatOf(w);
  const ending = endingOf(product);
  const label = `${op} skinny ${format}${ending.label}`;
  const across = ending.tiles?.groups ?? Math.ceil(N / SKINNY.columns);
  return [
    kernel({
      label,
      bindings: {
        a: { tensor: a, as: "vec4f" },
        w: { tensor: w, as: wideElementOf(format), isFrozen: true },
        ...ending.bindings,
      },
      body: bodyOf(
        label,
        () =>
          (ending.tiles?.text(SKINNY.lanes, SKINNY.rows) ?? "") +
          skinny({
            a: { name: "a", rows: "params.rows", columns: "params.K", depth: "columns", format: "f32" },
            w: {
              ...{ name: "w", rows: "params.N", columns: "params.K", depth: "columns", format },
              ...{ offset: "params.wOffset", scaleWord: "params.scaleWord" },
            },
            slice: "params.slice",
            store: ending.store,
            ...ending.tiles,
          }),
      ),
      sizes: { ...sizesOf(product), ...ending.sizes },
      numbers: { scale },
      rows,
      groups: (n) => (n >= from && n <= to ? foldedGroups(across, Math.ceil(n / SKINNY.rows)) : NOTHING),
      work: N * K,
    }),
  ];
};

/** The product in the variants that its plan's row counts ask for. */
export const multiply = (product: Product, target: Target): Dispatch[] => {
  const { op, rows, w, N, K, slice } = product;
  const [O, I] = w.shape as [number, number];
  const isAlongDepth = op === "linear";
  const ranges: { variant: ProductVariant; from: number; to: number }[] = [];
  for (const { from, to } of rowClasses(rows.capacity, target.isSoftware)) {
    const problem = { op, rows: to, sizes: { O, I }, format: formatOf(w) } as const;
    const isHead = product.ending !== undefined;
    const shape = { problem, isSoftware: target.isSoftware, n: N, depth: K, slices: Math.ceil(K / slice), isAlongDepth, isHead };
    const variant = chosen(target, problem, productCandidates(shape));
    const last = ranges.at(-1);
    if (last?.variant.name === variant.name) last.to = to;
    else ranges.push({ variant, from, to });
  }
  return ranges.flatMap(({ variant, ...range }) => (variant.kind === "skinny" ? skinnied(product, range) : tiled(product, variant, range)));
};

export const linear = ({ rows, x, w, bias, residual, y, scale }: Of<"linear">, target: Target): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  const accumulate = residual !== undefined && isSame(residual, y);
  return shardsOf(w, target.bindingBytes).flatMap(({ tensor, first }) =>
    multiply(
      {
        op: "linear",
        rows,
        a: x,
        w: tensor,
        y,
        bias,
        residual: accumulate ? undefined : residual,
        accumulate,
        scale,
        aWidth: I,
        aFirst: 0,
        yWidth: O,
        yFirst: first,
        N: tensor.shape[0]!,
        K: I,
        slice: sliceOf(I),
      },
      target,
    ),
  );
};

/** Shards divide the depth here: the first one makes dx, the others add to it. */
export const linearBackward = ({ rows, dy, w, dx, scale, accumulate }: Of<"linearBackward">, target: Target): Dispatch[] => {
  const [O, I] = w.shape as [number, number];
  return shardsOf(w, target.bindingBytes).flatMap(({ tensor, first }) =>
    multiply(
      {
        op: "linearBackward",
        rows,
        a: dy,
        w: tensor,
        y: dx,
        accumulate: accumulate || first > 0,
        scale,
        aWidth: O,
        aFirst: first,
        yWidth: I,
        yFirst: 0,
        N: I,
        K: tensor.shape[0]!,
        slice: sliceOf(O),
      },
      target,
    ),
  );
};
