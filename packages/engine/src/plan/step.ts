// The op table: everything an executor must be able to do, as data. A plan is a straight list of these steps; three
// interpreters run it (reference, wasm, webgpu). Nothing here computes.
//
// Conventions
// - All tensors are row-major. f32 unless said otherwise. T = token rows, N = output rows (rows that reach the head).
// - Axes: D model width, H heads, K KV heads, C head width, F feed-forward width, V vocabulary, R LoRA rank; O × I a weight.
// - Row counts are the only dynamic sizes: a step processes n = clamp(vars[rows.count] − rows.base, 0, rows.capacity) rows of
//   its row-shaped operands. Rows beyond n are never read or written (they may hold NaN from earlier plans).
//   `base` shortens the count and nothing else: row 0 of an operand is row `base` of the run, so a chunk's operands are views.
// - `inout` operands are read and written in place; an operand never appears twice in one step unless its comment allows it.
// - The result of a row is bitwise independent of n and of the other rows: the order of every sum over the inner axis is
//   fixed by the widths alone, and every kernel that an executor may choose keeps it. (Same tokens, same adapter → same log-probs,
//   whatever the batch.)
// - weightGrad sums over rows in a fixed order: same rows, same bits, on one device.

/** Frozen weights [O, I] with I a multiple of 32, whole tensors only (no views). Layout and rounding: weights/formats.ts. */
export type PackedDtype = "f16" | "bf16" | "q8" | "q4";

export type Dtype = "f32" | "i32" | PackedDtype;

/** weights: frozen, read-only · state: LoRA p, g, m, v and the sampler's copy · kv: cache · arena: activations · io: host in/out. */
export type Home = "weights" | "state" | "kv" | "arena" | "io";

/**
 * Identity is the object: plans share weights by sharing Tensor objects. A view is a contiguous part of another tensor;
 * `offset` counts elements and is a multiple of 64 (256 bytes, WebGPU's binding alignment). Views of views do not exist.
 */
export interface Tensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: Dtype;
  readonly home: Home;
  readonly view?: { readonly of: Tensor; readonly offset: number };
}

export const sizeOf = (tensor: Tensor): number => tensor.shape.reduce((a, b) => a * b, 1);

/** Run-time scalars of a plan. */
export interface Vars {
  /** T: token rows of this run. */
  readonly rows?: number;
  /** N: rows that reach the head. */
  readonly outRows?: number;
  readonly learningRate?: number;
  readonly beta1?: number;
  readonly beta2?: number;
  readonly eps?: number;
  readonly weightDecay?: number;
  /** 0: no clipping. */
  readonly gradClipNorm?: number;
  /** Adam's t, from 1. */
  readonly adamStep?: number;
}

export interface Rows {
  readonly count: "rows" | "outRows";
  readonly base: number;
  readonly capacity: number;
}

/** Columns of a lane, one request that is being sampled. Its stop tokens follow. */
export const LANE = {
  /** Row of the cache. */
  slot: 0,
  /** Where the token that is sampled next will be fed. */
  position: 1,
  /** Tokens that may still be sampled; 0: the lane is at rest. */
  left: 2,
  /** Tokens in its row of the history. */
  count: 3,
  /** u32, as i32. */
  seed: 4,
  /** Tokens sampled so far: the index of the next uniform number. */
  drawn: 5,
} as const;
export const LANE_WIDTH = 6;

/** Numbers of a row of a head's `parts`, a multiple of 4: four for 64 columns, and at most for 512 runs of columns. */
export const headParts = (vocab: number): number => Math.min(Math.max(Math.ceil(vocab / 64), 2), 512) * 4;
/** Columns of the head's gradient come in multiples of it, unless they are all there; a row of them is as large as one of `parts`. */
export const HEAD_SLICE = 2048;

export type LossName = "crossEntropy" | "importanceSampling" | "ppoClip";

export type Activation = "silu" | "tanhGelu";

