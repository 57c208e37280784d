// A burst on a backend: the lanes' state goes up once, the runs follow each other without a wait, and what was sampled comes
// back in one read. It knows numbers and rows; what a request is, the sampler knows.

import { type InferPlan, type KvCache, prefixPlan, STOP_TOKENS } from "../model/plans.ts";
import type { Backend, Executable } from "../plan/backend.ts";
import { LANE, LANE_WIDTH, sizeOf } from "../plan/step.ts";
import { uniform } from "../random.ts";
import type { Copy, Run } from "./burst.ts";

/** What the device has to know of a request. */
export interface LaneState {
  /** Row of the cache, and the position at which its next sampled token will be fed. */
  readonly slot: number;
  readonly position: number;
  /** The token to be fed first, at the position before; undefined: its prompt ends in this burst. */
  readonly last: number | undefined;
  /** Tokens that may still be sampled, and how many were. */
  readonly left: number;
  readonly drawn: number;
  readonly seed: number;
  readonly temperature: number;
  readonly stopTokens: readonly number[];
}

export interface SamplingDevice {
  /** Rows that a run takes. */
  readonly capacity: number;
  /** Runs that a burst may have. */
  readonly maxSteps: number;
  /**
   * Runs a burst with one adapter's plan, over the same io tensors as the device's. Token and log-prob j of lane n stand at
   * 2·(n·maxSteps + j) and after it. isEnded is asked between two runs.
   */
  run(
    executable: Executable,
    burst: { lanes: readonly LaneState[]; runs: readonly Run[]; isEnded: () => boolean },
  ): Promise<ArrayLike<number>>;
  dispose(): void;
}

/** Allocates the cache, compiles what copies in it. Throws EngineError("device") when memory is short. */
export const createSamplingDevice = async (backend: Backend, plan: Omit<InferPlan, "plan">, cache: KvCache): Promise<SamplingDevice> => {
  const laneCount = cache.slots;
  const [width, maxSteps] = [plan.lanes.shape[1]!, plan.history.shape[1]!];
  for (const { k, v } of cache.layers) {
    await backend.allocate(k);
    await backend.allocate(v);
  }
  const prefix = prefixPlan(cache);
  const copier = await backend.compile(prefix.plan);

  // Host mirrors of the plan's inputs, filled from the start for every burst.
  const [tokens, positions, slots] = [new Int32Array(laneCount), new Int32Array(laneCount), new Int32Array(laneCount)];
  const [inverseTemperature, uniforms] = [new Float32Array(laneCount), new Float32Array(laneCount)];
  const states = new Int32Array(laneCount * width);
  const identity = Int32Array.from({ length: laneCount }, (_, i) => i);

  const upload = (lanes: readonly LaneState[]): void => {
    let decoding = 0;
    for (const [n, lane] of lanes.entries()) {
      if (lane.last !== undefined) {
        tokens[n] = lane.last;
        positions[n] = lane.position - 1;
        slots[n] = lane.slot;
        decoding = n + 1;
      }
      inverseTemperature[n] = lane.temperature === 0 ? 0 : 1 / lane.temperature;
      uniforms[n] = uniform(lane.seed, lane.drawn);
      const state = states.subarray(n * width, (n + 1) * width).fill(-1);
      state[LANE.slot] = lane.slot;
      state[LANE.position] = lane.position;
      state[LANE.left] = lane.left;
      state[LANE.count] = 0;
      state[LANE.seed] = lane.seed;
      state[LANE.drawn] = lane.drawn;
      state.set(lane.stopTokens.slice(0, STOP_TOKENS), LANE_WIDTH);
    }
    if (decoding > 0) {
      backend.write(plan.tokens, tokens.subarray(0, decoding));
      backend.write(plan.positions, positions.subarray(0, decoding));
      backend.write(plan.slots, slots.subarray(0, decoding));
      backend.write(plan.outIndex, identity.subarray(0, decoding));
    }
    if (lanes.length > 0) {
      backend.write(plan.inverseTemperature, inverseTemperature.subarray(0, lanes.length));
      backend.write(plan.uniform, uniforms.subarray(0, lanes.length));
      backend.write(plan.lanes, states.subarray(0, lanes.length * width));
    }
  };

  const copyPrefixes = async (copies: readonly Copy[]): Promise<void> => {
    if (copies.length === 0) return;
    backend.write(
      prefix.from,
      Int32Array.from(copies, ({ from }) => from.index),
    );
    backend.write(
      prefix.to,
      Int32Array.from(copies, ({ to }) => to.index),
    );
    backend.write(
      prefix.length,
      Int32Array.from(copies, ({ length }) => length),
    );
    await copier.run({ rows: copies.length });
  };

  return {
    capacity: sizeOf(plan.tokens),
    maxSteps,
    async run(executable, { lanes, runs, isEnded }) {
      upload(lanes);
      for (const run of runs) {
        if (isEnded()) break;
        await copyPrefixes(run.copies);
        const { decoding, ends } = run;
        if (run.tokens.length > 0) {
          backend.write(plan.tokens, Int32Array.from(run.tokens), decoding);
          backend.write(plan.positions, Int32Array.from(run.positions), decoding);
          backend.write(plan.slots, Int32Array.from(run.slots), decoding);
        }
        if (ends.length > 0) backend.write(plan.outIndex, Int32Array.from(ends), decoding);
        await executable.run({ rows: decoding + run.tokens.length, outRows: decoding + ends.length });
        // From the next run on the new lanes decode in the row of their number.
        if (ends.length > 0) backend.write(plan.outIndex, identity.subarray(decoding, decoding + ends.length), decoding);
      }
      return lanes.length === 0 ? [] : backend.read(plan.history, 2 * maxSteps * lanes.length);
    },
    dispose: copier.dispose,
  };
};
