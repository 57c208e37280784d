import {
  ATTEMPT_CHANGES,
  type AttemptStatus,
  DEFAULT_CONFIG,
  decideAfter,
  guardAttempt,
  guardRollout,
  isTerminal,
  ROLLOUT_CHANGES,
  type RolloutStatus,
} from "@fulgurite/trace";
import { expect, test } from "vitest";

test("the guards allow what the tables list, and nothing else", () => {
  const rollouts = Object.keys(ROLLOUT_CHANGES) as RolloutStatus[];
  const allowed = (act: () => void) => {
    try {
      act();
      return true;
    } catch {
      return false;
    }
  };
  for (const status of rollouts)
    for (const next of rollouts)
      expect(allowed(() => guardRollout({ id: "r", status }, next))).toBe(ROLLOUT_CHANGES[status].includes(next));
  const attempts = Object.keys(ATTEMPT_CHANGES) as AttemptStatus[];
  for (const status of attempts)
    for (const next of attempts)
      expect(allowed(() => guardAttempt({ rolloutId: "r", id: "a", status }, next))).toBe(status === "running" && next !== "running");
  expect(rollouts.filter(isTerminal)).toEqual(["succeeded", "failed", "cancelled"]);
});

test("a forbidden change says where, what is allowed and what was asked", () => {
  expect(() => guardRollout({ id: "r1", status: "succeeded" }, "queued")).toThrow(
    "rollout r1: succeeded may become nothing: it is final, got queued; read its status first",
  );
});

test("an end is retried while attempts remain and the config lists it", () => {
  const config = { ...DEFAULT_CONFIG, maxAttempts: 2, retryOn: ["timeout", "failed"] } as const;
  expect(decideAfter("timeout", { attempts: 1, config })).toBe("queued");
  expect(decideAfter("timeout", { attempts: 2, config })).toBe("failed");
  expect(decideAfter("unresponsive", { attempts: 1, config })).toBe("failed");
  expect(decideAfter("succeeded", { attempts: 1, config })).toBe("succeeded");
  expect(decideAfter("cancelled", { attempts: 1, config })).toBe("cancelled");
  expect(decideAfter("timeout", { attempts: 1, config: DEFAULT_CONFIG })).toBe("failed");
});
