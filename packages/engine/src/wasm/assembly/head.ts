// Above the logits: log-prob and entropy, the token losses, their way back into the logits, sampling. Threads share the rows.
// Sums over the vocabulary are kept in f64; exponentials are f32. Word layouts: encode.ts.

import { address, share, word } from "./table";
import { exp1, exp4, maxLanes, toF64Sum } from "./vector";

/** Results of `measure` for one row of logits: max i·z, Σ e^(i·z − peak), Σ e^(i·z − peak)·(i·z − peak). One copy a thread: wasm globals are. */
let peak: f32 = 0;
let mass: f64 = 0;
let spread: f64 = 0;

/** Far below any exponent with mass; keeps 0·∞ out of the entropy when a logit is −∞. */
const FLOOR: f32 = -1000;

function measure(z: usize, vocab: i32, inverse: f32): void {
  const bytes = (<usize>vocab) << 2;
  const vectors = (<usize>(vocab & ~3)) << 2;
  let high4 = f32x4.splat(-Infinity);
  let i: usize = 0;
  for (; i < vectors; i += 16) high4 = f32x4.max(high4, v128.load(z + i));
  let high = maxLanes(high4);
  for (; i < bytes; i += 4) high = max(high, load<f32>(z + i));
  peak = inverse * high;
  const inverse4 = f32x4.splat(inverse), peak4 = f32x4.splat(peak), floor4 = f32x4.splat(FLOOR);
  let mass2 = f64x2.splat(0), spread2 = f64x2.splat(0);
  for (i = 0; i < vectors; i += 16) {
    const d = f32x4.max(f32x4.sub(f32x4.mul(inverse4, v128.load(z + i)), peak4), floor4);
    const e = exp4(d);
    mass2 = f64x2.add(mass2, toF64Sum(e));
    spread2 = f64x2.add(spread2, toF64Sum(f32x4.mul(e, d)));
  }
  mass = f64x2.extract_lane(mass2, 0) + f64x2.extract_lane(mass2, 1);
  spread = f64x2.extract_lane(spread2, 0) + f64x2.extract_lane(spread2, 1);
  for (; i < bytes; i += 4) {
    const d = max(inverse * load<f32>(z + i) - peak, FLOOR);
    const e = exp1(d);
    mass += <f64>e;
    spread += <f64>(e * d);
  }
}

// @ts-ignore: decorator
@inline
function logprobOf(z: usize, token: i32, inverse: f32): f32 {
  return <f32>(<f64>inverse * <f64>load<f32>(z + ((<usize>token) << 2)) - (<f64>peak + Math.log(mass)));
}

/** z, target, inverseTemperature, logprob, entropy, lse, V. */
export function logprob(s: usize, n: i32, thread: i32, threads: i32): void {
  const vocab = word(s, 6);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const z = address(s, 0) + at * (<usize>vocab);
    const target = load<i32>(address(s, 1) + at);
    const inverse = load<f32>(address(s, 2) + at);
    measure(z, vocab, inverse);
    store<f32>(address(s, 3) + at, <u32>target < <u32>vocab ? logprobOf(z, target, inverse) : NaN);
    store<f32>(address(s, 4) + at, <f32>(Math.log(mass) - spread / mass));
    store<f32>(address(s, 5) + at, <f32>(<f64>peak + Math.log(mass)));
  }
}

/** z, target, inverseTemperature, lse, dLogprob, V. */
export function logprobBackward(s: usize, n: i32, thread: i32, threads: i32): void {
  const vocab = word(s, 5);
  const bytes = (<usize>vocab) << 2;
  const vectors = (<usize>(vocab & ~3)) << 2;
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const z = address(s, 0) + at * (<usize>vocab);
    const target = load<i32>(address(s, 1) + at);
    const inverse = load<f32>(address(s, 2) + at), lse = load<f32>(address(s, 3) + at);
    const slope = load<f32>(address(s, 4) + at) * inverse;
    const inverse4 = f32x4.splat(inverse), lse4 = f32x4.splat(lse), slope4 = f32x4.splat(-slope);
    let ofTarget: f32 = 0;
    if (<u32>target < <u32>vocab) ofTarget = slope * (1 - exp1(inverse * load<f32>(z + ((<usize>target) << 2)) - lse));
    let i: usize = 0;
    for (; i < vectors; i += 16) {
      v128.store(z + i, f32x4.mul(slope4, exp4(f32x4.sub(f32x4.mul(inverse4, v128.load(z + i)), lse4))));
    }
    for (; i < bytes; i += 4) store<f32>(z + i, -slope * exp1(inverse * load<f32>(z + i) - lse));
    if (<u32>target < <u32>vocab) store<f32>(z + ((<usize>target) << 2), ofTarget);
  }
}

