// The learning half of a policy: forward, forwardBackward, optimStep of the contract on any backend. It adds up token losses
// and nothing else; it never divides, and it knows no advantages, groups or files.
//
// Concurrency: every call holds the policy's lock from its first write to its last read. A signal is looked at between
// micro-batches. A forwardBackward that fails or is aborted after its first micro-batch began clears ALL accumulated
// gradients (a part of a batch is worse than none), and its error says so; one that ends before that changes nothing.

import type { AdamParams, Datum, ForwardOptions, ForwardOutput, Loss, StepOutput, Trainer, UpdateOutput } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { forwardPlan, optimPlan, type ScorePlan, type TrainPlan, trainPlan } from "../model/plans.ts";
import type { LoraSpec, ModelSpec } from "../model/spec.ts";
import { type LoraTensors, loraTensors, type ModelTensors } from "../model/tensors.ts";
import type { Backend, Executable } from "../plan/backend.ts";
import type { Lock } from "../plan/lock.ts";
import { sizeOf } from "../plan/step.ts";
import { checkDatum, type Limits, type MicroBatch, packDatums, toMicroBatch } from "./packing.ts";

export interface TrainerOptions {
  readonly backend: Backend;
  readonly spec: ModelSpec;
  /** Allocated by the caller, like lora.parameters.flat. */
  readonly weights: ModelTensors;
  readonly lora: { readonly spec: LoraSpec; readonly parameters: LoraTensors };
  /** Token rows of one run; also the longest datum. Default 1024. */
  readonly microBatchTokens?: number;
  /** Gradient checkpointing (plans.ts). Changes no number. Default false. */
  readonly checkpoint?: boolean;
  readonly lock: Lock;
}

/** Everything a saved state consists of. Read and write the tensors under the lock. */
export interface TrainerState {
  readonly parameters: LoraTensors;
  readonly gradients: LoraTensors;
  /** Adam's m and v. */
  readonly firstMoments: LoraTensors;
  readonly secondMoments: LoraTensors;
  /** Optimiser steps taken so far: Adam's t of the last one. */
  adamStep: number;
}

export interface TrainerCore extends Pick<Trainer, "forward" | "forwardBackward" | "optimStep"> {
  readonly state: TrainerState;
  /** Compiles every plan now that a run of this loss needs, so that memory that is short is missed here. */
  prepare(loss: Loss["name"]): Promise<void>;
  /** Frees the compiled plans; the tensors belong to the backend. */
  dispose(): void;
}

const DEFAULT_MICRO_BATCH_TOKENS = 1024;
const CLEARED = "all accumulated gradients were cleared, repeat the step from its first datum";
/** Stands for "no dual clip" in lossParams: larger than any clamped ratio (e²⁰). */
const NO_DUAL_CLIP = 1e30;

const fail = (where: string, rule: string, got: unknown, todo: string): never => {
  throw new EngineError("bad-request", `${where}: ${rule}, got ${String(got)}; ${todo}`);
};

const inverseTemperatureOf = (where: string, temperature = 1): number => {
  if (!(temperature > 0) || !Number.isFinite(temperature)) {
    fail(where, "temperature is a positive number", temperature, "pass the one that the sampler used; greedy samples are scored at 1");
  }
  return 1 / temperature;
};

/** clipLow, clipHigh, dualClip, unused. */
const lossParamsOf = (loss: Loss): Float32Array => {
  if (loss.name !== "ppoClip") return Float32Array.of(0, 0, NO_DUAL_CLIP, 0);
  const { clipLow, clipHigh, dualClip } = loss;
  if (!(clipLow >= 0 && clipLow <= 1)) fail("ppoClip", "clipLow is an offset in 0 … 1", clipLow, "0.2 keeps ratios above 0.8");
  if (!(clipHigh >= 0)) fail("ppoClip", "clipHigh is an offset ≥ 0", clipHigh, "0.28 keeps ratios below 1.28");
  if (!(dualClip > 1)) fail("ppoClip", "dualClip is a ratio > 1", dualClip, "Infinity turns it off");
  return Float32Array.of(clipLow, Math.min(clipHigh, NO_DUAL_CLIP), Math.min(dualClip, NO_DUAL_CLIP), 0);
};

