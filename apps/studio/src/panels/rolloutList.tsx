// The latest rollouts, newest first. Selecting one puts its id into the address, so that it can be linked to.
import type { JSX } from "preact";
import { type RolloutRow, rows } from "../session.ts";
import { selected } from "./selection.ts";

const rewardText = (reward: number | undefined): string => (reward === undefined || Number.isNaN(reward) ? "–" : reward.toFixed(2));

const Row = ({ row }: { row: RolloutRow }): JSX.Element => {
  const isOpen = selected.value === row.id;
  const good = (row.reward ?? 0) > 0;
  return (
    <tr class={isOpen ? "open" : ""}>
      <td>
        <a href={`#rollout=${encodeURIComponent(row.id)}`} aria-current={isOpen ? "true" : undefined}>
          {row.question}
        </a>
      </td>
      <td>{row.mode === "val" ? "held-out" : `step ${(row.step ?? 0) + 1}`}</td>
      <td>{row.status === "succeeded" ? "" : row.status}</td>
      <td class={good ? "num good" : "num"}>
        <span aria-hidden="true">{good ? "●" : "○"}</span> {rewardText(row.reward)}
      </td>
    </tr>
  );
};

export const RolloutList = (): JSX.Element => (
  <section class="card list" aria-label="Rollouts">
    <h2>Rollouts</h2>
    {rows.value.length === 0 ? (
      <p class="empty">Every run of the agent on a task is listed here, with its reward.</p>
    ) : (
      <div class="scroll" data-testid="rollouts">
        <table>
          <thead>
            <tr>
              <th>Task</th>
              <th>When</th>
              <th>Status</th>
              <th class="num">Reward</th>
            </tr>
          </thead>
          <tbody>
            {rows.value.map((row) => (
              <Row key={row.id} row={row} />
            ))}
          </tbody>
        </table>
      </div>
    )}
  </section>
);