/** First j at which the running sum of exponentials passes `goal`; the last j with mass if rounding leaves none. */
function pick(z: usize, vocab: i32, inverse: f32, goal: f64): i32 {
  const inverse4 = f32x4.splat(inverse), peak4 = f32x4.splat(peak);
  let sum: f64 = 0;
  let last = 0;
  let j = 0;
  for (; j + 4 <= vocab; j += 4) {
    const e = exp4(f32x4.sub(f32x4.mul(inverse4, v128.load(z + ((<usize>j) << 2))), peak4));
    for (let lane = 0; lane < 4; lane++) {
      const mass = lane == 0 ? f32x4.extract_lane(e, 0) : lane == 1 ? f32x4.extract_lane(e, 1) : lane == 2 ? f32x4.extract_lane(e, 2) : f32x4.extract_lane(e, 3);
      if (!(mass > 0)) continue;
      sum += <f64>mass;
      last = j + lane;
      if (sum > goal) return last;
    }
  }
  for (; j < vocab; j++) {
    const mass = exp1(inverse * load<f32>(z + ((<usize>j) << 2)) - peak);
    if (!(mass > 0)) continue;
    sum += <f64>mass;
    last = j;
    if (sum > goal) return last;
  }
  return last;
}

function argmax(z: usize, vocab: i32): i32 {
  let best = 0;
  for (let j = 1; j < vocab; j++) if (load<f32>(z + ((<usize>j) << 2)) > load<f32>(z + ((<usize>best) << 2))) best = j;
  return best;
}

/** z, inverseTemperature, uniform, token, logprob, V. */
export function sample(s: usize, n: i32, thread: i32, threads: i32): void {
  const vocab = word(s, 5);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const z = address(s, 0) + at * (<usize>vocab);
    const asked = load<f32>(address(s, 1) + at);
    const inverse: f32 = asked == 0 ? 1 : asked;
    measure(z, vocab, inverse);
    const token = asked == 0 ? argmax(z, vocab) : pick(z, vocab, inverse, <f64>load<f32>(address(s, 2) + at) * mass);
    store<i32>(address(s, 3) + at, token);
    store<f32>(address(s, 4) + at, logprobOf(z, token, inverse));
  }
}

const CROSS_ENTROPY: i32 = 0;
const IMPORTANCE_SAMPLING: i32 = 1;
/** |logprob − old| beyond this is clamped, and the gradient is 0 there. */
const RATIO_LIMIT: f64 = 20;

/** logprob, old, advantage, lossParams, tokenLoss, dLogprob, loss: the formulas of step.ts, in f64. */
export function tokenLoss(s: usize, n: i32, thread: i32, threads: i32): void {
  const params = address(s, 3), loss = word(s, 6);
  const low = 1 - <f64>load<f32>(params), high = 1 + <f64>load<f32>(params, 4), dual = <f64>load<f32>(params, 8);
  const end = share(n, thread + 1, threads);
  for (let t = share(n, thread, threads); t < end; t++) {
    const at = (<usize>t) << 2;
    const logprob = <f64>load<f32>(address(s, 0) + at), advantage = <f64>load<f32>(address(s, 2) + at);
    let value: f64, slope: f64;
    if (loss == CROSS_ENTROPY) {
      value = -advantage * logprob;
      slope = -advantage;
    } else {
      const difference = logprob - <f64>load<f32>(address(s, 1) + at);
      const r = Math.exp(min(max(difference, -RATIO_LIMIT), RATIO_LIMIT));
      slope = abs(difference) > RATIO_LIMIT ? 0 : -advantage * r;
      if (loss == IMPORTANCE_SAMPLING) {
        value = -advantage * r;
      } else if (advantage >= 0) {
        value = -advantage * min(r, high);
        if (!(r <= high)) slope = 0;
      } else {
        value = min(-advantage * max(r, low), -advantage * dual);
        if (r < low || r > dual) slope = 0;
      }
    }
    store<f32>(address(s, 4) + at, <f32>value);
    store<f32>(address(s, 5) + at, <f32>slope);
  }
}
