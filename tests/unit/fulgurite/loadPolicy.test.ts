// Models by path, by address and by hub name, from a local server with generated weights: the policy that comes out, what was
// asked of the server for it, and what is said when it cannot be.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EngineError, parseConfig } from "@fulgurite/engine";
import * as fc from "fast-check";
import { type LoadedPolicy, type LoadPolicyOptions, loadPolicy } from "fulgurite";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { edge } from "../../../packages/fulgurite/src/node/edge.ts";
import { type Files, modelFiles, sharded, toBytes, tokenizerFile, writeFolder } from "./modelFolder.ts";
import { type Faults, inFolder, type ModelServer, onHub, startModelServer } from "./modelServer.ts";

const FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"];
const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const NAME = "tiny/qwen3-random";

let folder: string;
let cacheFolder: string;
const servers: ModelServer[] = [];
const policies: LoadedPolicy[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fulgurite-models-"));
  cacheFolder = join(folder, "cache");
});
afterEach(async () => {
  vi.unstubAllEnvs();
  for (const policy of policies.splice(0)) await policy.dispose();
  for (const server of servers.splice(0)) await server.close();
  rmSync(folder, { recursive: true });
});

const serve = async (files: Files, faults: Faults = {}): Promise<ModelServer> => {
  const server = await startModelServer(files, faults);
  servers.push(server);
  return server;
};
const load = async (source: string, options: LoadPolicyOptions = {}): Promise<LoadedPolicy> => {
  const policy = await loadPolicy(source, { device: "reference", slots: 1, maxContext: 32, cacheFolder, ...options });
  policies.push(policy);
  return policy;
};
const sample = async ({ sampler, format }: LoadedPolicy) => {
  const prompt = format.encode("user: what is 2 plus 3");
  const { tokens, logprobs } = await sampler.generate({ prompt, maxTokens: 4, temperature: 0, stopTokens: [], seed: 1 });
  return { tokens: [...tokens], logprobs: [...logprobs] };
};
const failure = (pending: Promise<unknown>): Promise<Error & { code?: string }> =>
  pending.then(
    () => expect.fail("it did not fail"),
    (error) => error,
  );
/** Entries' bytes, without their labels. */
const cached = (): string[] => (existsSync(cacheFolder) ? readdirSync(cacheFolder).filter((name) => !name.endsWith(".json")) : []);

describe("a folder by its path", () => {
  test.each(FAMILIES)("of %s gives a policy that samples", async (family) => {
    const policy = await load(writeFolder(join(folder, family), modelFiles(family)));
    expect(policy.format.render({ messages: [{ role: "user", text: "hi" }], tools: [] }, { addGenerationPrompt: true })).toBe(
      "user: hi<eos>",
    );
    const { tokens, logprobs } = await sample(policy);
    expect(tokens).toHaveLength(4);
    expect(logprobs.every((logprob) => logprob < 0 && Number.isFinite(logprob))).toBe(true);
    expect(cached()).toEqual([]);
  });

  test("in shards gives the same policy, and a second copy of the weights is not read", async () => {
    const whole = await sample(await load(writeFolder(join(folder, "whole"), modelFiles("qwen3"))));
    const files = sharded(modelFiles("qwen3"));
    const progress: string[] = [];
    const options = { onProgress: ({ file }: { file: string }) => void progress.push(file) };
    expect(await sample(await load(writeFolder(join(folder, "shards"), files), options))).toEqual(whole);
    expect(progress).toContain("model-00002-of-00002.safetensors");
    expect(progress).not.toContain("consolidated.safetensors");
  });

  test("wins over a hub's repository of the same name", async () => {
    const server = await serve({});
    const cwd = vi.spyOn(process, "cwd").mockReturnValue(folder);
    writeFolder(join(folder, NAME), modelFiles("qwen3"));
    expect((await sample(await load(NAME, { hub: server.url }))).tokens).toHaveLength(4);
    expect(server.asked).toEqual([]);
    cwd.mockRestore();
  });
});

