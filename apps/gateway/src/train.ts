// `fulgurite train <demo>`: an experiment without a browser, in a run folder that survives a kill.

import { join } from "node:path";
import { openFileStore } from "@fulgurite/trace/node";
import {
  type Demo,
  describeMemory,
  type ExperimentRecord,
  experiment,
  type LoadedPolicy,
  loadPolicy,
  type Phase,
  PRECISIONS,
  type Precision,
  type Recipe,
  type RolloutProgress,
  type Score,
  WEIGHT_FORMATS,
  type WeightFormat,
} from "fulgurite";
import { readOptions } from "./commandLine.ts";
import { loadDemo } from "./demos.ts";
import { createProgress, type Progress } from "./progress.ts";
import { findRunFolder, openRunFolder, writeWhole } from "./runFolder.ts";
import { UsageError } from "./usageError.ts";

const HELP = `usage: fulgurite train <demo> [options]

Trains a demo agent headless: measures it on held-out tasks, trains, measures again, then does the same
with the learning rate at 0 as a control. Interrupted or killed, the same command goes on where it was.

  --device NAME         auto (default), webgpu, wasm or reference
  --preset NAME         sizes of the run: default, tiny, smoke
  --seed N              0 … 4294967295 (default 1)
  --steps N             training steps (default: the preset's)
  --learning-rate X     (default: the preset's)
  --threads N           WASM threads (default: what the machine has, at most 4)
  --memory MIB          what the policy may take; slower settings are chosen where it must (default: what the machine has)
  --weights FORMAT      what the base's weights are kept in: f32, bf16, f16, q8 or q4 (default: exact, in the bits that they have)
  --precision NAME      f32 (default), or f16: on WebGPU, products may round to 16 bits where that is faster
  --run FOLDER          run folder (default: runs/<demo>-<device>-<preset>-seed<N>, a new one when that is finished)
  --no-control          leave the control run out
  --json                end with one line of JSON on stdout
`;

interface Arguments {
  readonly demo: string;
  readonly device: "auto" | "webgpu" | "wasm" | "reference";
  readonly preset: string;
  readonly seed: number;
  readonly steps: number | undefined;
  readonly learningRate: number | undefined;
  readonly threads: number | undefined;
  readonly memory: number | undefined;
  readonly weights: WeightFormat | undefined;
  readonly precision: Precision;
  readonly run: string | undefined;
  readonly control: boolean;
  readonly json: boolean;
}

const DEVICES = ["auto", "webgpu", "wasm", "reference"] as const;

const numberOf = (name: string, text: string | undefined, isGood: (value: number) => boolean, rule: string): number | undefined => {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (text.trim() === "" || !isGood(value)) throw new UsageError(`train: --${name} is ${rule}, got ${JSON.stringify(text)}`);
  return value;
};

const isWhole = (low: number, high: number) => (value: number) => Number.isInteger(value) && value >= low && value <= high;

