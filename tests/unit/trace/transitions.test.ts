import {
  ATTRIBUTES,
  type ModelCall,
  mintId,
  mintSpanId,
  modelCallSpan,
  rewardOf,
  rewardSpan,
  type Span,
  type StoredSpan,
  TraceError,
  toTransitions,
} from "@fulgurite/trace";
import { expect, test } from "vitest";

const attempt = { rolloutId: "r1", id: "a1" };
const call = (id: string, more: Partial<ModelCall> = {}): Span =>
  modelCallSpan({
    attempt,
    id,
    startMs: 0,
    endMs: 1,
    model: "policy",
    responseId: `chatcmpl-${id}`,
    turn: 0,
    mode: "train",
    policyVersion: 3,
    fidelity: "exact",
    temperature: 1,
    finishReason: "stop",
    promptTokens: Int32Array.of(5, 6),
    responseTokens: Int32Array.of(7),
    samplerLogprobs: Float32Array.of(-0.5),
    ...more,
  } as ModelCall);
const reward = (id: string, value: number, responseId?: string): Span =>
  rewardSpan({ attempt, id, atMs: 2, value, ...(responseId === undefined ? {} : { responseId }) });
const stored = (...spans: Span[]): StoredSpan[] => spans.map((span, index) => ({ ...span, seq: index + 1 }));
const rewards = (spans: StoredSpan[]) => toTransitions(spans).map((transition) => transition.reward);

test("a model call comes back as the transition it was", () => {
  const span = call("s1", { turn: 2, agent: "planner", temperature: 0.7, finishReason: "tool_calls" });
  expect(toTransitions(stored(span))).toEqual([
    {
      rolloutId: "r1",
      attemptId: "a1",
      spanId: "s1",
      turn: 2,
      agent: "planner",
      promptTokens: Int32Array.of(5, 6),
      responseTokens: Int32Array.of(7),
      samplerLogprobs: Float32Array.of(-0.5),
      policyVersion: 3,
      temperature: 0.7,
      finishReason: "tool_calls",
    },
  ]);
  expect(span.name).toBe("chat policy");
  expect(span.attributes[ATTRIBUTES.inputTokens]).toBe(2);
});

test("rewards without an address go to the latest call before them, in the store's order and not the clock's", () => {
  const spans = stored(call("s1", { endMs: 900 }), reward("w1", 0.5), call("s2", { endMs: 100 }), reward("w2", 1), reward("w3", 2));
  expect(rewards(spans)).toEqual([0.5, 3]);
  expect(rewards([...spans].reverse())).toEqual([0.5, 3]);
});

test("rewards with an address go to the call of that response id or key, early or late", () => {
  const spans = stored(
    reward("w0", 0.25, "call_x"),
    call("s1", { keys: ["call_x"] }),
    call("s2"),
    reward("w1", 0.5, "chatcmpl-s1"),
    reward("w2", 1),
  );
  expect(rewards(spans)).toEqual([0.75, 1]);
});

test("a reward that belongs to no trainable call changes none and is still the outcome", () => {
  const spans = stored(reward("w1", 1), reward("w2", 4, "chatcmpl-gone"), call("s1"));
  expect(rewards(spans)).toEqual([undefined]);
  expect(rewardOf(spans)).toBe(1);
});

test("the outcome is the last reward of the whole attempt, else the last of a call, else nothing", () => {
  expect(rewardOf(stored(reward("w1", 1), call("s1"), reward("w2", 0)))).toBe(0);
  expect(rewardOf(stored(call("s1"), reward("w1", 1), reward("w2", 9, "chatcmpl-s1")))).toBe(1);
  expect(rewardOf(stored(call("s1"), reward("w2", 9, "chatcmpl-s1")))).toBe(9);
  expect(rewardOf(stored(call("s1")))).toBeUndefined();
});

test("failed calls, late calls and calls without response ids are not transitions, and take no reward", () => {
  const none = { promptTokens: undefined, responseTokens: undefined, samplerLogprobs: undefined } as never;
  const spans = stored(
    call("s1"),
    call("s2", { errorType: "timeout" }),
    call("s3", { late: true }),
    call("s4", none),
    call("s5", { responseTokens: new Int32Array(0), samplerLogprobs: new Float32Array(0), finishReason: "aborted" }),
    reward("w1", 1),
  );
  expect(toTransitions(spans).map((transition) => [transition.spanId, transition.reward])).toEqual([["s1", 1]]);
});

test("attempts are told apart, although their keys are equal", () => {
  const other = { rolloutId: "r1", id: "a2" };
  const spans = stored(call("s1"), call("s1", { attempt: other }), { ...reward("w1", 1), attemptId: "a2" });
  expect(toTransitions(spans).map((transition) => [transition.attemptId, transition.reward])).toEqual([
    ["a1", undefined],
    ["a2", 1],
  ]);
});

const message = (act: () => unknown): string => {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(TraceError);
    expect((error as TraceError).code).toBe("bad-span");
    return (error as Error).message;
  }
  return "nothing was thrown";
};

test("arrays that do not match and numbers that are not finite name rollout, attempt and span", () => {
  expect(message(() => call("s1", { samplerLogprobs: Float32Array.of(-1, -2) }))).toMatch(
    /span s1 of rollout r1, attempt a1: .*got "2 for 1"/,
  );
  expect(message(() => call("s1", { samplerLogprobs: Float32Array.of(Number.NaN) }))).toContain("NaN at 0");
  expect(message(() => call("s1", { samplerLogprobs: Float32Array.of(-Infinity) }))).toContain("-Infinity at 0");
  expect(message(() => call("s1", { promptTokens: Int32Array.of(1, -1) }))).toContain("-1 at 1");
  expect(message(() => reward("w1", Number.NaN))).toContain("NaN");
});

test("stored spans are checked again when they are read", () => {
  const good = call("s1");
  const broken = (name: keyof typeof ATTRIBUTES, value: unknown) =>
    message(() => toTransitions(stored({ ...good, attributes: { ...good.attributes, [ATTRIBUTES[name]]: value } } as Span)));
  expect(broken("samplerLogprobs", [-0.5])).toContain("Float32Array");
  expect(broken("responseTokens", [7])).toContain("Int32Array");
  expect(broken("promptTokens", undefined)).toContain("Int32Array");
  expect(broken("turn", -1)).toContain("turn");
  expect(broken("policyVersion", 0.5)).toContain("policy.version");
  expect(broken("requestTemperature", Number.POSITIVE_INFINITY)).toContain("temperature");
  expect(broken("finishReasons", ["content_filter"])).toContain("content_filter");
  expect(broken("rewardValue", null)).toContain("finite");
});

test("ids carry time and randomness", () => {
  const zeros = (length: number) => new Uint8Array(length);
  const ones = (length: number) => new Uint8Array(length).fill(255);
  expect(mintId(0, zeros)).toBe("0".repeat(26));
  expect(mintId(2 ** 48 - 1, ones)).toBe(`7${"z".repeat(25)}`);
  expect(mintId(1, zeros) < mintId(2, zeros)).toBe(true);
  expect(mintSpanId(ones)).toBe("f".repeat(16));
  expect(mintSpanId(zeros)).toMatch(/^0{15}1$/);
  expect(new Set(Array.from({ length: 100 }, () => mintId(7))).size).toBe(100);
});