const adamVarsOf = (adam: AdamParams, adamStep: number) => {
  const { learningRate, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weightDecay = 0, gradClipNorm = 0 } = adam;
  const where = "optimStep";
  const isRate = (x: number): boolean => x >= 0 && Number.isFinite(x);
  if (!isRate(learningRate)) fail(where, "learningRate is a number ≥ 0", learningRate, "2e-4 is a start for LoRA");
  if (!(beta1 >= 0 && beta1 < 1)) fail(where, "beta1 is in [0, 1)", beta1, "0.9 is the default");
  if (!(beta2 >= 0 && beta2 < 1)) fail(where, "beta2 is in [0, 1)", beta2, "0.95 is the default");
  if (!(eps > 0 && Number.isFinite(eps))) fail(where, "eps is a number > 0", eps, "with B = 0 the first gradient of A is 0");
  if (!isRate(weightDecay)) fail(where, "weightDecay is a number ≥ 0", weightDecay, "0 is the default");
  if (!isRate(gradClipNorm)) fail(where, "gradClipNorm is a number ≥ 0", gradClipNorm, "0 turns clipping off");
  return { learningRate, beta1, beta2, eps, weightDecay, gradClipNorm, adamStep };
};

/** Allocates gradients and moments (zero) and compiles plans when they are first needed. */
export const createTrainer = async (options: TrainerOptions): Promise<TrainerCore> => {
  const { backend, spec, weights, lora, microBatchTokens = DEFAULT_MICRO_BATCH_TOKENS, checkpoint = false, lock } = options;
  if (!Number.isInteger(microBatchTokens) || microBatchTokens < 1) {
    fail("createTrainer", "microBatchTokens is a positive integer", microBatchTokens, "1024 fills most devices");
  }
  const limits: Limits = { vocab: spec.vocab, maxPositions: spec.maxPositions, maxRows: microBatchTokens };
  const capacity = { rows: microBatchTokens, outRows: microBatchTokens, checkpoint };
  const adapter = { tensors: lora.parameters, spec: lora.spec };
  const state: TrainerState = {
    parameters: lora.parameters,
    gradients: loraTensors(spec, lora.spec, "lora.g"),
    firstMoments: loraTensors(spec, lora.spec, "lora.m"),
    secondMoments: loraTensors(spec, lora.spec, "lora.v"),
    adamStep: 0,
  };
  for (const { flat } of [state.gradients, state.firstMoments, state.secondMoments]) await backend.allocate(flat);

  type Compiled<P> = P & { readonly executable: Executable };
  const compiled = new Map<string, Promise<Compiled<{ plan: ScorePlan["plan"] }>>>();
  /** Compiled once; a failed compilation is tried again by the next call. */
  const compile = <P extends { plan: ScorePlan["plan"] }>(name: string, make: () => P): Promise<Compiled<P>> => {
    let entry = compiled.get(name) as Promise<Compiled<P>> | undefined;
    if (!entry) {
      const made = make();
      entry = backend.compile(made.plan).then((executable) => ({ ...made, executable }));
      compiled.set(name, entry);
      entry.catch(() => compiled.delete(name));
    }
    return entry;
  };
  const compileForward = (): Promise<Compiled<ScorePlan>> => compile("forward", () => forwardPlan(spec, weights, adapter, capacity));
  const compileTrain = (loss: Loss["name"]): Promise<Compiled<TrainPlan>> =>
    compile(loss, () => trainPlan(spec, weights, adapter, state.gradients, loss, capacity));

  const compileStep = () =>
    compile("optimise", () => optimPlan(state.parameters, state.gradients, state.firstMoments, state.secondMoments));

  const writeRows = (plan: ScorePlan, batch: MicroBatch, inverseTemperature: number): void => {
    for (const name of ["tokens", "positions", "start", "outIndex", "target"] as const) backend.write(plan[name], batch[name]);
    backend.write(plan.inverseTemperature, new Float32Array(batch.outRows).fill(inverseTemperature));
  };

  const emptyOutput = (data: readonly Datum[]): { logprobs: Float32Array[]; entropies: Float32Array[] } => {
    const zeros = (): Float32Array[] => data.map(({ tokens, targetStart }) => new Float32Array(tokens.length - targetStart));
    return { logprobs: zeros(), entropies: zeros() };
  };

  const readRows = async (plan: ScorePlan, { origin, outRows }: MicroBatch, output: ForwardOutput): Promise<void> => {
    const logprobs = await backend.read(plan.logprob, outRows);
    const entropies = await backend.read(plan.entropy, outRows);
    for (const [r, { datum, offset }] of origin.entries()) {
      output.logprobs[datum]![offset] = logprobs[r]!;
      output.entropies[datum]![offset] = entropies[r]!;
    }
  };

  const clearGradients = (): void => backend.write(state.gradients.flat, new Float32Array(sizeOf(state.gradients.flat)));

  const checkSignal = (where: string, signal: AbortSignal | undefined, consequence: string): void => {
    if (signal?.aborted) throw new EngineError("aborted", `${where}: was aborted by its signal; ${consequence}`, { cause: signal.reason });
  };

  const forward = async (data: readonly Datum[], { temperature, signal }: ForwardOptions = {}): Promise<ForwardOutput> => {
    const inverse = inverseTemperatureOf("forward", temperature);
    const checked = data.map((datum, index) => checkDatum(datum, index, undefined, limits));
    const batches = packDatums(
      checked.map(({ rows }) => rows),
      microBatchTokens,
    );
    const output = emptyOutput(data);
    return await lock(async () => {
      for (const members of batches) {
        checkSignal("forward", signal, "nothing was changed");
        const plan = await compileForward();
        const batch = toMicroBatch(checked, members);
        writeRows(plan, batch, inverse);
        await plan.executable.run({ rows: batch.rows, outRows: batch.outRows });
        await readRows(plan, batch, output);
      }
      return output;
    });
  };

  const forwardBackward = async (
    data: readonly Datum[],
    loss: Loss,
    { temperature, signal }: ForwardOptions = {},
  ): Promise<UpdateOutput> => {
    const inverse = inverseTemperatureOf("forwardBackward", temperature);
    const lossParams = lossParamsOf(loss);
    const checked = data.map((datum, index) => checkDatum(datum, index, loss.name, limits));
    const batches = packDatums(
      checked.map(({ rows }) => rows),
      microBatchTokens,
    );
    const output = emptyOutput(data);
    return await lock(async () => {
      let lossSum = 0;
      let hasBegun = false;
      try {
        for (const members of batches) {
          checkSignal("forwardBackward", signal, hasBegun ? CLEARED : "nothing was changed");
          const plan = await compileTrain(loss.name);
          const batch = toMicroBatch(checked, members);
          writeRows(plan, batch, inverse);
          backend.write(plan.end, batch.end);
          backend.write(plan.old, batch.old);
          backend.write(plan.advantage, batch.advantage);
          backend.write(plan.lossParams, lossParams);
          hasBegun = true;
          await plan.executable.run({ rows: batch.rows, outRows: batch.outRows });
          await readRows(plan, batch, output);
          for (const value of await backend.read(plan.tokenLoss, batch.outRows)) lossSum += value;
        }
      } catch (error) {
        if (!hasBegun) throw error;
        clearGradients();
        const { code, message } = error instanceof EngineError ? error : { code: "device" as const, message: String(error) };
        throw new EngineError(code, message.includes(CLEARED) ? message : `${message}; ${CLEARED}`, {
          cause: error,
          clearsGradients: true,
        });
      }
      return { ...output, lossSum };
    });
  };

  const optimStep = async (adam: AdamParams): Promise<StepOutput> => {
    adamVarsOf(adam, 1);
    return await lock(async () => {
      const { executable, sumSquares } = await compileStep();
      await executable.run(adamVarsOf(adam, state.adamStep + 1));
      const gradNorm = Math.sqrt((await backend.read(sumSquares))[0]!);
      const applied = Number.isFinite(gradNorm);
      if (applied) state.adamStep += 1;
      return { gradNorm, applied };
    });
  };

  return {
    state,
    forward,
    forwardBackward,
    optimStep,
    prepare: (loss) =>
      lock(async () => {
        await compileForward();
        await compileTrain(loss);
        await compileStep();
      }),
    dispose: (): void => {
      for (const entry of compiled.values())
        entry.then(
          ({ executable }) => executable.dispose(),
          () => undefined,
        );
      compiled.clear();
    },
  };
};
