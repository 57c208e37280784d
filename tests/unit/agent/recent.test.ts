import { expect, test } from "vitest";
import { createRecent } from "../../../packages/agent/src/recent.ts";

const name = (index: number): string => `key ${String(index).padStart(4, "0")}`; // 8 characters

test("what was asked for lately is held, and never more than the bound", () => {
  const recent = createRecent<number>(200);
  for (let index = 0; index < 500; index++) {
    recent.set(name(index), index, 2); // 10 each: ten a half
    expect(recent.get(name(index))).toBe(index);
    const held = Array.from({ length: index + 1 }, (_, at) => at).filter((at) => at === index || at >= index - 9);
    for (const at of held) expect(recent.get(name(at))).toBe(at);
  }
  const fresh = createRecent<number>(200);
  for (let index = 0; index < 500; index++) fresh.set(name(index), index, 2);
  const kept = Array.from({ length: 500 }, (_, index) => index).filter((index) => fresh.get(name(index)) !== undefined);
  expect(kept.length * 10).toBeLessThanOrEqual(200);
  expect(kept.at(-1)).toBe(499);
});

test("one that is asked for again and again stays, whatever comes between", () => {
  const recent = createRecent<string>(200);
  recent.set("system prompt", "ids", 3);
  for (let index = 0; index < 500; index++) {
    recent.set(name(index), "x", 2);
    expect(recent.get("system prompt")).toBe("ids");
  }
});

test("what is more than half of the bound is not held, and drives nothing out", () => {
  const recent = createRecent<string>(200);
  recent.set("small", "s", 1);
  recent.set("large", "l", 96);
  expect(recent.get("large")).toBeUndefined();
  expect(recent.get("small")).toBe("s");
});