const readArguments = (args: string[]): Arguments | "help" => {
  const options = {
    device: { type: "string", default: "auto" },
    preset: { type: "string", default: "default" },
    seed: { type: "string", default: "1" },
    steps: { type: "string" },
    "learning-rate": { type: "string" },
    threads: { type: "string" },
    memory: { type: "string" },
    weights: { type: "string" },
    precision: { type: "string", default: "f32" },
    run: { type: "string" },
    "no-control": { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    help: { type: "boolean", short: "h", default: false },
  } as const;
  const { values, positionals } = readOptions("train", HELP, args, options);
  if (values.help) return "help";
  const [demo, ...rest] = positionals;
  if (demo === undefined || rest.length > 0) throw new UsageError(`train: takes one demo, got ${positionals.length}\n\n${HELP}`);
  const device = DEVICES.find((known) => known === values.device);
  if (!device) throw new UsageError(`train: --device is one of ${DEVICES.join(", ")}, got ${JSON.stringify(values.device)}`);
  const weights = WEIGHT_FORMATS.find((known) => known === values.weights);
  if (values.weights !== undefined && !weights)
    throw new UsageError(`train: --weights is one of ${WEIGHT_FORMATS.join(", ")}, got ${JSON.stringify(values.weights)}`);
  const precision = PRECISIONS.find((known) => known === values.precision);
  if (!precision) throw new UsageError(`train: --precision is one of ${PRECISIONS.join(", ")}, got ${JSON.stringify(values.precision)}`);
  return {
    demo,
    device,
    weights,
    precision,
    preset: values.preset,
    seed: numberOf("seed", values.seed, isWhole(0, 2 ** 32 - 1), "a whole number from 0 to 4294967295") as number,
    steps: numberOf("steps", values.steps, isWhole(1, 1e6), "a whole number from 1"),
    learningRate: numberOf("learning-rate", values["learning-rate"], (value) => Number.isFinite(value) && value >= 0, "a number from 0"),
    threads: numberOf("threads", values.threads, isWhole(1, 64), "a whole number from 1 to 64"),
    memory: numberOf("memory", values.memory, (value) => value > 0 && Number.isFinite(value), "a number of MiB"),
    run: values.run,
    control: !values["no-control"],
    json: values.json,
  };
};

const recipeOf = (demo: Demo<never>, { preset, steps, learningRate }: Arguments): Recipe => {
  const recipe = Object.hasOwn(demo.recipes, preset) ? demo.recipes[preset] : undefined;
  if (!recipe)
    throw new UsageError(
      `train: --preset of ${demo.name} is one of ${Object.keys(demo.recipes).join(", ")}, got ${JSON.stringify(preset)}`,
    );
  return { ...recipe, ...(steps !== undefined && { steps }), ...(learningRate !== undefined && { learningRate }) };
};

const show = ({ sampled, greedy }: Score): string => `sampled ${sampled.toFixed(3)}, greedy ${greedy.toFixed(3)}`;

const LABELS: Readonly<Record<Phase, string>> = { before: "measure", training: "rollouts", after: "measure" };

export const train = async (args: string[]): Promise<number> => {
  const given = readArguments(args);
  if (given === "help") {
    process.stdout.write(HELP);
    return 0;
  }
  const started = performance.now();
  const demo = await loadDemo(given.demo);
  const recipe = recipeOf(demo, given);
  const folder = given.run ?? findRunFolder("runs", `${demo.name}-${given.device}-${given.preset}-seed${given.seed}`);
  const progress = createProgress(process.stderr);

  const abort = new AbortController();
  const interrupt = (): void => {
    if (abort.signal.aborted) process.exit(130);
    abort.abort(new Error("interrupted"));
    progress.line("stopping … (the same command goes on from here; Ctrl+C again to quit at once)");
  };
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt);

  const { isContinued } = await openRunFolder(folder, {
    demo: demo.name,
    device: given.device,
    preset: given.preset,
    seed: given.seed,
    steps: recipe.steps,
    learningRate: recipe.learningRate,
    control: given.control,
    ...(given.weights && { weights: given.weights }),
    ...(given.precision !== "f32" && { precision: given.precision }),
  });
  progress.line(`${isContinued ? "continuing" : "run folder"} ${folder}`);

  const store = await openFileStore(join(folder, "store"), { onReport: (report) => progress.line(`store: ${JSON.stringify(report)}`) });
  const open = (): Promise<LoadedPolicy> =>
    loadPolicy("spark", {
      device: given.device,
      seed: given.seed,
      signal: abort.signal,
      precision: given.precision,
      ...(given.threads !== undefined && { threads: given.threads }),
      ...(given.weights !== undefined && { weightFormat: given.weights }),
      ...(given.memory !== undefined && { memoryBytes: given.memory * 2 ** 20 }),
      onMemory: (memory) => progress.line(`memory: at most ${describeMemory(memory)}`),
      onReport: (report) => progress.line(report),
    });
  let policy: LoadedPolicy | undefined;
  try {
    policy = await open();
    const { kind, description } = policy.device;
    progress.line(
      `${demo.name} on ${description}, seed ${given.seed}, ${recipe.steps} steps of ${recipe.tasksPerStep} × ${recipe.groupSize} rollouts`,
    );
    const common = { store, demo, seed: given.seed, signal: abort.signal };

    const trained = await follow(
      experiment({ ...common, policy, recipe, runId: "main", onRollout: onRollout(progress) }),
      async (record) => {
        await writeWhole(join(folder, "metrics.jsonl"), record.steps.map((step) => `${JSON.stringify(step)}\n`).join(""));
      },
      progress,
    );
    for (const [name, bytes] of Object.entries(await policy.trainer.exportAdapter()))
      await writeWhole(join(folder, "adapter", name), bytes);

    let control: Score | undefined;
    if (given.control) {
      await policy.dispose();
      policy = await open();
      progress.line("control: the same run with the learning rate at 0");
      const flat = await follow(
        experiment({
          ...common,
          policy,
          recipe: { ...recipe, learningRate: 0 },
          runId: "control",
          measureBefore: false,
          onRollout: onRollout(progress),
        }),
        async () => {},
        progress,
      );
      control = flat.after;
    }

    const result = {
      demo: demo.name,
      device: kind,
      seed: given.seed,
      steps: trained.steps.length,
      before: trained.before,
      after: trained.after,
      ...(control && { control }),
      seconds: Math.round((performance.now() - started) / 100) / 10,
    };
    await writeWhole(join(folder, "result.json"), `${JSON.stringify(result)}\n`);
    progress.line(`done in ${result.seconds} s; adapter in ${join(folder, "adapter")}`);
    if (given.json) process.stdout.write(`${JSON.stringify(result)}\n`);
    return 0;
  } catch (error) {
    if (!abort.signal.aborted) throw error;
    progress.line(`interrupted; the same command goes on from ${folder}`);
    return 130;
  } finally {
    await policy?.dispose();
    await store.close();
    process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
  }
};

const onRollout =
  (progress: Progress) =>
  ({ phase, done, total, meanReward }: RolloutProgress): void =>
    progress.update(LABELS[phase], done, total, `reward ${meanReward.toFixed(3)}`);

/** Runs an experiment to its end, telling what is new in each record. */
const follow = async (
  records: AsyncIterable<ExperimentRecord>,
  keep: (record: ExperimentRecord) => Promise<void>,
  progress: Progress,
): Promise<ExperimentRecord> => {
  let last: ExperimentRecord | undefined;
  for await (const record of records) {
    await keep(record);
    if (record.before && !last?.before) progress.line(`before: ${show(record.before)}`);
    for (const { step, metrics } of record.steps.slice(last?.steps.length ?? 0)) {
      const { reward = 0, entropy = 0, gradNorm = 0, zeroVarianceFraction = 0, samplerGap = 0 } = metrics;
      progress.line(
        `step ${String(step + 1).padStart(3)}: reward ${reward.toFixed(3)}  entropy ${entropy.toFixed(3)}  grad ${gradNorm.toFixed(3)}  ` +
          `zero-variance ${zeroVarianceFraction.toFixed(2)}  gap ${samplerGap.toExponential(1)}`,
      );
    }
    if (record.after && !last?.after) progress.line(`after:  ${show(record.after)}`);
    last = record;
  }
  if (!last) throw new Error("train: the experiment ended without a record");
  return last;
};
