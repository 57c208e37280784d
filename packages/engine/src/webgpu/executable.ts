// A compiled plan: an array of launches. `run` writes all parameters once and loops; it creates no buffer, bind group or pipeline
// (bind groups are made anew only after the shared arena has grown). One compute pass a submit; a long plan is cut into submits of
// about 100 ms (pacing.ts), and at most a few are in flight.

import { EngineError } from "../errors.ts";
import { rowCount } from "../plan/rowCount.ts";
import type { Rows, Vars } from "../plan/step.ts";
import type { OpenDevice } from "./device.ts";
import { BLOCK, type Constant, type Dispatch, SHARED_COUNTS, SHARED_PARAMS } from "./kernels/kernel.ts";
import type { Pacing } from "./pacing.ts";

/** WebGPU's alignment of dynamic uniform offsets. */
export const SLOT_BYTES = 256;
const DISPATCHES_PER_SUBMIT = 512;
const SUBMITS_IN_FLIGHT = 4;

/** What one slot of the parameter buffer is made from: launches with the same row counts and constants share one. */
export interface Slot {
  readonly rows?: Rows;
  readonly outRows?: Rows;
  readonly constants: readonly Constant[];
}

export interface Launch {
  readonly dispatch: Dispatch;
  readonly pipeline: GPUComputePipeline;
  /** Index into the slots. */
  readonly slot: number;
}

/** Launches → slots, without duplicates. */
export const slotsOf = (dispatches: readonly Dispatch[]): { slots: Slot[]; slotOf: number[] } => {
  const slots: Slot[] = [];
  const indices = new Map<string, number>();
  const name = (rows?: Rows): string => (rows ? `${rows.count} ${rows.base} ${rows.capacity}` : "");
  const slotOf = dispatches.map(({ rows, outRows, constants }) => {
    const key = `${name(rows)}/${name(outRows)}/${constants.map(({ type, value }) => `${type} ${value}`).join()}`;
    let index = indices.get(key);
    if (index === undefined) {
      index = slots.push({ constants, ...(rows && { rows }), ...(outRows && { outRows }) }) - 1;
      indices.set(key, index);
    }
    return index;
  });
  return { slots, slotOf };
};

/** Submits of one backend that have not finished; shared by its executables. */
export type InFlight = Promise<unknown>[];

const ADAM = ["learningRate", "beta1", "beta2", "eps", "adamStep"] as const;

export interface Replay {
  readonly open: OpenDevice;
  readonly name: string;
  readonly launches: readonly Launch[];
  readonly slots: readonly Slot[];
  readonly params: GPUBuffer;
  readonly inFlight: InFlight;
  readonly pacing: Pacing;
  /** The launches' bind groups, valid for the buffers of this moment. */
  readonly bindGroups: () => readonly GPUBindGroup[];
  /** Validates and submits every launch by itself and names the one that fails. Slow. */
  readonly debug: boolean;
}

export const createReplay = ({
  open,
  name,
  launches,
  slots,
  params,
  inFlight,
  pacing,
  bindGroups,
  debug,
}: Replay): ((vars: Vars) => Promise<void>) => {
  const { device, check, failure, wait } = open;
  const bytes = new ArrayBuffer(slots.length * SLOT_BYTES);
  const views = slots.map((_, i) => ({
    counts: new Uint32Array(bytes, i * SLOT_BYTES, SHARED_COUNTS),
    scalars: new Float32Array(bytes, i * SLOT_BYTES + SHARED_COUNTS * 4, SHARED_PARAMS.length - SHARED_COUNTS),
  }));
  for (const [i, { constants }] of slots.entries()) {
    const values = new DataView(bytes, i * SLOT_BYTES + SHARED_PARAMS.length * 4);
    for (const [place, { type, value }] of constants.entries()) {
      if (type === "u32") values.setUint32(place * 4, value, true);
      else values.setFloat32(place * 4, value, true);
    }
  }
  const offsets = slots.map((_, i) => [i * SLOT_BYTES]);
  const hasAdam = launches.some(({ dispatch }) => dispatch.label === "adamW");

  const writeParams = (vars: Vars): void => {
    if (hasAdam) {
      const missing = ADAM.filter((key) => vars[key] === undefined);
      if (missing.length > 0)
        throw new EngineError("bad-request", `run: adamW needs vars.${missing.join(", vars.")}, got none; pass them to run`);
    }
    const { learningRate = 0, beta1 = 0, beta2 = 0, eps = 0, weightDecay = 0, gradClipNorm = 0, adamStep = 1 } = vars;
    for (const [i, { rows, outRows }] of slots.entries()) {
      const { counts, scalars } = views[i]!;
      counts[0] = rows ? rowCount(rows, vars) : 0;
      counts[1] = outRows ? rowCount(outRows, vars) : 0;
      counts[2] = BLOCK;
      scalars.set([learningRate, beta1, beta2, eps, weightDecay, gradClipNorm, 1 / (1 - beta1 ** adamStep), 1 / (1 - beta2 ** adamStep)]);
    }
    device.queue.writeBuffer(params, 0, bytes);
  };

  /** Ends the pass, submits it, and waits while too many submits are unfinished. */
  const submit = async (encoder: GPUCommandEncoder, pass: GPUComputePassEncoder, work: number): Promise<void> => {
    pass.end();
    const ended = pacing.submitted(work);
    device.queue.submit([encoder.finish()]);
    const done = device.queue.onSubmittedWorkDone();
    // A rejection here is a lost device; the next check says so.
    done.then(ended, () => {});
    inFlight.push(done);
    if (inFlight.length > SUBMITS_IN_FLIGHT) {
      try {
        await wait(inFlight.shift()!);
      } catch (cause) {
        throw await failure("run", cause);
      }
      check("run");
    }
  };

  return async (vars) => {
    check("run");
    writeParams(vars);
    const groups = bindGroups();
    let encoder: GPUCommandEncoder | undefined;
    let pass: GPUComputePassEncoder | undefined;
    let work = 0;
    let dispatches = 0;
    for (const [i, { dispatch, pipeline, slot }] of launches.entries()) {
      const counts = views[slot]!.counts;
      const [x, y, z] = dispatch.groups(counts[0]!, counts[1]!);
      if (x * y * z === 0) continue;
      if (debug) device.pushErrorScope("validation");
      if (!encoder || !pass) {
        encoder = device.createCommandEncoder({ label: name });
        pass = encoder.beginComputePass({ label: name });
      }
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, groups[i]!, offsets[slot]!);
      pass.dispatchWorkgroups(x, y, z);
      work += dispatch.work * (dispatch.rows ? counts[0]! : 1);
      dispatches++;
      if (debug || work >= pacing.work || dispatches === DISPATCHES_PER_SUBMIT) {
        const full = submit(encoder, pass, work);
        if (debug) {
          const error = await device.popErrorScope();
          if (error)
            throw new EngineError("device", `run: plan "${name}", launch ${i} (${dispatch.label}) must be valid, got "${error.message}"`);
        }
        await full;
        encoder = pass = undefined;
        work = dispatches = 0;
      }
    }
    if (encoder && pass) await submit(encoder, pass, work);
  };
};