test("path, address, hub name, whole and in shards: one policy", async () => {
  const files = modelFiles("qwen3");
  const server = await serve({
    ...inFolder("m", files),
    ...inFolder("shards", sharded(files)),
    ...onHub(NAME, ["main", "refs/pr/1", COMMIT], files),
    ...onHub("tiny/shards", ["main"], sharded(files)),
  });
  const want = await sample(await load(writeFolder(join(folder, "m"), files)));
  const hub = { hub: server.url };
  expect(await sample(await load(`${server.url}/m`))).toEqual(want);
  expect(await sample(await load(`${server.url}/shards/`))).toEqual(want);
  expect(await sample(await load(NAME, hub))).toEqual(want);
  expect(await sample(await load(`${NAME}@refs/pr/1`, hub))).toEqual(want);
  expect(await sample(await load(`${NAME}@${COMMIT}`, hub))).toEqual(want);
  expect(await sample(await load("tiny/shards", hub))).toEqual(want);
  const named = JSON.parse(new TextDecoder().decode((await policies[3]!.trainer.exportAdapter())["adapter_config.json"]));
  expect(named.base_model_name_or_path).toBe(NAME);
});

test("an interrupted download of shards is resumed, and progress says how far it is", async () => {
  const files = sharded(modelFiles("qwen3"));
  const shard = "model-00001-of-00002.safetensors";
  const place = `/${NAME}/resolve/${COMMIT}`;
  const cuts = { [`${place}/${shard}`]: [20_000], [`${place}/tokenizer.json`]: [100] };
  const server = await serve(onHub(NAME, ["main", COMMIT], files), { cuts, commit: COMMIT });
  const progress: { file: string; bytes: number; totalBytes: number | undefined; filesDone: number; files: number }[] = [];
  await load(NAME, { hub: server.url, onProgress: (now) => void progress.push(now) });
  expect(server.askedFor(shard).map(({ range }) => range)).toEqual([undefined, "bytes=20000-"]);
  expect(server.askedFor("tokenizer.json").map(({ range }) => range)).toEqual([undefined, "bytes=100-"]);
  const bytes = server.askedFor(shard).reduce((sum, asked) => sum + asked.bytes, 0);
  expect(bytes).toBe(files[shard]!.length);
  const ofShard = progress.filter(({ file }) => file === shard);
  expect(ofShard.at(-1)).toMatchObject({ bytes, totalBytes: bytes });
  expect(ofShard.every((now, i) => i === 0 || now.bytes >= ofShard[i - 1]!.bytes)).toBe(true);
  expect(progress.at(-1)).toMatchObject({ file: "", filesDone: 8, files: 8 });
});

const flipped = (bytes: Buffer, at = bytes.length >> 1): Buffer => {
  bytes[at]! ^= 1;
  return bytes;
};

