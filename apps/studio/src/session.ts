// The studio's state and what a visitor can do to it. Signals out, functions in; no markup.
// One run is kept in the browser's IndexedDB; a reload finds it and can go on with it.

import { calculatorDemo } from "@fulgurite/demo-calculator";
import { type Rollout, rewardOf, type Store, type StoredSpan, TraceError, toTransitions } from "@fulgurite/trace";
import { computed, type ReadonlySignal, type Signal, signal } from "@preact/signals";
import {
  asOnlyTrainer,
  describeMemory,
  type ExperimentRecord,
  experiment,
  exportModel,
  type LoadedPolicy,
  loadPolicy,
  openStore,
  type Phase,
  type Recipe,
  readExperiment,
  type WeightFormat,
} from "fulgurite";

export const demo = calculatorDemo;

export type State = "loading" | "idle" | "running" | "stopping" | "paused" | "done" | "failed";

export interface RolloutRow {
  readonly id: string;
  readonly question: string;
  readonly mode: "train" | "val";
  readonly status: Rollout["status"];
  readonly step: number | undefined;
  readonly reward: number | undefined;
}

export interface Progress {
  readonly phase: Phase;
  readonly done: number;
  readonly total: number;
  /** Mean reward of the rollouts so far in this phase. */
  readonly reward: number;
}

export type DeviceChoice = "auto" | "webgpu" | "wasm";

export interface Settings {
  readonly recipe: string;
  readonly seed: number;
  readonly device: DeviceChoice;
}

const ROWS_SHOWN = 200;

export const state: Signal<State> = signal<State>("loading");
export const problem: Signal<string | undefined> = signal<string | undefined>(undefined);
export const settings: Signal<Settings> = signal<Settings>({ recipe: "default", seed: 1, device: "auto" });
/** What the policy holds, by item; told before its weights are loaded. */
export const memory: Signal<string | undefined> = signal<string | undefined>(undefined);
/** What its base weights are kept in. */
export const weightFormat: Signal<WeightFormat | undefined> = signal<WeightFormat | undefined>(undefined);
export const device: Signal<string | undefined> = signal<string | undefined>(undefined);
export const record: Signal<ExperimentRecord | undefined> = signal<ExperimentRecord | undefined>(undefined);
export const progress: Signal<Progress | undefined> = signal<Progress | undefined>(undefined);
export const rows: Signal<readonly RolloutRow[]> = signal<readonly RolloutRow[]>([]);
export const isReader: Signal<boolean> = signal(false);

export const recipe: ReadonlySignal<Recipe> = computed(() => record.value?.recipe ?? (demo.recipes[settings.value.recipe] as Recipe));

let store: Store | undefined;
let policy: LoadedPolicy | undefined;
let loadedDevice: DeviceChoice | undefined;
let running: { abort: AbortController; ended: Promise<void> } | undefined;

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const fail = (error: unknown): void => {
  problem.value = messageOf(error);
  state.value = "failed";
};

const RUN_KEY = "fulgurite/studio/run";

/** A run is a fresh set of names inside the one store: its id is the only thing kept outside IndexedDB. */
const currentRun = (): string => {
  const known = localStorage.getItem(RUN_KEY);
  if (known) return known;
  const minted = `run-${Date.now().toString(36)}`;
  localStorage.setItem(RUN_KEY, minted);
  return minted;
};

const toRow = (rollout: Rollout, reward: number | undefined): RolloutRow => ({
  id: rollout.id,
  question: (rollout.input as { question?: string }).question ?? JSON.stringify(rollout.input),
  mode: rollout.mode,
  status: rollout.status,
  step: typeof rollout.metadata.step === "number" ? rollout.metadata.step : undefined,
  reward,
});

/** Opens the store, shows what an earlier visit left, then loads the policy. */
export const open = async (): Promise<void> => {
  try {
    store = await openStore("studio");
    record.value = await readExperiment(store, currentRun());
    if (record.value) settings.value = { ...settings.value, seed: record.value.seed };
    await showStoredRollouts(store);
    await ensurePolicy();
    state.value = record.value === undefined ? "idle" : record.value.after ? "done" : "paused";
  } catch (error) {
    fail(error);
  }
};

const showStoredRollouts = async (from: Store): Promise<void> => {
  const found: RolloutRow[] = [];
  for await (const rollout of from.rollouts({ metadata: { run: currentRun() }, order: "newest", limit: ROWS_SHOWN })) {
    found.push(toRow(rollout, await rewardOfRollout(from, rollout.id)));
  }
  rows.value = found;
};

const ensurePolicy = async (): Promise<LoadedPolicy> => {
  const wanted = settings.value.device;
  if (policy && loadedDevice === wanted) return policy;
  await policy?.dispose();
  policy = undefined;
  device.value = undefined;
  policy = await loadPolicy("spark", {
    device: wanted,
    seed: settings.value.seed,
    onMemory: (budget) => {
      memory.value = describeMemory(budget);
      weightFormat.value = budget.weightFormat;
    },
  });
  loadedDevice = wanted;
  device.value = policy.device.description;
  return policy;
};

const add = (row: RolloutRow): void => {
  rows.value = [row, ...rows.value].slice(0, ROWS_SHOWN);
};

