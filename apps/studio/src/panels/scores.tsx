// Held-out reward before and after: the figures that count.
import type { JSX } from "preact";
import { recipe, record } from "../session.ts";

const percent = (value: number | undefined): string => (value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

const Tile = ({
  name,
  hint,
  before,
  after,
}: {
  name: string;
  hint: string;
  before: number | undefined;
  after: number | undefined;
}): JSX.Element => {
  const gain = before !== undefined && after !== undefined ? after - before : undefined;
  return (
    <div class="tile" data-testid={`score-${name.toLowerCase()}`}>
      <h3>{name}</h3>
      <p class="figures">
        <span>{percent(before)}</span>
        <span aria-hidden="true">→</span>
        <b>{percent(after)}</b>
      </p>
      <p class="hint">
        {gain !== undefined && (
          <em class={gain >= 0 ? "up" : "down"}>{`${gain >= 0 ? "+" : "−"}${Math.abs(100 * gain).toFixed(1)} points. `}</em>
        )}
        {hint}
      </p>
    </div>
  );
};

export const Scores = (): JSX.Element => {
  const { before, after, steps } = record.value ?? { steps: [] };
  const last = steps.at(-1)?.metrics.reward;
  const first = steps[0]?.metrics.reward;
  const tasks = recipe.value.heldOutTasks;
  return (
    <section class="scores" aria-label="Scores">
      <Tile name="Sampled" hint={`${tasks} held-out tasks, temperature 1`} before={before?.sampled} after={after?.sampled} />
      <Tile name="Greedy" hint={`the same ${tasks} tasks, temperature 0`} before={before?.greedy} after={after?.greedy} />
      <Tile
        name="Training"
        hint="mean reward of the first and the latest step"
        before={first}
        after={steps.length > 1 ? last : undefined}
      />
    </section>
  );
};