describe("the cache", () => {
  const hubFiles = (files: Files = modelFiles("qwen3")): Files => onHub(NAME, ["main", COMMIT], files);

  test("of a hub: one commit's files come once, and its first file says which commit it is", async () => {
    const server = await serve(hubFiles(), { commit: COMMIT });
    const first = await sample(await load(NAME, { hub: server.url }));
    expect(server.asked.map(({ path }) => path.split("/resolve/")[1])).toEqual([
      "main/config.json",
      `${COMMIT}/tokenizer.json`,
      `${COMMIT}/tokenizer_config.json`,
      `${COMMIT}/chat_template.jinja`,
      `${COMMIT}/generation_config.json`,
      `${COMMIT}/model.safetensors`,
    ]);
    server.asked.length = 0;
    expect(await sample(await load(NAME, { hub: server.url }))).toEqual(first);
    expect(server.asked.map(({ path }) => path)).toEqual([`/${NAME}/resolve/main/config.json`]);
  });

  test("of a pinned commit needs no server", async () => {
    const server = await serve(hubFiles(), { commit: COMMIT });
    const source = `${NAME}@${COMMIT}`;
    const first = await sample(await load(source, { hub: server.url }));
    await server.close();
    servers.length = 0;
    expect(await sample(await load(source, { hub: server.url }))).toEqual(first);
  });

  test("of a moved branch is not used, and is replaced", async () => {
    const server = await serve(hubFiles(), { commit: COMMIT });
    const first = await sample(await load(NAME, { hub: server.url }));
    const entries = cached().length;
    const next = COMMIT.replace("0", "f");
    Object.assign(server.files, onHub(NAME, ["main", next], modelFiles("mistral")));
    server.faults.commit = next;
    expect(await sample(await load(NAME, { hub: server.url }))).not.toEqual(first);
    expect(cached()).toHaveLength(entries);
  });

  test("of a folder goes by each file's ETag", async () => {
    const server = await serve(inFolder("m", modelFiles("qwen3")));
    const source = `${server.url}/m`;
    const first = await sample(await load(source));
    expect(await sample(await load(source))).toEqual(first);
    const other = modelFiles("qwen3")["model.safetensors"]!.slice();
    other[other.length - 1]! ^= 0x80; // the sign of the last value
    server.files["/m/model.safetensors"] = other;
    expect(await sample(await load(source))).not.toEqual(first);
  });

  test.each<[string, (bytes: Buffer) => Uint8Array | undefined, RegExp]>([
    ["weights with one bit flipped", (bytes) => flipped(bytes), /\.fulg$/],
    ["weights with one bit of their table flipped", (bytes) => flipped(bytes, bytes.length - 100), /\.fulg$/],
    ["weights of another format version", (bytes) => flipped(bytes, 4), /\.fulg$/],
    ["torn weights", (bytes) => bytes.subarray(0, bytes.length - 10), /\.fulg$/],
    ["the beginning of weights", (bytes) => bytes.subarray(0, 5), /\.fulg$/],
    ["no weights", () => undefined, /\.fulg$/],
    ["bytes with one bit flipped", (bytes) => flipped(bytes), /^[0-9a-f]+$/],
    ["torn bytes", (bytes) => bytes.subarray(0, bytes.length - 10), /^[0-9a-f]+$/],
    ["no bytes", () => undefined, /^[0-9a-f]+$/],
    ["a torn label", (bytes) => bytes.subarray(0, 20), /\.json$/],
    ["a label of another format version", (bytes) => Buffer.from(bytes.toString().replace('"v": 1', '"v": 2')), /\.json$/],
    ["a label that is null", () => Buffer.from("null"), /\.json$/],
  ])("with %s is a miss: the file is downloaded again, and kept", async (_, damage, which) => {
    const server = await serve(hubFiles(), { commit: COMMIT });
    const first = await sample(await load(NAME, { hub: server.url }));
    const hits = (): number => server.askedFor(which.test("x.fulg") ? "model.safetensors" : "tokenizer.json").length;
    expect(hits()).toBe(1);
    for (const name of readdirSync(cacheFolder).filter((entry) => which.test(entry))) {
      const path = join(cacheFolder, name);
      const damaged = damage(readFileSync(path));
      if (damaged) writeFileSync(path, damaged);
      else rmSync(path);
    }
    expect(await sample(await load(NAME, { hub: server.url }))).toEqual(first);
    expect(hits()).toBe(2);
    expect(await sample(await load(NAME, { hub: server.url }))).toEqual(first);
    expect(hits()).toBe(2);
  });

  test("does not keep files that turned out damaged", async () => {
    const files = hubFiles();
    const place = `/${NAME}/resolve/${COMMIT}/model.safetensors`;
    const whole = files[place]!;
    const server = await serve({ ...files, [place]: whole.subarray(0, whole.length - 4) }, { commit: COMMIT });
    expect(await failure(load(NAME, { hub: server.url }))).toMatchObject({ code: "bad-file" });
    expect(cached()).toEqual([]);
    server.files[place] = whole;
    expect((await sample(await load(NAME, { hub: server.url }))).tokens).toHaveLength(4);
  });

  test("that cannot be written is reported once, and the policy runs without it", async () => {
    const server = await serve(hubFiles());
    writeFileSync(cacheFolder, "a file where the folder should be");
    const reports: string[] = [];
    const policy = await load(NAME, { hub: server.url, onReport: (message) => void reports.push(message) });
    expect((await sample(policy)).tokens).toHaveLength(4);
    expect(reports).toHaveLength(1);
    expect(reports[0]).toMatch(/the cache keeps model files, got ".*(EEXIST|ENOTDIR)/);
  });

  test("is off when it is switched off, and where the server tells no version", async () => {
    const server = await serve(inFolder("m", modelFiles("qwen3")), { hasNoValidator: true });
    await load(`${server.url}/m`);
    expect(cached()).toEqual([]);
    server.faults.hasNoValidator = false;
    await load(`${server.url}/m`, { cache: false });
    expect(cached()).toEqual([]);
    await load(`${server.url}/m`);
    expect(cached()).toHaveLength(4);
  });

  test("lies below the home folder of the moment, and never holds the token", async () => {
    vi.stubEnv("HOME", join(folder, "home"));
    mkdirSync(join(folder, "home"));
    const server = await serve(hubFiles(), { token: "hf_secret" });
    const policy = await loadPolicy(NAME, { hub: server.url, token: "hf_secret", device: "reference", maxContext: 8, slots: 1 });
    policies.push(policy);
    const place = join(folder, "home/.cache/fulgurite");
    const entries = readdirSync(place);
    expect(entries.filter((name) => name.endsWith(".json"))).toHaveLength(3);
    expect(entries.filter((name) => name.endsWith(".fulg"))).toHaveLength(1);
    for (const name of entries) expect(readFileSync(join(place, name)).includes("hf_secret")).toBe(false);
  });
});

describe("weights in another format", () => {
  const bytesHeld = (cacheOf: string): number =>
    readdirSync(cacheOf)
      .filter((name) => name.endsWith(".fulg"))
      .reduce((sum, name) => sum + readFileSync(join(cacheOf, name)).length, 0);

  test("are converted on the way, kept for each format, and told in the budget", async () => {
    const server = await serve(onHub(NAME, ["main", COMMIT], modelFiles("qwen3")), { commit: COMMIT });
    const budgets: string[] = [];
    const sizes: number[] = [];
    const progress: { tensorsDone?: number; tensors?: number }[] = [];
    const options = {
      hub: server.url,
      onMemory: ({ weightFormat }: { weightFormat: string }) => void budgets.push(weightFormat),
      onProgress: (now: { tensorsDone?: number; tensors?: number }) => void progress.push(now),
    };
    for (const weightFormat of ["q8", "q4"] as const) {
      const first = await sample(await load(NAME, { ...options, weightFormat }));
      expect(first.logprobs.every((logprob) => logprob < 0)).toBe(true);
      sizes.push(bytesHeld(cacheFolder));
      const asked = server.askedFor("model.safetensors").length;
      expect(await sample(await load(NAME, { ...options, weightFormat }))).toEqual(first);
      expect(server.askedFor("model.safetensors")).toHaveLength(asked);
    }
    expect(budgets).toEqual(["q8", "q8", "q4", "q4"]);
    expect(sizes[1]! - sizes[0]!).toBeLessThan(sizes[0]!);
    const counted = progress.filter(({ tensors }) => tensors !== undefined);
    expect(counted.at(-1)!.tensorsDone).toBe(counted.at(-1)!.tensors);
  });

  test("the small model is f32 when nobody asks, and an unknown format is refused by name", async () => {
    const budgets: string[] = [];
    const source = writeFolder(join(folder, "m"), modelFiles("llama"));
    await load(source, { onMemory: ({ weightFormat }) => void budgets.push(weightFormat) });
    expect(budgets).toEqual(["f32"]);
    expect((await failure(load(source, { weightFormat: "q5" as never }))).message).toContain("q5");
  });

  test("two loads of the same model at once leave whole files", async () => {
    const server = await serve(onHub(NAME, ["main", COMMIT], modelFiles("qwen3")), { commit: COMMIT });
    const [one, two] = await Promise.all([load(NAME, { hub: server.url }), load(NAME, { hub: server.url })]);
    const want = await sample(one);
    expect(await sample(two)).toEqual(want);
    expect(readdirSync(cacheFolder).filter((name) => name.endsWith(".part"))).toEqual([]);
    const asked = server.askedFor("model.safetensors").length;
    expect(await sample(await load(NAME, { hub: server.url }))).toEqual(want);
    expect(server.askedFor("model.safetensors")).toHaveLength(asked);
  });

  test("a load that fails or is aborted half-way leaves nothing of its weights", async () => {
    const files = onHub(NAME, ["main", COMMIT], modelFiles("qwen3"));
    const place = `/${NAME}/resolve/${COMMIT}/model.safetensors`;
    const whole = files[place]!;
    const server = await serve({ ...files, [place]: whole.subarray(0, whole.length - 4) }, { commit: COMMIT });
    expect(await failure(load(NAME, { hub: server.url }))).toMatchObject({ code: "bad-file" });
    server.files[place] = whole;
    const controller = new AbortController();
    const onProgress = ({ file, bytes }: { file: string; bytes: number }): void =>
      void (file === "model.safetensors" && bytes > 0 && controller.abort());
    expect(await failure(load(NAME, { hub: server.url, signal: controller.signal, onProgress }))).toMatchObject({ code: "aborted" });
    expect(readdirSync(cacheFolder).filter((name) => /fulg|part/.test(name))).toEqual([]);
  });
});

test("a tokenizer or its config flipped or cut anywhere: an error, or a policy, and never a hang", async () => {
  const files = modelFiles("llama");
  let runs = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.nat(1e6),
      fc.integer({ min: 1, max: 255 }),
      fc.boolean(),
      fc.constantFrom("tokenizer.json", "tokenizer_config.json"),
      async (place, mask, isCut, file) => {
        const original = files[file]!;
        const at = place % original.length;
        const bytes = isCut ? original.slice(0, at) : original.slice();
        if (!isCut) bytes[at]! ^= mask;
        const source = writeFolder(join(folder, `fuzz${runs++}`), { ...files, [file]: bytes });
        const outcome = await load(source, { maxContext: 8 }).then(
          () => "loaded",
          (error: { code?: string }) => error.code,
        );
        expect(["loaded", "bad-file", "bad-format", "unsupported"]).toContain(outcome);
        for (const policy of policies.splice(0)) await policy.dispose();
      },
    ),
    { numRuns: 60, seed: 1 },
  );
});

