import { afterEach, describe, expect, test } from "vitest";
import type { Policy } from "../../../packages/engine/src/contract.ts";
import { EngineError } from "../../../packages/engine/src/errors.ts";
import { createPolicy } from "../../../packages/engine/src/policy.ts";
import { createReferenceBackend } from "../../../packages/engine/src/reference/backend.ts";
import { exposePolicy, wrapPolicy } from "../../../packages/engine/src/worker.ts";
import { tinyLlama } from "./tinyLlama.ts";

interface Options {
  readonly model: { readonly config: Uint8Array; readonly weights: Uint8Array };
  readonly slots: number;
}

// Both sides of a channel in one thread: what crosses is cloned or transferred all the same.
const ports: MessagePort[] = [];
afterEach(() => {
  for (const port of ports.splice(0)) port.close();
});
const channel = (): [MessagePort, MessagePort] => {
  const { port1, port2 } = new MessageChannel();
  ports.push(port1, port2);
  return [port1, port2];
};

const open = async (): Promise<{ policy: Policy; inside: Policy }> => {
  const [page, worker] = channel();
  let inside: Policy | undefined;
  exposePolicy<Options>(worker, async (options) => {
    inside = await createPolicy({ backend: createReferenceBackend(), lora: { rank: 4, alpha: 8 }, microBatchTokens: 64, ...options });
    return inside;
  });
  const policy = await wrapPolicy<Options>(page, { model: tinyLlama(), slots: 2 });
  return { policy, inside: inside! };
};

const request = { prompt: Int32Array.of(5, 9, 2, 30), maxTokens: 8, temperature: 1, stopTokens: [] as number[], seed: 7 };
const datum = { tokens: Int32Array.of(5, 9, 1, 2, 3), targetStart: 2, weights: Float32Array.of(1, 1, 1) };

