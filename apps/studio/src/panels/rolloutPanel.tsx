// One rollout: its model calls, token by token. Colour says how likely the policy found the token it sampled.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { type CallView, type RolloutView, readRollout, state } from "../session.ts";
import { selected } from "./selection.ts";

/** exp(log-prob) in five steps; 4 is certain. */
const levelOf = (logprob: number): number => Math.min(4, Math.floor(5 * Math.exp(logprob)));

const visible = (text: string): string => text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥");

const Call = ({ call }: { call: CallView }): JSX.Element => (
  <article class="call">
    <h3>
      Call {call.turn + 1}
      <span class="hint">
        {call.prompt.length} prompt and {call.response.length} response tokens, {call.finishReason}, policy version {call.policyVersion}
      </span>
    </h3>
    <p class="tokens">
      {call.prompt.map((text, i) => (
        <span key={i} class="given">
          {visible(text)}
        </span>
      ))}
      {call.response.map(({ id, text, logprob }, i) => (
        <span
          key={i}
          class={`token p${levelOf(logprob)}`}
          title={`token ${id} ${JSON.stringify(text)}\nlog-prob ${logprob.toFixed(3)} (p = ${Math.exp(logprob).toFixed(3)})`}
        >
          {visible(text)}
        </span>
      ))}
    </p>
  </article>
);

export const RolloutPanel = (): JSX.Element => {
  const id = selected.value;
  const isLoaded = state.value !== "loading";
  const [shown, show] = useState<{ id: string; view: RolloutView | undefined; error?: string }>();
  useEffect(() => {
    if (!id || !isLoaded) return;
    let current = true;
    readRollout(id).then(
      (view) => current && show({ id, view }),
      (error: unknown) => current && show({ id, view: undefined, error: String(error) }),
    );
    return () => {
      current = false;
    };
  }, [id, isLoaded]);

  const view = shown?.id === id ? shown?.view : undefined;
  return (
    <section class="card detail" aria-label="Rollout" data-testid="rollout">
      <h2>Calls and tokens</h2>
      {!id && <p class="empty">Choose a rollout to see each model call: the exact tokens in, the exact tokens out, and their log-probs.</p>}
      {id && shown?.id === id && !view && <p class="empty">{shown.error ?? `This browser's store has no rollout ${id}.`}</p>}
      {view && (
        <>
          <p class="hint">
            Reward <b>{view.reward === undefined ? "–" : view.reward.toFixed(2)}</b>, {view.rollout.status}
            {view.error && <span class="error"> {view.error}</span>}
          </p>
          {view.calls.length === 0 && <p class="empty">No model call was recorded.</p>}
          {view.calls.map((call) => (
            <Call key={call.turn} call={call} />
          ))}
          <p class="legend" aria-hidden="true">
            <span class="given">prompt</span>
            <span class="token p0">unlikely</span>
            <span class="token p1" />
            <span class="token p2" />
            <span class="token p3" />
            <span class="token p4">certain</span>
          </p>
        </>
      )}
    </section>
  );
};