describe("a gated model", () => {
  test("is told from others, and opens with the token, which goes to the hub alone", async () => {
    const files = onHub(NAME, ["main"], modelFiles("qwen3"));
    const store = await serve(files);
    const server = await serve(files, {
      token: "hf_secret",
      redirect: (path) => (path.endsWith(".safetensors") ? store.url + path : undefined),
    });
    const error = await failure(load(NAME, { hub: server.url }));
    expect(error).toMatchObject({ code: "bad-file" });
    expect(error.message).toMatch(/status 401; if the model is gated or private, pass the option token/);
    await load(NAME, { hub: server.url, token: "hf_secret" });
    expect(server.asked.slice(1).every(({ authorization }) => authorization === "Bearer hf_secret")).toBe(true);
    expect(store.asked.map(({ authorization }) => authorization)).toEqual([undefined]);
  });

  test("elsewhere is not sent the hub's token", async () => {
    const server = await serve(inFolder("m", modelFiles("qwen3")));
    await load(`${server.url}/m`, { token: "hf_secret" });
    expect(server.asked.some(({ authorization }) => authorization !== undefined)).toBe(false);
  });
});

describe("an error before the weights are asked for", () => {
  const change = (files: Files, config: object): Files => ({
    ...files,
    "config.json": toBytes({ ...JSON.parse(new TextDecoder().decode(files["config.json"])), ...config }),
  });
  const loadChanged = async (files: Files, options?: LoadPolicyOptions) => {
    const server = await serve(inFolder("m", files));
    const error = await failure(load(`${server.url}/m`, options));
    expect(server.asked.some(({ path }) => path.includes("model.safetensors"))).toBe(false);
    return error;
  };

  test("an unknown architecture names the known ones", async () => {
    const error = await loadChanged(change(modelFiles("llama"), { model_type: "phi3" }));
    expect(error).toMatchObject({ code: "unsupported" });
    for (const family of FAMILIES) expect(error.message).toContain(family);
  });

  test("a model larger than WASM's memory, with both numbers", async () => {
    const large = change(modelFiles("llama"), { hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, vocab_size: 128256 });
    const error = await loadChanged(large, { device: "wasm" });
    expect(error).toMatchObject({ code: "device" });
    // Embedding (tied or not), and three MLP matrices a layer, alone; 16 bits are the default of a checkpoint of this size.
    const spec = parseConfig(JSON.parse(new TextDecoder().decode(large["config.json"])), "config.json");
    const least = 4 * (4096 * 128256 * (spec.tiedHead ? 1 : 2) + 32 * 3 * 4096 * 14336);
    const [need, weights] = [.../(\d+) MiB: weights (\d+) MiB/.exec(error.message)!]
      .slice(1)
      .map((mebibytes) => Number(mebibytes) * 2 ** 20);
    expect(error.message).toMatch(/limit 4096 MiB; set weightFormat to q4/);
    expect(weights).toBeGreaterThan(least / 2);
    expect(weights).toBeLessThan((least / 2) * 1.2);
    expect(need).toBeGreaterThan(weights!);
  });

  test("a cache of too many slots is what does not fit, and the advice is about it", async () => {
    const wide = change(modelFiles("llama"), { max_position_embeddings: 8192 });
    const error = await loadChanged(wide, { device: "wasm", maxContext: 8192, slots: 4096 });
    expect(error.message).toMatch(/KV cache 16384 MiB \(4096 × 8192\), .*; limit 4096 MiB; lower slots to 512$/);
  });

  test("a tokenizer of another model", async () => {
    const many = Array.from({ length: 84 }, (_, i) => (i < 3 ? ["<pad>", "<s>", "<eos>"][i]! : String.fromCharCode(0x100 + i)));
    const error = await loadChanged({ ...modelFiles("llama"), "tokenizer.json": tokenizerFile(many) });
    expect(error.message).toMatch(/below vocab_size \(83\), got 83 in tokenizer\.json/);
  });

  test.each(["config.json", "tokenizer.json", "tokenizer_config.json"])("no %s: the address that was tried", async (file) => {
    const { [file]: _, ...files } = modelFiles("llama");
    const error = await loadChanged(files);
    expect(error).toMatchObject({ code: "bad-file" });
    expect(error.message).toMatch(new RegExp(`has ${file}, got status 404; tried http://127.0.0.1:\\d+/m/${file}`));
  });
});

