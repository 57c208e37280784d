// A worker that loads a policy as the policy's own worker does, and says how: what it asked the server for, what it computes, what is
// in the origin's private file system afterwards.

import { createBackend } from "@fulgurite/engine";
import { startFrom } from "../../packages/fulgurite/src/weightPlace.ts";

export interface WeightsAsked {
  readonly source: string;
  readonly config: Uint8Array;
  /** Done to the kept file first. */
  readonly damage?: "cut" | "flip";
}

export interface WeightsAnswer {
  readonly error?: string;
  readonly requests: readonly string[];
  readonly logprobs: readonly number[];
  readonly files: readonly string[];
  readonly reports: readonly string[];
}

type Files = FileSystemDirectoryHandle & { keys(): AsyncIterable<string> };
type Handle = FileSystemFileHandle & {
  createSyncAccessHandle(): Promise<{
    read(into: Uint8Array, options: { at: number }): number;
    write(bytes: Uint8Array, options: { at: number }): number;
    truncate(size: number): void;
    getSize(): number;
    flush(): void;
    close(): void;
  }>;
};

const folder = async (): Promise<Files> =>
  (await (await navigator.storage.getDirectory()).getDirectoryHandle("fulgurite-weights", { create: true })) as Files;

const damageFile = async (kind: "cut" | "flip"): Promise<void> => {
  const place = await folder();
  for await (const name of place.keys()) {
    const file = await ((await place.getFileHandle(name)) as Handle).createSyncAccessHandle();
    const size = file.getSize();
    if (kind === "cut") file.truncate(size - 1000);
    else {
      const byte = new Uint8Array(1);
      file.read(byte, { at: size >> 1 });
      byte[0]! ^= 1;
      file.write(byte, { at: size >> 1 });
    }
    file.flush();
    file.close();
  }
};

const requests: string[] = [];
const send = globalThis.fetch;
globalThis.fetch = (input, init) => {
  requests.push(new Headers(init?.headers).get("range") ?? String(input));
  return send(input, init);
};

const load = async ({ source, config, damage }: WeightsAsked): Promise<WeightsAnswer> => {
  if (damage) await damageFile(damage);
  const reports: string[] = [];
  const policy = await startFrom(
    {
      device: "wasm",
      model: { config },
      weights: { source, filesDone: 0, files: 1, options: {} },
      weightFormat: "q8",
      maxContext: 16,
      slots: 1,
      microBatchTokens: 16,
    },
    await createBackend("wasm", { threads: 1 }),
    { onReport: (message) => void reports.push(message) },
  );
  const { logprobs } = await policy.sampler.generate({
    prompt: Int32Array.of(3, 4, 5),
    maxTokens: 4,
    temperature: 0,
    stopTokens: [],
    seed: 0,
  });
  await policy.dispose();
  const files: string[] = [];
  for await (const name of (await folder()).keys()) files.push(name);
  return { requests, logprobs: [...logprobs], files, reports };
};

self.onmessage = ({ data }: MessageEvent<WeightsAsked>) => {
  load(data).then(
    (answer) => self.postMessage(answer),
    (error: Error) => self.postMessage({ error: error.message, requests, logprobs: [], files: [], reports: [] } satisfies WeightsAnswer),
  );
};
