// One trainer at a time: by the browser's own locks where there are some, and by locks of the test's everywhere.
import { asOnlyTrainer } from "@fulgurite/trace";
import { describe, expect, test, vi } from "vitest";

/** Web Locks as far as they are used here. */
const createLocks = (): Pick<LockManager, "request"> => {
  const queues = new Map<string, Promise<unknown>>();
  const held = new Set<string>();
  const request = async (name: string, { ifAvailable = false, signal }: LockOptions, body: (lock: Lock | null) => unknown) => {
    if (ifAvailable && held.has(name)) return body(null);
    const before = queues.get(name);
    const mine = (async () => {
      if (before)
        await new Promise<void>((resolve, reject) => {
          signal?.addEventListener("abort", () => reject(signal.reason));
          before.then(() => resolve());
        });
      held.add(name);
      try {
        return await body({ name, mode: "exclusive" });
      } finally {
        held.delete(name);
      }
    })();
    queues.set(
      name,
      mine.catch(() => {}),
    );
    return mine;
  };
  return { request: request as LockManager["request"] };
};

const native = (globalThis.navigator as Partial<Navigator> | undefined)?.locks;
const kinds = [
  { kind: "the test's locks", locks: createLocks(), skip: undefined },
  { kind: "the platform's locks", locks: native, skip: native ? undefined : "this runtime has none" },
];

describe.each(kinds)("$kind", ({ locks, skip }) => {
  const test_ = skip === undefined ? test : (title: string, _body: () => unknown) => test.skip(`${title} (${skip})`, () => {});
  const begin = (name: string) => {
    let end = (): void => {};
    const over = new Promise<void>((resolve) => {
      end = resolve;
    });
    let isHeld = (): void => {};
    const held = new Promise<void>((resolve) => {
      isHeld = resolve;
    });
    const ended = asOnlyTrainer(
      name,
      async () => {
        isHeld();
        await over;
        return "done";
      },
      { locks },
    );
    return { held, ended, end };
  };

  test_(
    "a second trainer of a name is refused by code, one of another name is not, and the next may when the first has ended",
    async () => {
      const first = begin("a");
      await first.held;
      const refused = await asOnlyTrainer("a", async () => "both", { locks }).catch((error) => error);
      expect([refused.name, refused.code, refused.message]).toEqual([
        "TraceError",
        "locked",
        expect.stringContaining("a: one trainer at a time"),
      ]);
      expect(await asOnlyTrainer("b", async () => "other", { locks })).toBe("other");
      first.end();
      expect(await first.ended).toBe("done");
      expect(await asOnlyTrainer("a", async () => "next", { locks })).toBe("next");
    },
  );

  test_("one that waits begins when the first has ended, however it ended; its signal ends the waiting", async () => {
    const order: string[] = [];
    const first = begin("c");
    await first.held;
    const waiting = asOnlyTrainer("c", async () => void order.push("second"), { locks, wait: true });
    const controller = new AbortController();
    const aborted = asOnlyTrainer("c", async () => void order.push("never"), { locks, wait: true, signal: controller.signal });
    controller.abort(new Error("enough"));
    await expect(aborted).rejects.toThrow("enough");
    order.push("first");
    first.end();
    await waiting;
    expect(order).toEqual(["first", "second"]);
    const thrower = asOnlyTrainer("c", () => Promise.reject(new Error("broke")), { locks });
    await expect(thrower).rejects.toThrow("broke");
    expect(await asOnlyTrainer("c", async () => "free", { locks })).toBe("free");
  });
});

test("where the platform has no locks it is refused by code, and what to do is said; nobody is asked only on demand", async () => {
  vi.stubGlobal("navigator", {});
  try {
    let ran = 0;
    const body = async () => ++ran;
    const refused = await asOnlyTrainer("a", body).catch((error) => error);
    expect([refused.name, refused.code]).toEqual(["TraceError", "no-locks"]);
    expect(refused.message).toContain("https");
    expect(refused.message).toContain('locks: "none"');
    expect(ran).toBe(0);
    expect(await asOnlyTrainer("a", body, { locks: "none" })).toBe(1);
    await expect(asOnlyTrainer("a", body, { locks: "none", signal: AbortSignal.abort(new Error("enough")) })).rejects.toThrow("enough");
    expect(ran).toBe(1);
  } finally {
    vi.unstubAllGlobals();
  }
});