describe("missing files", () => {
  test("no weights under either name", async () => {
    const { "model.safetensors": _, ...files } = modelFiles("llama");
    const server = await serve(inFolder("m", files), { answersPages: true });
    const { message } = await failure(load(`${server.url}/m`));
    expect(message).toMatch(/has model\.safetensors or model\.safetensors\.index\.json, got status 200, a page of HTML; tried /);
    expect((await failure(load(writeFolder(join(folder, "m"), files)))).message).toContain("got no such file; tried file:///");
  });
  test("a shard that the index names", async () => {
    const { "model-00002-of-00002.safetensors": _, ...files } = sharded(modelFiles("llama"));
    expect((await failure(load(writeFolder(join(folder, "m"), files)))).message).toContain("has model-00002-of-00002.safetensors");
  });
  test("an index that leads out of the folder is refused", async () => {
    const files = {
      ...sharded(modelFiles("llama")),
      "model.safetensors.index.json": toBytes({ weight_map: { a: "../../secret.safetensors" } }),
    };
    expect((await failure(load(writeFolder(join(folder, "m"), files)))).message).toContain('got "../../secret.safetensors"');
  });
  test("a name that is neither a folder nor on the hub: how to write each", async () => {
    const server = await serve({});
    const { message } = await failure(load("no/such", { hub: server.url }));
    expect(message).toMatch(/got status 404; tried .+\/no\/such\/resolve\/main\/config\.json; no folder no\/such is here/);
    expect((await failure(load("nosuch"))).message).toContain(
      "pass a path, the address of a Hugging Face folder, owner/repo on the hub, or spark",
    );
  });
  test("addresses of other kinds are refused", async () => {
    expect((await failure(load("ftp://host/m"))).message).toContain("begins with http: or https:");
    expect((await failure(load(NAME, { hub: "huggingface.co" }))).message).toContain("hub is an address");
  });
});