/** Starts a run, or goes on with the paused one. */
export const start = (): void => {
  if (running || !store) return;
  const abort = new AbortController();
  running = { abort, ended: run(store, abort.signal, recipe.value) };
};

const run = async (from: Store, signal: AbortSignal, plan: Recipe): Promise<void> => {
  problem.value = undefined;
  state.value = "running";
  try {
    await asOnlyTrainer("studio", async () => {
      isReader.value = false;
      const loaded = await ensurePolicy();
      for await (const update of experiment({
        policy: loaded,
        store: from,
        demo,
        recipe: plan,
        seed: settings.value.seed,
        runId: currentRun(),
        signal,
        onRollout: ({ phase, done, total, rollout, reward, meanReward }) => {
          progress.value = { phase, done, total, reward: meanReward };
          add(toRow(rollout, reward));
        },
      })) {
        record.value = update;
      }
      state.value = "done";
    });
  } catch (error) {
    isReader.value = error instanceof TraceError && error.code === "locked";
    if (isReader.value) state.value = "paused";
    else if (signal.aborted) state.value = record.value || rows.value.length > 0 ? "paused" : "idle";
    else fail(error);
  } finally {
    progress.value = undefined;
    running = undefined;
  }
};

/** Leaves the run where it is; start() goes on. */
export const pause = async (): Promise<void> => {
  if (!running) return;
  state.value = "stopping";
  running.abort.abort();
  await running.ended;
};

/** Ends training with the steps done so far and measures the result. */
export const stop = async (): Promise<void> => {
  await pause();
  if (!store || !record.value?.before) return;
  const abort = new AbortController();
  running = { abort, ended: run(store, abort.signal, { ...recipe.value, steps: record.value.steps.length }) };
};

/** A new run; the old one's traces stay in the store. */
export const startOver = async (): Promise<void> => {
  await pause();
  localStorage.removeItem(RUN_KEY);
  currentRun();
  record.value = undefined;
  rows.value = [];
  problem.value = undefined;
  await policy?.dispose();
  policy = undefined;
  state.value = "loading";
  try {
    await ensurePolicy();
    state.value = "idle";
  } catch (error) {
    fail(error);
  }
};

export interface CallView {
  readonly turn: number;
  readonly prompt: readonly string[];
  readonly response: readonly { readonly id: number; readonly text: string; readonly logprob: number }[];
  readonly finishReason: string;
  readonly policyVersion: number;
}

export interface RolloutView {
  readonly rollout: Rollout;
  readonly calls: readonly CallView[];
  readonly reward: number | undefined;
  readonly error: string | undefined;
}

const spansOf = async (from: Store, rolloutId: string): Promise<StoredSpan[]> => {
  const spans: StoredSpan[] = [];
  for await (const span of from.spans({ rolloutId })) spans.push(span);
  return spans;
};

const rewardOfRollout = async (from: Store, rolloutId: string): Promise<number | undefined> => rewardOf(await spansOf(from, rolloutId));

/** One rollout with the tokens of its calls. Undefined when the store does not have it. */
export const readRollout = async (id: string): Promise<RolloutView | undefined> => {
  if (!store || !policy) return undefined;
  const { format } = policy;
  for await (const rollout of store.rollouts({ ids: [id] })) {
    const attempts = await store.attempts(id);
    const last = attempts.at(-1);
    const spans = (await spansOf(store, id)).filter((span) => span.attemptId === last?.id);
    return {
      rollout,
      reward: rewardOf(spans),
      error: last?.error && `${last.error.name}: ${last.error.message}`,
      calls: toTransitions(spans).map((call) => ({
        turn: call.turn,
        finishReason: call.finishReason,
        policyVersion: call.policyVersion,
        prompt: [...call.promptTokens].map((token) => format.decode([token])),
        response: [...call.responseTokens].map((token, i) => ({
          id: token,
          text: format.decode([token]),
          logprob: call.samplerLogprobs[i] as number,
        })),
      })),
    };
  }
  return undefined;
};

/** Files as one zip, handed to the browser as a download. */
const download = async (name: string, files: Readonly<Record<string, Uint8Array>>): Promise<void> => {
  const { zipSync } = await import("fflate");
  const bytes = zipSync({ ...files }, { level: 6 });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes as Uint8Array<ArrayBuffer>], { type: "application/zip" }));
  link.download = `fulgurite-${demo.name}-${name}.zip`;
  link.click();
  URL.revokeObjectURL(link.href);
};

/** The latest published adapter as a PEFT directory. */
export const downloadAdapter = async (): Promise<void> => {
  const adapter = await store?.resource(currentRun());
  if (adapter) await download(`adapter-v${adapter.version}`, adapter.files);
};

/** The model with that adapter merged, as the folder that transformers.js loads. */
export const downloadModel = async (): Promise<void> => {
  const adapter = await store?.resource(currentRun());
  if (!adapter) return;
  const files = await exportModel("spark", { format: "onnx", adapter: adapter.files });
  const whole = await Promise.all(files.map(async ({ name, parts }) => [name, new Uint8Array(await new Blob([...parts()]).arrayBuffer())]));
  await download(`model-v${adapter.version}`, Object.fromEntries(whole));
};
