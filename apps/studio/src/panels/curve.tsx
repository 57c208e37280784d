// The learning curve: reward of every training step, smoothed, between the held-out measurements.
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type uPlot from "uplot";
import { recipe, record } from "../session.ts";
import { Plot } from "./plot.tsx";

const SMOOTHING = 0.6;

/** Exponential moving average, started at the first value. */
const smooth = (values: readonly number[]): number[] => {
  let average = values[0] ?? 0;
  return values.map((value) => {
    average = SMOOTHING * average + (1 - SMOOTHING) * value;
    return average;
  });
};

const LINES = [
  { label: "step reward", color: "--accent-faint", width: 1.5, points: true },
  { label: "smoothed", color: "--accent", width: 2.5 },
  { label: "held-out before", color: "--muted", width: 1.5, dash: [6, 5] },
  { label: "held-out after", color: "--good", width: 1.5, dash: [6, 5] },
];

export const Curve = (): JSX.Element => {
  const current = record.value;
  const steps = current?.steps ?? [];
  const total = recipe.value.steps;
  const data = useMemo((): uPlot.AlignedData => {
    const rewards = steps.map((step) => step.metrics.reward ?? 0);
    const smoothed = smooth(rewards);
    const x = Array.from({ length: Math.max(total, steps.length, 2) }, (_, i) => i + 1);
    const at = (values: readonly number[]) => x.map((_, i) => values[i] ?? null);
    const flat = (value: number | undefined) => x.map(() => value ?? null);
    return [x, at(rewards), at(smoothed), flat(current?.before?.sampled), flat(current?.after?.sampled)];
  }, [steps, total, current?.before, current?.after]);
  return (
    <section class="card curve" aria-label="Reward" data-testid="curve" data-steps={steps.length}>
      <h2>Reward</h2>
      <Plot label={`Mean reward of ${steps.length} training steps`} height={280} lines={LINES} data={data} range={[0, 1]} legend />
      {steps.length === 0 && <p class="empty">The curve grows here, one point a step.</p>}
    </section>
  );
};
