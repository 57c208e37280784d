// From a sampled token to the row of the next run. The columns of a lane are plan/step.ts's LANE; the uniform number is random.ts's,
// bit for bit: u32 arithmetic wraps, and 24 bits are exact in f32.

import { address, share, word } from "./table";

const SLOT: usize = 0;
const POSITION: usize = 4;
const LEFT: usize = 8;
const COUNT: usize = 12;
const SEED: usize = 16;
const DRAWN: usize = 20;
const STOPS: usize = 24;

function pcg(value: u32): u32 {
  const state: u32 = value * 747796405 + 2891336453;
  const mixed: u32 = ((state >> ((state >> 28) + 4)) ^ state) * 277803737;
  return (mixed >> 22) ^ mixed;
}

/** token, logprob, lanes, history, tokens, positions, slots, uniform, columns of a lane, tokens of a row of the history. */
export function advance(s: usize, n: i32, thread: i32, threads: i32): void {
  const laneBytes = (<usize>word(s, 8)) << 2, most = word(s, 9);
  const end = share(n, thread + 1, threads);
  for (let r = share(n, thread, threads); r < end; r++) {
    const at = (<usize>r) << 2;
    const lane = address(s, 2) + (<usize>r) * laneBytes;
    const left = load<i32>(lane + LEFT), count = load<i32>(lane + COUNT), position = load<i32>(lane + POSITION);
    if (left == 0 || <u32>count >= <u32>most) continue;
    const token = load<i32>(address(s, 0) + at);
    const entry = address(s, 3) + ((<usize>(r * most + count)) << 3);
    store<f32>(entry, <f32>token);
    store<f32>(entry + 4, load<f32>(address(s, 1) + at));
    store<i32>(address(s, 4) + at, token);
    store<i32>(address(s, 5) + at, position);
    store<i32>(address(s, 6) + at, load<i32>(lane + SLOT));
    const drawn = load<u32>(lane + DRAWN) + 1;
    store<f32>(address(s, 7) + at, <f32>(pcg(load<u32>(lane + SEED) ^ pcg(drawn)) >> 8) * (1.0 / 16777216.0));
    let isStop = false;
    for (let stop = lane + STOPS; stop < lane + laneBytes; stop += 4) if (load<i32>(stop) == token) isStop = true;
    store<i32>(lane + POSITION, position + 1);
    store<i32>(lane + COUNT, count + 1);
    store<u32>(lane + DRAWN, drawn);
    store<i32>(lane + LEFT, isStop ? 0 : left - 1);
  }
}
