// uPlot as a component: it follows its container's width and the theme, and is fed new data without being rebuilt.
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { scheme } from "../theme.ts";

export interface Line {
  readonly label: string;
  /** A CSS custom property, such as --accent. */
  readonly color: string;
  readonly width?: number;
  readonly dash?: number[];
  readonly points?: boolean;
}

export interface PlotProps {
  readonly label: string;
  readonly height: number;
  readonly lines: readonly Line[];
  /** x, then one array a line; null leaves a gap. */
  readonly data: uPlot.AlignedData;
  readonly range?: readonly [number, number];
  readonly legend?: boolean;
}

const css = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A custom property's colour as the canvas understands it (light-dark() is resolved by a probe element). */
const colorOf = (name: string): string => {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color || css(name);
};

/** From 0 to a little above the highest value, so that curves of non-negative quantities can be compared at a glance. */
const roomy: uPlot.Range.Function = (_, low, high) => [Math.min(0, low ?? 0), (high ?? 0) > 0 ? high * 1.15 : 1];

export const Plot = ({ label, height, lines, data, range, legend = false }: PlotProps): JSX.Element => {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const chosen = scheme.value;

  useEffect(() => {
    const element = holder.current as HTMLDivElement;
    const axis = {
      stroke: colorOf("--muted"),
      grid: { stroke: colorOf("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui",
    };
    const made = new uPlot(
      {
        width: Math.max(120, element.clientWidth),
        height,
        legend: { show: legend, live: false },
        cursor: { y: false },
        scales: { x: { time: false }, y: { range: range ? [range[0], range[1]] : roomy } },
        axes: [
          { ...axis, size: 28, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500] },
          { ...axis, size: 46, space: 36 },
        ],
        series: [
          { label: "step" },
          ...lines.map(({ label: name, color, width = 2, dash, points }) => ({
            label: name,
            stroke: colorOf(color),
            width,
            spanGaps: true,
            ...(dash && { dash }),
            points: { show: points ?? false, size: 5 },
            value: (_: uPlot, value: number | null) => (value === null ? "–" : value.toFixed(3)),
          })),
        ],
      },
      data,
      element,
    );
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: Math.max(120, element.clientWidth), height }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = undefined;
    };
  }, [chosen, height, legend, lines.map((line) => line.label).join()]);

  useEffect(() => plot.current?.setData(data), [data]);

  return <div class="plot" ref={holder} role="img" aria-label={label} />;
};