export type Step =
  /** y[t] = scale·table[tokens[t]].   table [V,D] · tokens [T] i32 · y [T,D] */
  | { op: "embed"; rows: Rows; table: Tensor; tokens: Tensor; y: Tensor; scale: number }
  /**
   * rstd = (mean x² + eps)^−½; y = residual + x·rstd·gain, residual absent: 0.   gain [D] · x, y, residual [T,G·D] · rstd [T,G] (or [T] where G = 1).
   * Each of the G groups of a row is normed by itself: G = 1 for the model's width, G = heads for queries and keys.
   */
  | { op: "rmsNorm"; rows: Rows; x: Tensor; gain: Tensor; residual?: Tensor; y: Tensor; rstd: Tensor; eps: number }
  /** x̂ = x·rstd; dx = (accumulate ? dx : 0) + rstd·(gain∘dy − x̂·mean(gain∘dy∘x̂)), group by group.   dy, dx [T,G·D] */
  | { op: "rmsNormBackward"; rows: Rows; x: Tensor; gain: Tensor; rstd: Tensor; dy: Tensor; dx: Tensor; accumulate: boolean }
  /** y = residual + scale·x·wᵀ (+ bias), residual absent: 0.   x [T,I] · w [O,I] · bias [O] · y, residual [T,O]; residual may be y itself (accumulate). */
  | { op: "linear"; rows: Rows; x: Tensor; w: Tensor; bias?: Tensor; residual?: Tensor; y: Tensor; scale: number }
  /** dx = (accumulate ? dx : 0) + scale·dy·w.   dy [T,O] · w [O,I] · dx [T,I] */
  | { op: "linearBackward"; rows: Rows; dy: Tensor; w: Tensor; dx: Tensor; scale: number; accumulate: boolean }
  /** dw += scale·dyᵀ·x, summed over rows in fixed order.   dy [T,O] · x [T,I] · dw inout [O,I] (state) */
  | { op: "weightGrad"; rows: Rows; dy: Tensor; x: Tensor; dw: Tensor; scale: number }
  /**
   * In place on x [T, heads·C]: pairs (i, i + C/2) of each head rotate by direction·θ(positions[t], i).
   * table [P, C]: cos θ in columns 0 … C/2 − 1, sin θ in the rest.   x0' = x0·cos − d·x1·sin; x1' = x1·cos + d·x0·sin. direction −1 is the backward.
   */
  | { op: "rope"; rows: Rows; x: Tensor; table: Tensor; positions: Tensor; heads: number; direction: 1 | -1 }
  /**
   * Causal grouped-query attention over packed sequences: row t sees rows start[t] … t. Query head h uses KV head ⌊h·K/H⌋.
   * With a window of w it sees only the last w of them, rows max(start[t], t − w + 1) … t; so in all attention ops. 1 ≤ w.
   * q, o [T,H·C] · k, v [T,K·C] · start [T] i32 (row index, ≤ t) · lse [T,H]: log Σ exp(scale·q·k).
   */
  | {
      op: "attention";
      rows: Rows;
      q: Tensor;
      k: Tensor;
      v: Tensor;
      start: Tensor;
      o: Tensor;
      lse: Tensor;
      heads: number;
      kvHeads: number;
      scale: number;
      window?: number;
    }
  /** delta[t,h] = Σ_c dO[t,h,c]·o[t,h,c].   delta [T,H] */
  | { op: "attentionDelta"; rows: Rows; o: Tensor; dO: Tensor; delta: Tensor; heads: number }
  /** P = exp(scale·q·k − lse); dS = P∘(dO·vᵀ − delta); dq = scale·Σ_k dS·k.   dq [T,H·C] */
  | {
      op: "attentionBackwardQ";
      rows: Rows;
      q: Tensor;
      k: Tensor;
      v: Tensor;
      dO: Tensor;
      lse: Tensor;
      delta: Tensor;
      start: Tensor;
      dq: Tensor;
      heads: number;
      kvHeads: number;
      scale: number;
      window?: number;
    }
  /** dk = scale·Σ_q dS·q; dv = Σ_q P·dO, over the query rows t … min(end[t], t + window) − 1 of the row's sequence and the query heads of the KV head.   end [T] i32 (exclusive) · dk, dv [T,K·C] */
  | {
      op: "attentionBackwardKv";
      rows: Rows;
      q: Tensor;
      k: Tensor;
      v: Tensor;
      dO: Tensor;
      lse: Tensor;
      delta: Tensor;
      end: Tensor;
      dk: Tensor;
      dv: Tensor;
      heads: number;
      kvHeads: number;
      scale: number;
      window?: number;
    }
  /** kCache[slots[t], positions[t]] = k[t]; the same for v.   k, v [T,K·C] · slots, positions [T] i32 · kCache, vCache [S,P,K·C] (kv) */
  | { op: "kvAppend"; rows: Rows; k: Tensor; v: Tensor; slots: Tensor; positions: Tensor; kCache: Tensor; vCache: Tensor }
  /**
   * kCache[to[n], p] = kCache[from[n], p] for p < length[n]; the same for v. No slot stands twice in `to`, none in `to` and `from`.
   * from, to, length [N] i32 · kCache, vCache inout [S,P,K·C] (kv)
   */
  | { op: "kvCopy"; rows: Rows; from: Tensor; to: Tensor; length: Tensor; kCache: Tensor; vCache: Tensor }
  /** Row t attends to positions 0 … positions[t] of slot slots[t], or to the last `window` of them (kvAppend of this run has already happened).   q, o [T,H·C] */
  | {
      op: "attentionCached";
      rows: Rows;
      q: Tensor;
      kCache: Tensor;
      vCache: Tensor;
      slots: Tensor;
      positions: Tensor;
      o: Tensor;
      heads: number;
      kvHeads: number;
      scale: number;
      window?: number;
    }
  /**
   * y = act(gate)∘up, act(g) = g·σ(u).   [T,F].   silu: u = g · tanhGelu: u = √(8/π)·(g + 0.044715·g³), since
   * ½(1 + tanh(u/2)) = σ(u): GELU in its tanh form exactly.
   */
  | { op: "glu"; rows: Rows; gate: Tensor; up: Tensor; y: Tensor; activation: Activation }
  /** In place, s = σ(u): gate becomes dy·up·s·(1 + g·u'·(1 − s)), up becomes dy·act(g).   gate, up inout; dy [T,F] */
  | { op: "gluBackward"; rows: Rows; gate: Tensor; up: Tensor; dy: Tensor; activation: Activation }
  /** y[n] = x[index[n]].   rows counts N · x [T,D] · index [N] i32 · y [N,D] */
  | { op: "gatherRows"; rows: Rows; x: Tensor; index: Tensor; y: Tensor }
  /** dx = 0 for `rows` rows, then dx[index[n]] = dy[n] for `outRows` n. Indices are distinct.   dy [N,D] · dx [T,D] */
  | { op: "scatterRows"; rows: Rows; outRows: Rows; dy: Tensor; index: Tensor; dx: Tensor }
  /**
   * The head without its logits: z = x·wᵀ exists a tile at a time. With i = inverseTemperature[n]: lse = log Σ exp(i·z); logprob = i·z[target] − lse;
   * entropy = lse − Σ p·i·z.   x [N,D] · w [V,D] · target [N] i32 · inverseTemperature, logprob, entropy, lse [N]. rows counts N.
   * z [N,V], where it is given: the logits are left in it. parts [N,headParts(V)]: for sums of tiles; nobody's afterwards.
   */
  | {
      op: "logprob";
      rows: Rows;
      x: Tensor;
      w: Tensor;
      z?: Tensor;
      parts: Tensor;
      target: Tensor;
      inverseTemperature: Tensor;
      logprob: Tensor;
      entropy: Tensor;
      lse: Tensor;
    }
  /**
   * k = clamp(logprob − old, ±20), r = e^k, A = advantage (crossEntropy: the weight w). loss and gradient g = dloss/dlogprob, [N]:
   * crossEntropy: −A·logprob, g = −A · importanceSampling: −A·r, g = −A·r ·
   * ppoClip: A ≥ 0: −A·min(r, 1 + clipHigh), g = r ≤ 1 + clipHigh ? −A·r : 0. A < 0: min(−A·max(r, 1 − clipLow), −A·dualClip), g = r < 1 − clipLow || r > dualClip ? 0 : −A·r.
   * g is 0 where the clamp is active. lossParams [4] = clipLow, clipHigh, dualClip (1e30: off), unused (io).
   */
  | {
      op: "tokenLoss";
      rows: Rows;
      loss: LossName;
      logprob: Tensor;
      old: Tensor;
      advantage: Tensor;
      lossParams: Tensor;
      tokenLoss: Tensor;
      dLogprob: Tensor;
    }
  /**
   * dx = dz·w with dz_j = g·i·(1[j = target] − exp(i·z_j − lse)), z = x·wᵀ, i = inverseTemperature, g = dLogprob.   x, dx [N,D] · w [V,D]
   * z [N,S]. S = V: holds what logprob left in it. S < V, a multiple of HEAD_SLICE: room in which the logits are made again, S columns at a
   * time. Nobody's afterwards. dx has the same bits for every S.
   */
  | {
      op: "logprobBackward";
      rows: Rows;
      x: Tensor;
      w: Tensor;
      z: Tensor;
      target: Tensor;
      inverseTemperature: Tensor;
      lse: Tensor;
      dLogprob: Tensor;
      dx: Tensor;
    }
  /**
   * z = x·wᵀ; token = the first j with Σ_{i ≤ j} p_i > uniform, p at inverseTemperature (the last j with mass if rounding leaves none);
   * logprob = log p(token). inverseTemperature 0: token = argmax z (ties: lowest j), logprob at temperature 1.
   * x [N,D] · w [V,D] · uniform [N] in [0,1) · token [N] i32 · logprob [N] · z, parts: as in logprob.
   */
  | {
      op: "sample";
      rows: Rows;
      x: Tensor;
      w: Tensor;
      z?: Tensor;
      parts: Tensor;
      inverseTemperature: Tensor;
      uniform: Tensor;
      token: Tensor;
      logprob: Tensor;
    }
  /**
   * Makes the rows of the next run from the tokens that were sampled, so that no token waits for the host. Lane n has what LANE names and
   * then S stop tokens (−1: none). Where its `left` is 0 nothing of row n changes; elsewhere history[n, count] = (token, logprob);
   * tokens[n] = token; positions[n] = position; slots[n] = slot; uniform[n] = uniform(seed, drawn + 1) of random.ts, bit for bit;
   * position, count and drawn grow by 1; left becomes 0 at a stop token, else left − 1.   count < M
   * token [N] i32 · logprob [N] · lanes [N, LANE_WIDTH + S] i32 inout · history [N, M, 2] (ids are exact in f32) · tokens, positions, slots [T] i32, T ≥ N · uniform [N]
   */
  | {
      op: "advance";
      rows: Rows;
      token: Tensor;
      logprob: Tensor;
      lanes: Tensor;
      history: Tensor;
      tokens: Tensor;
      positions: Tensor;
      slots: Tensor;
      uniform: Tensor;
    }
  /** sum[0] = Σ x². Fixed order.   x [n] · sum [1] */
  | { op: "sumSquares"; x: Tensor; sum: Tensor }
  /**
   * AdamW, decoupled decay. n = √sumSquares[0]; not finite: nothing is changed. g ← g·(gradClipNorm > 0 ? min(1, gradClipNorm/(n + 1e-6)) : 1);
   * p ← p·(1 − lr·wd); m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; p ← p − lr·(m/(1 − β₁ᵗ))/(√(v/(1 − β₂ᵗ)) + eps).   p, m, v inout [n] · g [n] is left as it was
   */
  | { op: "adamW"; p: Tensor; g: Tensor; m: Tensor; v: Tensor; sumSquares: Tensor }
  /** x = 0, the whole tensor. */
  | { op: "zero"; x: Tensor }
  /** y = x, whole tensors of one size. */
  | { op: "copy"; x: Tensor; y: Tensor };

