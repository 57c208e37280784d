// What an RL engineer looks at beside the reward.
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type uPlot from "uplot";
import { record } from "../session.ts";
import { Plot } from "./plot.tsx";

const METRICS = [
  { key: "entropy", name: "Entropy", hint: "nats a token" },
  { key: "gradNorm", name: "Gradient norm", hint: "before clipping" },
  { key: "zeroVarianceFraction", name: "Zero-variance groups", hint: "groups that teach nothing" },
  { key: "samplerGap", name: "Sampler gap", hint: "mean |trainer − sampler| log-prob" },
] as const;

const Small = ({ metric }: { metric: (typeof METRICS)[number] }): JSX.Element => {
  const steps = record.value?.steps ?? [];
  const data = useMemo((): uPlot.AlignedData => {
    const x = steps.length > 1 ? steps.map((_, i) => i + 1) : [1, 2];
    return [x, x.map((_, i) => steps[i]?.metrics[metric.key] ?? null)];
  }, [steps, metric.key]);
  const last = steps.at(-1)?.metrics[metric.key];
  return (
    <div class="card small">
      <h3>
        {metric.name} <b>{last === undefined ? "–" : last.toPrecision(3)}</b>
      </h3>
      <Plot label={metric.name} height={110} lines={[{ label: metric.name, color: "--accent" }]} data={data} />
      <p class="hint">{metric.hint}</p>
    </div>
  );
};

export const Metrics = (): JSX.Element => (
  <section class="metrics" aria-label="Metrics">
    {METRICS.map((metric) => (
      <Small key={metric.key} metric={metric} />
    ))}
  </section>
);