describe("a policy behind a port", () => {
  test("says what it is and samples what the policy inside samples", async () => {
    const { policy, inside } = await open();
    expect(policy.device).toEqual(inside.device);
    expect(policy.sampler.limits).toEqual({ maxContext: 64, vocabSize: 48 });
    expect(policy.sampler.policyVersion).toBe(0);
    expect(await policy.sampler.generate(request)).toEqual(await inside.sampler.generate(request));
    expect(request.prompt).toEqual(Int32Array.of(5, 9, 2, 30));
    await policy.dispose();
  });

  test("a loss keeps its code, and says that gradients were cleared", async () => {
    const [page, worker] = channel();
    exposePolicy<object>(worker, async () => {
      const policy = await createPolicy({ backend: createReferenceBackend(), model: tinyLlama(), slots: 1 });
      const forwardBackward = async (): Promise<never> => {
        throw new EngineError("lost", "webgpu: it was lost", { clearsGradients: true });
      };
      return { ...policy, trainer: { ...policy.trainer, forwardBackward } };
    });
    const policy = await wrapPolicy<object>(page, {});
    const failure = await policy.trainer.forwardBackward([datum], { name: "crossEntropy" }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(EngineError);
    expect(failure).toMatchObject({ code: "lost", message: "webgpu: it was lost", clearsGradients: true });
    await policy.dispose();
  });

  test("every call of the trainer and publish go through", async () => {
    const { policy, inside } = await open();
    const before = await policy.sampler.generate(request);
    const output = await policy.trainer.forwardBackward([datum], { name: "crossEntropy" }, { temperature: 1 });
    expect(output.logprobs[0]).toHaveLength(3);
    expect((await policy.trainer.forward([datum])).logprobs).toEqual(output.logprobs);
    expect((await policy.trainer.optimStep({ learningRate: 0.5 })).applied).toBe(true);
    const saved = await policy.trainer.saveState();
    expect(saved).toEqual(await inside.trainer.saveState());
    const files = await policy.trainer.exportAdapter();
    await policy.trainer.importAdapter(files);
    await policy.trainer.loadState(saved);
    expect(await inside.trainer.saveState()).toEqual(saved);
    expect(saved.byteLength).toBeGreaterThan(0);
    await policy.publish(3);
    expect(policy.sampler.policyVersion).toBe(3);
    expect(inside.sampler.policyVersion).toBe(3);
    expect((await policy.sampler.generate(request)).tokens).not.toEqual(before.tokens);
    await policy.dispose();
  });

  test("tokens stream in order and all before the completion", async () => {
    const { policy } = await open();
    const streams = [0, 1, 2].map(async (seed) => {
      const seen: [number, number][] = [];
      const { tokens, logprobs } = await policy.sampler.generate({ ...request, seed, onToken: (...pair) => void seen.push(pair) });
      expect(seen).toEqual([...tokens].map((token, i) => [token, logprobs[i]]));
      return String([...tokens]);
    });
    expect(new Set(await Promise.all(streams)).size).toBe(3);
    await policy.dispose();
  });

  test("a listener that throws ends its completion", async () => {
    const { policy } = await open();
    const onToken = (): void => {
      throw new Error("listener");
    };
    await expect(policy.sampler.generate({ ...request, maxTokens: 40, onToken })).rejects.toThrow("listener");
    expect((await policy.sampler.generate(request)).finishReason).toBe("length");
    await policy.dispose();
  });

  test("a mask is asked on the page, and what it throws rejects its completion alone", async () => {
    const { policy } = await open();
    const seen: number[] = [];
    const mask = (tokens: readonly number[]): Uint32Array => {
      seen.push(tokens.length);
      const words = new Uint32Array(Math.ceil(policy.sampler.limits.vocabSize / 32));
      words[0] = 1 << 9;
      return words;
    };
    const { tokens, forced } = await policy.sampler.generate({ ...request, maxTokens: 3, mask });
    expect([...tokens]).toEqual([9, 9, 9]);
    expect([...forced!]).toEqual([1, 1, 1]);
    expect(seen).toEqual([0, 1, 2]);
    const broken = policy.sampler.generate({ ...request, mask: () => Promise.reject(new Error("no grammar")) });
    await expect(broken).rejects.toThrow("no grammar");
    expect((await policy.sampler.generate(request)).finishReason).toBe("length");
    await policy.dispose();
  });

  test("an abort reaches the sampler and the trainer", async () => {
    const { policy } = await open();
    const controller = new AbortController();
    const onToken = (): void => controller.abort();
    const cut = await policy.sampler.generate({ ...request, maxTokens: 60, signal: controller.signal, onToken });
    expect(cut.finishReason).toBe("aborted");
    expect(cut.tokens.length).toBeGreaterThan(0);
    expect(cut.tokens.length).toBeLessThan(60);
    const early = await policy.sampler.generate({ ...request, signal: AbortSignal.abort() });
    expect([early.finishReason, early.tokens.length]).toEqual(["aborted", 0]);
    await expect(policy.trainer.forward([datum, datum], { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "aborted" });
    await policy.dispose();
  });

  test("errors arrive as EngineErrors with their code, others with their name", async () => {
    const { policy } = await open();
    const wrong = policy.sampler.generate({ ...request, maxTokens: 0 });
    await expect(wrong).rejects.toBeInstanceOf(EngineError);
    await expect(wrong).rejects.toMatchObject({ code: "bad-request", name: "EngineError" });
    await expect(wrong).rejects.toThrow("maxTokens is a positive integer, got 0");
    await expect(policy.trainer.loadState(new Uint8Array(3))).rejects.toMatchObject({ code: "bad-file" });
    await policy.dispose();
  });

  test("a policy that cannot be opened rejects on the page's side", async () => {
    const [page, worker] = channel();
    exposePolicy<Options>(worker, async (options) => createPolicy({ backend: createReferenceBackend(), ...options }));
    const broken = { model: { ...tinyLlama(), config: new Uint8Array(2) }, slots: 2 };
    await expect(wrapPolicy<Options>(page, broken)).rejects.toMatchObject({ code: "bad-file" });
    const [page2, worker2] = channel();
    exposePolicy(worker2, () => Promise.reject(new TypeError("no")));
    await expect(wrapPolicy(page2, {})).rejects.toMatchObject({ name: "TypeError", message: "no" });
  });

  test("one worker holds one policy", async () => {
    const [page, worker] = channel();
    exposePolicy<Options>(worker, async (options) => createPolicy({ backend: createReferenceBackend(), ...options }));
    const policy = await wrapPolicy<Options>(page, { model: tinyLlama(), slots: 2 });
    await expect(wrapPolicy<Options>(page, { model: tinyLlama(), slots: 2 })).rejects.toMatchObject({ code: "bad-request" });
    await policy.dispose();
  });

  test("options are copied unless they may be moved", async () => {
    const [page, worker] = channel();
    exposePolicy<Options>(worker, async (options) => createPolicy({ backend: createReferenceBackend(), ...options }));
    const model = tinyLlama();
    const moved = { config: model.config, weights: model.weights.slice() };
    const policy = await wrapPolicy<Options>(page, { model: moved, slots: 2 }, [moved.weights.buffer as ArrayBuffer]);
    expect(moved.weights.byteLength).toBe(0);
    expect(model.config.byteLength).toBeGreaterThan(0);
    await policy.dispose();
  });

  test("disposal rejects the pending and the later, on both sides, and may be repeated", async () => {
    const { policy, inside } = await open();
    const pending = Promise.allSettled([policy.sampler.generate({ ...request, maxTokens: 60 }), policy.trainer.saveState()]);
    await Promise.all([policy.dispose(), policy.dispose()]);
    for (const result of await pending) expect(result).toMatchObject({ status: "rejected", reason: { code: "disposed" } });
    await expect(policy.sampler.generate(request)).rejects.toMatchObject({ code: "disposed" });
    await expect(policy.publish(1)).rejects.toMatchObject({ code: "disposed" });
    await expect(inside.sampler.generate(request)).rejects.toMatchObject({ code: "disposed" });
  });

  test("a worker that dies rejects what waits for it", async () => {
    const worker = new EventTarget() as EventTarget & { postMessage(): void };
    worker.postMessage = () => {};
    const opening = wrapPolicy(worker, {});
    worker.dispatchEvent(Object.assign(new Event("error"), { message: "script not found" }));
    await expect(opening).rejects.toMatchObject({ code: "device" });
    await expect(opening).rejects.toThrow("script not found");
  });
});