export type OpName = Step["op"];

export type OperandName<S> = { [K in keyof S]-?: NonNullable<S[K]> extends Tensor ? K : never }[keyof S];
export type Operands = {
  readonly [S in Step as S["op"]]: { readonly reads: readonly OperandName<S>[]; readonly writes: readonly OperandName<S>[] };
};

/** Which operands a step reads and writes; inout operands stand in both. Read by the arena planner and by the backends' bindings. */
export const OPERANDS: Operands = {
  embed: { reads: ["table", "tokens"], writes: ["y"] },
  rmsNorm: { reads: ["x", "gain", "residual"], writes: ["y", "rstd"] },
  /* dx of this and of linearBackward is read only when it accumulates; arena.ts knows. */
  rmsNormBackward: { reads: ["x", "gain", "rstd", "dy", "dx"], writes: ["dx"] },
  linear: { reads: ["x", "w", "bias", "residual"], writes: ["y"] },
  linearBackward: { reads: ["dy", "w", "dx"], writes: ["dx"] },
  weightGrad: { reads: ["dy", "x", "dw"], writes: ["dw"] },
  rope: { reads: ["x", "table", "positions"], writes: ["x"] },
  attention: { reads: ["q", "k", "v", "start"], writes: ["o", "lse"] },
  attentionDelta: { reads: ["o", "dO"], writes: ["delta"] },
  attentionBackwardQ: { reads: ["q", "k", "v", "dO", "lse", "delta", "start"], writes: ["dq"] },
  attentionBackwardKv: { reads: ["q", "k", "v", "dO", "lse", "delta", "end"], writes: ["dk", "dv"] },
  kvAppend: { reads: ["k", "v", "slots", "positions"], writes: ["kCache", "vCache"] },
  kvCopy: { reads: ["from", "to", "length", "kCache", "vCache"], writes: ["kCache", "vCache"] },
  attentionCached: { reads: ["q", "kCache", "vCache", "slots", "positions"], writes: ["o"] },
  glu: { reads: ["gate", "up"], writes: ["y"] },
  gluBackward: { reads: ["gate", "up", "dy"], writes: ["gate", "up"] },
  gatherRows: { reads: ["x", "index"], writes: ["y"] },
  scatterRows: { reads: ["dy", "index"], writes: ["dx"] },
  logprob: { reads: ["x", "w", "target", "inverseTemperature"], writes: ["z", "parts", "logprob", "entropy", "lse"] },
  tokenLoss: { reads: ["logprob", "old", "advantage", "lossParams"], writes: ["tokenLoss", "dLogprob"] },
  /* z is read only where it holds the logits. */
  logprobBackward: { reads: ["x", "w", "z", "target", "inverseTemperature", "lse", "dLogprob"], writes: ["z", "dx"] },
  sample: { reads: ["x", "w", "inverseTemperature", "uniform"], writes: ["z", "parts", "token", "logprob"] },
  advance: {
    reads: ["token", "logprob", "lanes"],
    writes: ["lanes", "history", "tokens", "positions", "slots", "uniform"],
  },
  sumSquares: { reads: ["x"], writes: ["sum"] },
  adamW: { reads: ["p", "g", "m", "v", "sumSquares"], writes: ["p", "m", "v"] },
  zero: { reads: [], writes: ["x"] },
  copy: { reads: ["x"], writes: ["y"] },
};

/** The tensors a step reads and writes, absent optional operands left out. */
export const operandsOf = (step: Step): { reads: Tensor[]; writes: Tensor[] } => {
  const { reads, writes } = OPERANDS[step.op];
  const pick = (names: readonly string[]): Tensor[] =>
    names.map((name) => (step as unknown as Record<string, Tensor | undefined>)[name]).filter((tensor) => tensor !== undefined);
  return { reads: pick(reads), writes: pick(writes) };
};

/** A compiled-to-be list of steps. Every arena and io tensor of it is found through the steps' operands. */
export interface Plan {
  readonly name: string;
  readonly steps: readonly Step[];
}
