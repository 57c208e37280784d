// The interpreter: a plan is a table of words in memory, and one call of `run` walks it. The host lays memory out and writes the table
// (encode.ts); nothing here allocates.
//
// Program: scratch address · scratch bytes a thread · step count · steps.
// Step: opcode · words in all · count (0 rows, 1 outRows, −1 none) · base · capacity · the op's own words.

import { advance } from "./advance";
import { attention, attentionBackwardKv, attentionBackwardQ, attentionCached, attentionDelta } from "./attention";
import { ADAM, control, CONTROL_BYTES, PROGRAM, ROWS, THREADS } from "./control";
import { BACKWARD, BY_COLUMN, BY_DEPTH, gemm } from "./gemm";
import { HEAD_SCRATCH, logprob, logprobBackward, sample, tokenLoss } from "./head";
import { toPanels } from "./panels";
import { embed, gatherRows, glu, gluBackward, kvAppend, kvCopy, rmsNorm, rmsNormBackward, rope, scatterRows } from "./rows";
import { adamW, copy, sumSquares, zero } from "./state";
import { address, number, word } from "./table";
import { awaitGeneration, barrier, startGeneration } from "./threads";

export { toPanels };

export function controlAddress(): usize {
  return control();
}

/** First byte that the host may give away. */
export function heapAddress(): usize {
  return control() + CONTROL_BYTES;
}

/** Of a thread, in bytes: the GEMM's blocks and the head's tile. */
export function gemmScratch(): i32 {
  return HEAD_SCRATCH;
}

/** n = clamp(vars[count] − base, 0, capacity). */
// @ts-ignore: decorator
@inline
function rowCount(count: i32, base: i32, capacity: i32): i32 {
  return min(max(load<i32>(control() + ROWS + ((<usize>count) << 2)) - base, 0), capacity);
}

/** x, w, kind (panels.ts; −1: rows of f32), scales, bias, residual, y, scale, I, O. */
function linear(s: usize, n: i32, threads: i32, scratch: usize): void {
  const inputs = word(s, 8), outputs = word(s, 9), kind = word(s, 2);
  const rowIn = (<usize>inputs) << 2, rowOut = (<usize>outputs) << 2;
  gemm(
    threads, scratch, n, outputs, inputs, address(s, 0), rowIn, 4, address(s, 1), kind < 0 ? BY_COLUMN : kind, rowIn, address(s, 3),
    address(s, 6), rowOut, address(s, 5), rowOut, address(s, 4), number(s, 7),
  );
}

/** dy, w, kind, scales, dx, accumulate, scale, I, O. */
function linearBackward(s: usize, n: i32, threads: i32, scratch: usize): void {
  const inputs = word(s, 7), outputs = word(s, 8), kind = word(s, 2);
  const rowIn = (<usize>inputs) << 2, rowOut = (<usize>outputs) << 2;
  const dx = address(s, 4);
  gemm(
    threads, scratch, n, inputs, outputs, address(s, 0), rowOut, 4,
    address(s, 1), kind < 0 ? BY_DEPTH : kind + BACKWARD, kind < 0 ? rowIn : inputs, address(s, 3),
    dx, rowIn, word(s, 5) ? dx : 0, rowIn, 0, number(s, 6),
  );
}

/** dy, x, dw, scale, I, O. */
function weightGrad(s: usize, n: i32, threads: i32, scratch: usize): void {
  const inputs = word(s, 4), outputs = word(s, 5);
  const rowIn = (<usize>inputs) << 2, rowOut = (<usize>outputs) << 2;
  const dw = address(s, 2);
  gemm(
    threads, scratch, outputs, inputs, n, address(s, 0), 4, rowOut, address(s, 1), BY_DEPTH, rowIn, 0,
    dw, rowIn, dw, rowIn, 0, number(s, 3),
  );
}

/** The numbers are encode.ts's OPCODES. */
function runStep(opcode: i32, s: usize, n: i32, thread: i32, threads: i32, scratch: usize): void {
  switch (opcode) {
    case 0: embed(s, n, thread, threads); break;
    case 1: rmsNorm(s, n, thread, threads); break;
    case 2: rmsNormBackward(s, n, thread, threads); break;
    case 3: linear(s, n, threads, scratch); break;
    case 4: linearBackward(s, n, threads, scratch); break;
    case 5: weightGrad(s, n, threads, scratch); break;
    case 6: rope(s, n, thread, threads); break;
    case 7: attention(s, n, thread, threads, scratch); break;
    case 8: attentionDelta(s, n, thread, threads); break;
    case 9: attentionBackwardQ(s, n, thread, threads, scratch); break;
    case 10: attentionBackwardKv(s, n, thread, threads, scratch); break;
    case 11: kvAppend(s, n, thread, threads); break;
    case 12: attentionCached(s, n, thread, threads, scratch); break;
    case 13: glu(s, n, thread, threads); break;
    case 14: gluBackward(s, n, thread, threads); break;
    case 15: gatherRows(s, n, thread, threads); break;
    case 16: scatterRows(s, n, rowCount(word(s, 4), word(s, 5), word(s, 6)), thread, threads); break;
    case 17: logprob(s, n, thread, threads, scratch); break;
    case 18: tokenLoss(s, n, thread, threads); break;
    case 19: logprobBackward(s, n, thread, threads, scratch); break;
    case 20: sample(s, n, thread, threads, scratch); break;
    case 21: sumSquares(s, thread); break;
    case 22: adamW(s, thread, threads, control() + ADAM); break;
    case 23: zero(s, thread, threads); break;
    case 24: copy(s, thread, threads); break;
    case 25: advance(s, n, thread, threads); break;
    case 26: kvCopy(s, n, thread, threads); break;
    default: unreachable();
  }
}

function walk(program: usize, thread: i32, threads: i32): void {
  const scratch = address(program, 0) + (<usize>thread) * address(program, 1);
  let step = program + 12;
  for (let left = word(program, 2); left > 0; left--) {
    const count = word(step, 2);
    const n = count < 0 ? 1 : rowCount(count, word(step, 3), word(step, 4));
    // All threads see the same n, so all skip the same barriers.
    if (n > 0) {
      runStep(word(step, 0), step + 20, n, thread, threads, scratch);
      barrier(threads);
    }
    step += (<usize>word(step, 1)) << 2;
  }
  // Nobody returns while another still reads the table or the row counts, which the host may now change.
  barrier(threads);
}

/** Runs a program as thread 0, together with threads − 1 serving ones; every thread that serves has to take part, or none (threads 1). */
export function run(program: usize, threads: i32): void {
  if (threads > 1) {
    store<u32>(control() + PROGRAM, <u32>program);
    store<i32>(control() + THREADS, threads);
    startGeneration();
  }
  walk(program, 0, threads);
}

/** A worker thread's life: sleeps between runs, returns after stop(). Generations start at 0 with the memory. */
export function serve(thread: i32): void {
  let generation = 0;
  while (true) {
    generation = awaitGeneration(generation);
    const program = <usize>load<u32>(control() + PROGRAM);
    if (program == 0) return;
    walk(program, thread, load<i32>(control() + THREADS));
  }
}

/** Ends all serving threads. */
export function stop(): void {
  store<u32>(control() + PROGRAM, 0);
  startGeneration();
}
