// sumSquares and adamW: one flat buffer for each of p, g, m, v; the norm never leaves the device.

import { type Step, sizeOf } from "../../plan/step.ts";
import { reductions } from "../../wgsl/reduce.ts";
import { type Dispatch, flat, flatGroups, kernel, MAIN_ARGUMENTS, SCRATCH } from "./kernel.ts";

type Of<Name extends Step["op"]> = Extract<Step, { op: Name }>;

const THREADS = 256;

/** Two stages: at most 256 partial sums, then their sum. The order depends on the size alone. */
export const sumSquares = ({ x, sum }: Of<"sumSquares">): Dispatch[] => {
  const size = sizeOf(x);
  const parts = Math.min(THREADS, Math.ceil(size / 1024));
  return [
    kernel({
      label: "sumSquares parts",
      bindings: { x, scratch: SCRATCH },
      body: `${reductions(THREADS)}@compute @workgroup_size(${THREADS})
fn main(${MAIN_ARGUMENTS}) {
  var part = 0.0;
  for (var i = group.x * ${THREADS}u + lane; i < params.size; i += params.stride) { part += x[i] * x[i]; }
  let total = sumOf(part, lane);
  if (lane == 0u) { scratch[group.x] = total; }
}
`,
      sizes: { size, stride: parts * THREADS },
      groups: () => [parts, 1, 1],
      work: size,
      scratchBytes: parts * 4,
    }),
    kernel({
      label: "sumSquares",
      bindings: { scratch: SCRATCH, sum },
      body: `${reductions(THREADS)}@compute @workgroup_size(${THREADS})
fn main(${MAIN_ARGUMENTS}) {
  var part = 0.0;
  if (lane < params.parts) { part = scratch[lane]; }
  let total = sumOf(part, lane);
  if (lane == 0u) { sum[0] = total; }
}
`,
      sizes: { parts },
      groups: () => [1, 1, 1],
      work: parts,
    }),
  ];
};

/**
 * The norm's finiteness is read from its bits: WGSL lets a compiler assume that no float is NaN or infinite.
 * correction1 and correction2 are 1/(1 − β₁ᵗ) and 1/(1 − β₂ᵗ), made on the host in f64.
 */
export const adamW = ({ p, g, m, v, sumSquares }: Of<"adamW">): Dispatch[] => {
  const size = sizeOf(p);
  return [
    kernel({
      label: "adamW",
      bindings: {
        p,
        g,
        m,
        v,
        squares: { tensor: sumSquares, as: "u32" },
      },
      body: flat(
        "params.size",
        `let bits = squares[0];
  if ((bits & 0x7f800000u) == 0x7f800000u) { return; }
  let norm = sqrt(bitcast<f32>(bits));
  var clip = 1.0;
  if (params.gradClipNorm > 0.0) { clip = min(1.0, params.gradClipNorm / (norm + 1e-6)); }
  let gradient = g[i] * clip;
  let newM = params.beta1 * m[i] + (1.0 - params.beta1) * gradient;
  let newV = params.beta2 * v[i] + (1.0 - params.beta2) * gradient * gradient;
  m[i] = newM;
  v[i] = newV;
  let decayed = p[i] * (1.0 - params.learningRate * params.weightDecay);
  p[i] = decayed - params.learningRate * (newM * params.correction1) / (sqrt(newV * params.correction2) + params.eps);`,
      ),
      sizes: { size },
      groups: () => flatGroups(size),
      work: 12 * size,
    }),
  ];
};
