// The arena planner: no two tensors that live at once overlap, memory is used again, and a read before a write is refused.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { planArena } from "../../../packages/engine/src/plan/arena.ts";
import { operandsOf, type Plan, type Step, sizeOf, type Tensor } from "../../../packages/engine/src/plan/step.ts";

const arenaTensor = (name: string, length: number): Tensor => ({ name, shape: [length], dtype: "f32", home: "arena" });
const input: Tensor = { name: "input", shape: [64], dtype: "f32", home: "io" };
const output: Tensor = { name: "output", shape: [64], dtype: "f32", home: "io" };

/** A plan of copies: each step reads something written before (or the input) and writes one of a pool of tensors, some through views. */
const plans = fc
  .record({
    lengths: fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 1, maxLength: 25 }),
    moves: fc.array(fc.record({ from: fc.nat(), to: fc.nat(), throughView: fc.boolean() }), { minLength: 1, maxLength: 60 }),
  })
  .map(({ lengths, moves }): Plan => {
    const pool = lengths.map((length, i) => arenaTensor(`t${i}`, length));
    const written: Tensor[] = [];
    const steps = moves.map(({ from, to, throughView }): Step => {
      const x = from % 4 === 0 || written.length === 0 ? input : written[from % written.length]!;
      const y = pool[to % pool.length]!;
      if (!written.includes(y)) written.push(y);
      const canView = throughView && y !== x && sizeOf(y) > 128;
      return { op: "copy", x, y: canView ? { ...y, shape: [sizeOf(y) - 128], view: { of: y, offset: 128 } } : y };
    });
    return { name: "random", steps };
  });

/** Written a second time, the plain way: at every step, which tensors are between their first and last mention. */
const liveAt = (plan: Plan, step: number): Tensor[] => {
  const mentions = plan.steps.map((s) => [...operandsOf(s).reads, ...operandsOf(s).writes].map((t) => t.view?.of ?? t));
  const before = new Set(mentions.slice(0, step + 1).flat());
  const after = new Set(mentions.slice(step).flat());
  return [...before].filter((tensor) => tensor.home === "arena" && after.has(tensor));
};

describe("planArena", () => {
  test("no two tensors that live at the same step overlap, and all lie aligned inside the arena", () => {
    fc.assert(
      fc.property(plans, (plan) => {
        const arena = planArena(plan);
        for (const index of plan.steps.keys()) {
          const spans = liveAt(plan, index)
            .map((tensor) => ({ start: arena.offsetOf(tensor), end: arena.offsetOf(tensor) + 4 * sizeOf(tensor) }))
            .sort((a, b) => a.start - b.start);
          for (const [i, span] of spans.entries()) {
            expect(span.start % 256).toBe(0);
            expect(span.end).toBeLessThanOrEqual(arena.byteLength);
            if (i > 0) expect(span.start).toBeGreaterThanOrEqual(spans[i - 1]!.end);
          }
        }
      }),
      { numRuns: 300 },
    );
  });

  test("a chain of copies needs room for two tensors, however long it is", () => {
    const chain = Array.from({ length: 20 }, (_, i) => arenaTensor(`t${i}`, 64));
    const steps = chain.map((y, i): Step => ({ op: "copy", x: i === 0 ? input : chain[i - 1]!, y }));
    expect(planArena({ name: "chain", steps }).byteLength).toBe(512);
  });

  test("a view lies inside its parent, which lives as long as the view is used", () => {
    const [parent, other] = [arenaTensor("parent", 256), arenaTensor("other", 256)];
    const view: Tensor = { ...parent, name: "view", shape: [64], view: { of: parent, offset: 128 } };
    const steps: Step[] = [
      { op: "copy", x: input, y: parent },
      { op: "copy", x: input, y: other },
      { op: "copy", x: view, y: output },
    ];
    const arena = planArena({ name: "views", steps });
    expect(arena.offsetOf(view)).toBe(arena.offsetOf(parent) + 512);
    expect(Math.abs(arena.offsetOf(parent) - arena.offsetOf(other))).toBeGreaterThanOrEqual(1024);
  });

  test("a read before any write is an error that names plan, step and tensor", () => {
    const steps: Step[] = [
      { op: "zero", x: arenaTensor("a", 64) },
      { op: "copy", x: arenaTensor("late", 64), y: output },
    ];
    expect(() => planArena({ name: "broken", steps })).toThrow(/plan "broken" step 1 \(copy\) reading "late"/);
  });

  test("an accumulating linearBackward needs a written dx, an overwriting one does not", () => {
    const rows = { count: "rows", base: 0, capacity: 1 } as const;
    const w: Tensor = { name: "w", shape: [64, 64], dtype: "f32", home: "weights" };
    const plan = (accumulate: boolean): Plan => ({
      name: "dx",
      steps: [{ op: "linearBackward", rows, dy: input, w, dx: arenaTensor("dx", 64), scale: 1, accumulate }],
    });
    expect(() => planArena(plan(true))).toThrow(/reading "dx"/);
    expect(planArena(plan(false)).byteLength).toBe(256);
  });

  test("an offset of a tensor that the plan does not mention is an error", () => {
    const arena = planArena({ name: "small", steps: [{ op: "zero", x: arenaTensor("a", 64) }] });
    expect(() => arena.offsetOf(arenaTensor("a", 64))).toThrow(/no arena tensor of plan "small"/);
  });
});
