// What may be changed or dropped before anything keeps it. Every store does this at its door, and an HTTP client before it
// sends. States and the files of resources are bytes, and nobody's to look into.

import { TraceError } from "./errors.ts";
import type { CopyArray } from "./rows.ts";
import { type CheckedTask, checkedError, checkedItem, checkedRedaction, checkedSpan, listIn, text } from "./values.ts";
import type { AttemptError, AttemptRef, Outcome, Rollout, Span, StoreItem } from "./vocabulary.ts";

/** What a task may be changed in: its input and metadata. */
export type RedactableTask = Pick<Rollout, "id" | "mode" | "input" | "metadata">;

/** Each sees what a store would keep and gives the same or a changed one, of the same ids. Pure and quick; what it throws fails the call. */
export interface Redact {
  /** null drops the span. */
  readonly span?: (span: Span) => Span | null;
  /** The agent is given what this gives. */
  readonly task?: (task: RedactableTask) => RedactableTask;
  /** null: the attempt ends without an error. */
  readonly error?: (error: AttemptError, attempt: AttemptRef) => AttemptError | null;
}

const guardIds = (what: string, before: readonly string[], after: readonly string[]): void => {
  if (before.every((id, index) => id === after[index])) return;
  throw new TraceError(
    "bad-input",
    `redact: ${what} ${before.at(-1)}: the ids stay as they are, got ${after.join(", ")}; change what is in it${what === "span" ? ", or give null" : ""}`,
  );
};

/** Checks before, so that `redact` sees what a store would keep, and after. @throws TraceError "bad-input". */
const redactedSpan = (span: Span, { span: redact }: Redact = {}, copyArray?: CopyArray): Span | null => {
  const checked = checkedSpan(span, copyArray);
  if (redact === undefined) return checked;
  const changed = redact(checked);
  if (changed === null) return null;
  const again = checkedSpan(changed, copyArray);
  const idsOf = ({ rolloutId, attemptId, id }: Span) => [rolloutId, attemptId, id];
  guardIds("span", idsOf(checked), idsOf(again));
  return again;
};

/** Those that are to be kept. @throws TraceError "bad-input". */
export const redactedSpans = (spans: readonly Span[], redact: Redact | undefined, copyArray?: CopyArray): Span[] => {
  const given = listIn(spans, "spans");
  if (redact?.span === undefined) return given.map((span) => checkedSpan(span, copyArray));
  return given.map((span) => redactedSpan(span, redact, copyArray)).filter((span) => span !== null);
};

/** @throws TraceError "bad-input". */
export const redactedTask = <T extends CheckedTask>(task: T, { task: redact }: Redact = {}): T => {
  if (redact === undefined) return task;
  const { id, mode, input, metadata } = task;
  const changed = redact(Object.freeze({ id, mode, input, metadata }));
  const again = checkedRedaction(changed, id);
  guardIds("task", [id], [changed.id]);
  return Object.freeze({ ...task, ...again });
};

const redactedError = (error: AttemptError | undefined, attempt: AttemptRef, { error: redact }: Redact): AttemptError | undefined => {
  if (error === undefined) return undefined;
  const checked = checkedError(error);
  if (redact === undefined) return checked;
  const changed = redact(checked, attempt);
  return changed === null ? undefined : checkedError(changed);
};

export const redactedOutcome = (outcome: Outcome, { rolloutId, id }: AttemptRef, redact: Redact = {}): Outcome => {
  const status = text(outcome?.status, "outcome.status") as Outcome["status"];
  const kept = redactedError(outcome.error ?? undefined, { rolloutId, id }, redact);
  return kept === undefined ? { status } : { status, error: kept };
};

const redactedItem = (item: StoreItem, redact: Redact): StoreItem | null => {
  switch (item.kind) {
    case "rollout":
      return { kind: "rollout", data: redactedTask(item.data, redact) };
    case "attempt": {
      const { error, ...attempt } = item.data;
      const kept = redactedError(error, { rolloutId: attempt.rolloutId, id: attempt.id }, redact);
      return { kind: "attempt", data: Object.freeze(kept === undefined ? attempt : { ...attempt, error: kept }) };
    }
    case "span": {
      const kept = redactedSpan(item.data, redact);
      return kept && { kind: "span", data: Object.freeze({ ...kept, seq: item.data.seq }) };
    }
    case "resource":
      return item;
  }
};

/** null where `redact` dropped a span. @throws TraceError "bad-input". */
export const redactedItems = (items: readonly StoreItem[], redact: Redact = {}): (StoreItem | null)[] =>
  listIn(items, "adopt: items").map((item, index) => redactedItem(checkedItem(item, `adopt: item ${index}`), redact));