describe("abort", () => {
  test("before, and while any file comes: nothing more is asked for", async () => {
    const server = await serve(inFolder("m", modelFiles("llama")));
    expect(await failure(load(`${server.url}/m`, { signal: AbortSignal.abort() }))).toMatchObject({ code: "aborted" });
    expect(server.asked).toEqual([]);
    for (const file of ["config.json", "tokenizer.json", "model.safetensors"]) {
      const controller = new AbortController();
      const onProgress = (now: { file: string }): void => void (now.file === file && controller.abort());
      const error = await failure(load(`${server.url}/m`, { signal: controller.signal, onProgress, cache: false }));
      expect(error).toMatchObject({ code: "aborted" });
    }
    expect(server.askedFor("model.safetensors")).toEqual([]);
  });
  test("while a file comes out of the cache is no failure of the cache", async () => {
    const server = await serve(onHub(NAME, ["main", COMMIT], modelFiles("llama")), { commit: COMMIT });
    await load(NAME, { hub: server.url });
    const controller = new AbortController();
    const reports: string[] = [];
    const onProgress = (now: { file: string }): void => void (now.file === "tokenizer.json" && controller.abort());
    const onReport = (message: string): void => void reports.push(message);
    const error = await failure(load(NAME, { hub: server.url, signal: controller.signal, onProgress, onReport }));
    expect(error).toMatchObject({ code: "aborted" });
    expect(reports).toEqual([]);
  });
  test("when all files are here: the policy that was started is gone", async () => {
    const controller = new AbortController();
    const source = writeFolder(join(folder, "m"), modelFiles("llama"));
    const onProgress = (now: { file: string }): void => void (now.file === "" && controller.abort());
    const error = await failure(load(source, { signal: controller.signal, onProgress }));
    expect(error).toMatchObject({ code: "aborted", message: expect.stringContaining("while starting") });
  });
  test("of a folder on disk", async () => {
    const controller = new AbortController();
    const source = writeFolder(join(folder, "m"), modelFiles("llama"));
    const onProgress = (now: { file: string; bytes: number }): void =>
      void (now.file === "model.safetensors" && now.bytes > 0 && controller.abort());
    expect(await failure(load(source, { signal: controller.signal, onProgress }))).toMatchObject({ code: "aborted" });
  });
});

