// What is trained, on what, and the buttons.
import type { JSX } from "preact";
import {
  type DeviceChoice,
  demo,
  downloadAdapter,
  downloadModel,
  pause,
  problem,
  progress,
  recipe,
  record,
  settings,
  start,
  startOver,
  state,
  stop,
} from "../session.ts";

const PHASES = { before: "Measuring before training", training: "Training", after: "Measuring after training" } as const;

const stepLine = (): string => {
  const done = record.value?.steps.length ?? 0;
  return `step ${Math.min(done + 1, recipe.value.steps)} of ${recipe.value.steps}`;
};

const overall = (): number => {
  const current = record.value;
  const { steps, heldOutTasks } = recipe.value;
  const live = progress.value;
  const perMeasure = 2 * heldOutTasks;
  const perStep = recipe.value.tasksPerStep * recipe.value.groupSize;
  const total = 2 * perMeasure + steps * perStep;
  const settled = (current?.before ? perMeasure : 0) + (current?.steps.length ?? 0) * perStep + (current?.after ? perMeasure : 0);
  return Math.min(1, (settled + (live ? Math.min(live.done, live.total) : 0)) / total);
};

export const RunPanel = (): JSX.Element => {
  const now = state.value;
  const fresh = record.value === undefined;
  const locked = now === "running" || now === "stopping" || !fresh;
  return (
    <section class="card run" id="top" aria-label="Run">
      <div class="run-text">
        <h1>{demo.title}</h1>
        <p>{demo.description}</p>
        <p>
          The built-in policy starts with wrong habits, put in on purpose. Training rolls the unchanged agent out on groups of tasks,
          compares the rewards within a group, and moves a small LoRA adapter towards what worked.
        </p>
      </div>
      <div class="run-controls">
        <div class="fields">
          <label>
            Device
            <select
              value={settings.value.device}
              disabled={now === "running" || now === "stopping"}
              onChange={(event) => {
                settings.value = { ...settings.value, device: event.currentTarget.value as DeviceChoice };
              }}
            >
              <option value="auto">automatic</option>
              <option value="webgpu">WebGPU</option>
              <option value="wasm">WASM</option>
            </select>
          </label>
          <label>
            Size
            <select
              value={settings.value.recipe}
              disabled={locked}
              onChange={(event) => {
                settings.value = { ...settings.value, recipe: event.currentTarget.value };
              }}
            >
              {Object.entries(demo.recipes).map(([name, sizes]) => (
                <option key={name} value={name}>
                  {name}, {sizes.steps} steps
                </option>
              ))}
            </select>
          </label>
          <label>
            Seed
            <input
              type="number"
              min="0"
              max="4294967295"
              value={settings.value.seed}
              disabled={locked}
              onChange={(event) => {
                const seed = event.currentTarget.valueAsNumber;
                if (Number.isInteger(seed) && seed >= 0) settings.value = { ...settings.value, seed };
              }}
            />
          </label>
        </div>
        <div class="buttons">
          {now === "running" || now === "stopping" ? (
            <>
              <button type="button" class="primary" onClick={() => void pause()} disabled={now === "stopping"}>
                {now === "stopping" ? "Pausing…" : "Pause"}
              </button>
              <button
                type="button"
                onClick={() => void stop()}
                disabled={now === "stopping" || !record.value?.before || progress.value?.phase === "after"}
                title="End training here and measure the result"
              >
                Stop
              </button>
            </>
          ) : (
            <>
              {now !== "done" && (
                <button type="button" class="primary" onClick={start} disabled={now === "loading"}>
                  {now === "loading" ? "Loading…" : fresh ? "Start training" : "Continue"}
                </button>
              )}
              {(!fresh || now === "failed") && (
                <button type="button" class={now === "done" ? "primary" : ""} onClick={() => void startOver()}>
                  New run
                </button>
              )}
            </>
          )}
          <button
            type="button"
            onClick={() => void downloadAdapter()}
            disabled={!record.value?.steps.length || now === "running"}
            title="The trained LoRA adapter as a PEFT folder"
          >
            Download adapter
          </button>
          <button
            type="button"
            onClick={() => void downloadModel()}
            disabled={!record.value?.steps.length || now === "running"}
            title="The trained model, adapter merged, as ONNX: transformers.js loads the folder"
          >
            Download model
          </button>
        </div>
      </div>
      <div
        class="bar"
        role="progressbar"
        aria-label="Run"
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(100 * overall())}
      >
        <i style={{ width: `${100 * overall()}%` }} />
      </div>
      <p class="status" data-testid="status" aria-live="polite">
        {now === "failed" ? (
          <span class="error">{problem.value}</span>
        ) : progress.value ? (
          <>
            {PHASES[progress.value.phase]}
            {progress.value.phase === "training" && `, ${stepLine()}`}: {progress.value.done} of {progress.value.total} rollouts, mean
            reward {progress.value.reward.toFixed(2)}
          </>
        ) : now === "running" ? (
          `Learning from the rollouts, ${stepLine()}`
        ) : now === "paused" ? (
          `Paused after ${record.value?.steps.length ?? 0} steps. Everything is kept in this browser.`
        ) : now === "done" ? (
          `Finished: ${record.value?.steps.length ?? 0} steps.`
        ) : now === "idle" ? (
          "Ready. Nothing leaves this tab: model, agent and training run here."
        ) : (
          "Loading the policy…"
        )}
      </p>
    </section>
  );
};