test("the built-in model loads as before, and is not cached", async () => {
  const policy = await load("spark", { device: "reference", maxContext: 64 });
  expect(policy.sampler.limits.vocabSize).toBe(1024);
  expect(cached()).toEqual([]);
});

test("a policy whose device is lost goes on: its weights come out of the cache, of the same commit", async () => {
  const server = await serve(onHub(NAME, ["main", COMMIT], modelFiles("qwen3")), { commit: COMMIT });
  const { startPolicy } = edge;
  const start = vi.spyOn(edge, "startPolicy").mockImplementationOnce(async (options) => {
    const policy = await startPolicy(options);
    const generate = async (): Promise<never> => {
      throw new EngineError("lost", "webgpu: it was lost (unknown: by the test); create another backend");
    };
    return { ...policy, sampler: { ...policy.sampler, generate } };
  });
  const reports: string[] = [];
  const policy = await load(NAME, { hub: server.url, onReport: (report) => void reports.push(report) });
  server.asked.length = 0;
  // the branch has moved on, which must not be seen
  server.faults.commit = COMMIT.replace("0", "f");
  const got = await sample(policy);
  expect(got).toEqual(await sample(await load(writeFolder(join(folder, "m"), modelFiles("qwen3")))));
  expect(start).toHaveBeenCalledTimes(3);
  expect(server.asked).toEqual([]);
  expect(reports).toEqual([expect.stringMatching(/the device of tiny\/qwen3-random was lost, attempt 1 to go on: .*by the test/)]);
  start.mockRestore();
});
