// The files of a model's Hugging Face folder, wherever it lies: from the cache, from a disk, or by one GET after the other.
// It knows file names; what is in the files is the engine's and the agent's.
//
// One load sees one version of a hub's repository: the commit of the first answer addresses the rest. A folder on any other
// server has no commit; each of its files is cached by its own ETag or date.

import { EngineError, type WeightFiles, type WeightProgress, type WeightReceiver, type WeightSource } from "@fulgurite/engine";
import { files as edge } from "#files";
import { type Answer, type DownloadOptions, download } from "./download.ts";
import type { ModelCache } from "./modelCache.ts";
import { DEFAULT_HUB, isCommit, isHubName, toModelSource } from "./modelSource.ts";

export interface LoadProgress {
  /** "" at the end. */
  readonly file: string;
  /** Of this file. */
  readonly bytes: number;
  /** Undefined: the server does not say. */
  readonly totalBytes: number | undefined;
  readonly filesDone: number;
  /** Known so far: shards are counted when their index has come. */
  readonly files: number;
  /** While weights are put on the device: how many of the model's tensors are there. */
  readonly tensorsDone?: number;
  readonly tensors?: number;
}

/** Weights that are read where they are used, and not before. */
export interface ModelWeights {
  readonly source: WeightSource;
  /** What they are called in a cache, and which version they are; undefined: they are not kept. */
  readonly name: string | undefined;
  readonly version: string | undefined;
  /** Shows how far the load is. */
  report(progress: WeightProgress): void;
  /** Ends what is still open. */
  close(): Promise<void>;
}

export interface ModelFilesOptions {
  /** A server with the hub's addresses. Default https://huggingface.co. */
  readonly hub?: string;
  /** For gated and private models. Sent to the hub's origin and nowhere else, stored nowhere. */
  readonly token?: string;
  /** Default true. Local folders and spark are never cached. */
  readonly cache?: boolean;
  /** Node. Default ~/.cache/fulgurite. */
  readonly cacheFolder?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LoadProgress) => void;
  /** What went wrong without ending the load: no room in the cache. */
  readonly onReport?: (message: string) => void;
}

export interface FolderState {
  readonly commit?: string;
  readonly filesDone: number;
  readonly files: number;
  /** Whether its cache works. */
  readonly isCached: boolean;
}

export interface ModelFolder {
  /** Hub name or address; absent for local folders. */
  readonly name?: string;
  /** Throws EngineError: bad-file (absent, no access), aborted. */
  read(file: string): Promise<Uint8Array>;
  /** Undefined where the folder has no such file. */
  readOptional(file: string): Promise<Uint8Array | undefined>;
  /** model.safetensors, or the shards that its index names. */
  readWeights(): Promise<WeightFiles>;
  /** The same, to be read as they arrive. `at`: the commit and the progress of the folder that the small files came from. */
  streamWeights(at?: Omit<FolderState, "isCached">): Promise<ModelWeights>;
  /** For another one on the same files, in a worker. */
  state(): FolderState;
  /** Everything is here: what is read from now on is counted anew. */
  end(): void;
  /** Takes what was read out of the cache: it turned out damaged, and would be so at the next load. */
  forget(): Promise<void>;
}

/** A whole model folder in memory. */
export interface ModelFiles {
  /** As an adapter's base is called; absent for local folders. */
  readonly name?: string;
  readonly config: Uint8Array;
  readonly weights: WeightFiles;
  readonly tokenizer: Uint8Array;
  /** What else belongs to the model, by file name: tokenizer_config.json, chat_template.jinja, generation_config.json. */
  readonly files: Readonly<Record<string, Uint8Array>>;
}

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
/** config, generation config, tokenizer, its config, chat template, weights. */
const FILES = 6;
/** Downloads that wait for their turn at once. */
const MAX_HELD = 4;
/** Names come from a file of strangers: no folders, no addresses. */
const SHARD = /^[\w.-]+\.safetensors$/;

/** The files of weight_map, each once. That index and shards agree is checked by the engine. */
const shardsOf = (index: Uint8Array): string[] => {
  let map: unknown;
  try {
    map = (JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(index)) as { weight_map?: unknown } | null)?.weight_map;
  } catch (cause) {
    throw new EngineError("bad-file", `${INDEX}: it is UTF-8 JSON, got ${(cause as Error).message}; download it again`, { cause });
  }
  const files = [...new Set(Object.values((map ?? {}) as object) as unknown[])].sort();
  const wrong = files.find((file) => typeof file !== "string" || !SHARD.test(file));
  if (files.length === 0 || wrong !== undefined)
    throw new EngineError(
      "bad-file",
      `${INDEX}: weight_map names files like model-00001-of-00002.safetensors, got ${JSON.stringify(wrong) ?? "none"}; download it again`,
    );
  return files as string[];
};

/** A file that was found and is not read yet. */
interface Held {
  /** Absent: `got` is what the server answered. */
  readonly found: Promise<{ readonly answer?: Answer; readonly got: string }>;
  read(receiver: WeightReceiver): Promise<void>;
  drop(): Promise<void>;
}

type Transport = Pick<DownloadOptions, "fetch" | "sleep">;

/** Finds the folder; reads nothing yet. `transport`: tests pass their own clock. Throws EngineError("bad-request"). */
export const openModelFolder = async (source: string, options: ModelFilesOptions = {}, transport: Transport = {}): Promise<ModelFolder> => {
  const { hub = DEFAULT_HUB, token, signal, onProgress, onReport } = options;
  const place = toModelSource(source, { hub, folder: edge.folderUrl(source), isLocal: await edge.isLocalFolder(source) });
  let { commit } = place;
  let filesDone = 0;
  let files = FILES;

  let cache: ModelCache | undefined;
  const loseCache = (error: unknown): undefined => {
    if (signal?.aborted) return;
    cache = undefined;
    onReport?.(`loadPolicy: the cache keeps model files, got "${(error as Error).message}"; they are loaded without it`);
  };
  if (options.cache !== false && place.cacheNameOf("config.json") !== undefined && place.urlOf("config.json")?.protocol !== "file:")
    cache = await edge.openCache(options.cacheFolder).catch(loseCache);
  const used = new Set<string>();
  const lookUp = async (name: string, version: string | undefined): Promise<Uint8Array | undefined> =>
    version === undefined ? undefined : await cache?.read(name, version, signal).catch(loseCache);
  const keep = async (name: string | undefined, version: string | undefined, bytes: Uint8Array): Promise<void> => {
    if (name !== undefined && version !== undefined) await cache?.write(name, version, bytes, signal).catch(loseCache);
  };

  const headersFor = (url: URL): Record<string, string> =>
    token !== undefined && url.origin === new URL(hub).origin ? { authorization: `Bearer ${token}` } : {};

  /** Undefined: there is no such file, `got` says what the server answered. */
  const fetchFile = async (file: string, url: URL): Promise<{ bytes?: Uint8Array; got: string }> => {
    const show = (bytes: number, totalBytes: number | undefined): void => onProgress?.({ file, bytes, totalBytes, filesDone, files });
    if (url.protocol === "file:") {
      const bytes = await edge.readFile(url, { onBytes: show, ...(signal && { signal }) });
      return { ...(bytes && { bytes }), got: "no such file" };
    }
    const name = place.cacheNameOf(file);
    if (name !== undefined) used.add(name);
    // An empty entry is the memory of a 404: at one commit it stays one.
    const kept = name === undefined ? undefined : await lookUp(name, commit);
    if (kept) return kept.length > 0 ? { bytes: kept, got: "" } : { got: "status 404" };
    signal?.throwIfAborted();
    const result = await download(url, {
      ...transport,
      headers: headersFor(url),
      sendsIfRange: edge.isPreflightFree(url),
      // the built-in model is a part of the page
      ...(place.kind === "spark" && { browserCache: "default" as const }),
      signal,
      onBytes: show,
      known: async (answer) => {
        if (place.kind === "hub" && answer.commit !== undefined && isCommit(answer.commit)) commit ??= answer.commit;
        const found = name === undefined ? undefined : await lookUp(name, commit ?? answer.version);
        return found?.length ? found : undefined;
      },
    });
    if (result.kind === "absent") {
      if (commit !== undefined && result.got === "status 404") await keep(name, commit, new Uint8Array(0));
      return { got: result.got };
    }
    if (!result.isKnown) await keep(name, commit ?? result.answer.version, result.bytes);
    return { bytes: result.bytes, got: "" };
  };

  const readAny = async (file: string): Promise<{ bytes?: Uint8Array; got: string }> => {
    const url = place.urlOf(file, commit);
    if (!url) return { got: "no such file" };
    try {
      signal?.throwIfAborted();
      onProgress?.({ file, bytes: 0, totalBytes: undefined, filesDone, files });
      const found = await fetchFile(file, url);
      signal?.throwIfAborted();
      if (found.bytes) {
        const { length } = found.bytes;
        onProgress?.({ file, bytes: length, totalBytes: length, filesDone, files });
      }
      return found;
    } catch (cause) {
      if (!signal?.aborted || (cause instanceof EngineError && cause.code === "aborted")) throw cause;
      throw new EngineError("aborted", `loadPolicy: aborted while reading ${url}`, { cause });
    }
  };

  const missing = (names: readonly string[], got: string): EngineError => {
    const isAmbiguous = isHubName(source) && place.kind === "hub";
    const advice = isAmbiguous
      ? `no folder ${source} is here, so it was taken for a name on the hub; write ./${source} for a folder`
      : "pass a path, the address of a Hugging Face folder, owner/repo on the hub, or spark";
    const tried = names.map((file) => place.urlOf(file, commit)).join(", ");
    return new EngineError("bad-file", `loadPolicy: ${source} has ${names.join(" or ")}, got ${got}; tried ${tried}; ${advice}`);
  };

  const readOptional = async (file: string): Promise<Uint8Array | undefined> => {
    const { bytes } = await readAny(file);
    filesDone++;
    return bytes;
  };
  const read = async (file: string): Promise<Uint8Array> => {
    const { bytes, got } = await readAny(file);
    if (!bytes) throw missing([file], got);
    filesDone++;
    return bytes;
  };
  const readWeights = async (): Promise<WeightFiles> => {
    const single = await readAny(SINGLE);
    if (single.bytes) {
      filesDone++;
      return single.bytes;
    }
    const { bytes: index, got } = await readAny(INDEX);
    if (!index) throw missing([SINGLE, INDEX], got);
    const shards = shardsOf(index);
    filesDone++;
    files += shards.length;
    const weights: Record<string, Uint8Array> = { [INDEX]: index };
    for (const shard of shards) weights[shard] = await read(shard);
    return weights;
  };
  /** A GET whose body waits until somebody wants it. */
  const hold = (file: string, url: URL): Held => {
    let open!: (receiver: WeightReceiver | undefined) => void;
    const gate = new Promise<WeightReceiver | undefined>((resolve) => {
      open = resolve;
    });
    let answered!: (answer: Answer) => void;
    const answer = new Promise<Answer>((resolve) => {
      answered = resolve;
    });
    let receiver: WeightReceiver | undefined;
    const passage: WeightReceiver = { begin: (bytes) => receiver?.begin(bytes), part: async (bytes) => receiver?.part(bytes) };
    const whole = download(url, {
      ...transport,
      headers: headersFor(url),
      sendsIfRange: edge.isPreflightFree(url),
      ...(place.kind === "spark" && { browserCache: "default" as const }),
      signal,
      receiver: passage,
      known: async (first) => {
        answered(first);
        receiver = await gate;
        return receiver ? undefined : new Uint8Array(0);
      },
    });
    whole.catch(() => {}); // told by `found` or `read`
    return {
      found: Promise.race([
        answer.then((found) => ({ answer: found, got: "" })),
        whole.then((result) => (result.kind === "absent" ? { got: result.got } : { answer: result.answer, got: "" })),
      ]),
      read: async (wanted) => {
        open(wanted);
        const result = await whole;
        if (result.kind === "absent") throw missing([file], result.got);
      },
      drop: async () => {
        open(undefined);
        await whole.catch(() => {});
      },
    };
  };

  const streamWeights = async (at?: Omit<FolderState, "isCached">): Promise<ModelWeights> => {
    if (at) [commit, filesDone, files] = [at.commit ?? commit, at.filesDone, at.files];
    const urlOf = (file: string): URL => place.urlOf(file, commit) ?? new URL(`absent:${file}`);
    const isLocal = place.urlOf(SINGLE, commit)?.protocol === "file:";
    const absentName = place.cacheNameOf(`${SINGLE} absent`);
    if (absentName !== undefined) used.add(absentName);
    const held = new Map<string, Held>();
    const translated = async <T>(url: URL, work: Promise<T>): Promise<T> => {
      try {
        return await work;
      } catch (cause) {
        if (!signal?.aborted || (cause instanceof EngineError && cause.code === "aborted")) throw cause;
        throw new EngineError("aborted", `loadPolicy: aborted while reading ${url}`, { cause });
      }
    };
    const begin = async (file: string): Promise<void> => {
      onProgress?.({ file, bytes: 0, totalBytes: undefined, filesDone, files });
      signal?.throwIfAborted();
    };
    const answerOf = async (file: string): Promise<{ answer?: Answer; got: string }> => {
      await translated(urlOf(file), begin(file));
      const one = held.get(file) ?? hold(file, urlOf(file));
      held.set(file, one);
      const { answer, got } = await translated(urlOf(file), one.found);
      if (!answer) held.delete(file);
      return { ...(answer && { answer }), got };
    };

    /** Whole or in shards; the first request that tells is kept open for its body. */
    const findSingle = async (): Promise<{ isSingle: boolean; got: string }> => {
      if (isLocal) return { isSingle: await edge.hasFile(urlOf(SINGLE)), got: "no such file" };
      if (absentName !== undefined && (await lookUp(absentName, commit))) return { isSingle: false, got: "status 404" };
      const { answer, got } = await answerOf(SINGLE);
      if (!answer && commit !== undefined && got === "status 404") await keep(absentName, commit, new Uint8Array(0));
      return { isSingle: answer !== undefined, got };
    };
    const findIndex = async (): Promise<Uint8Array | undefined> => {
      const { isSingle, got } = await findSingle();
      if (isSingle) return undefined;
      const { bytes } = await readAny(INDEX);
      if (!bytes) throw missing([SINGLE, INDEX], got);
      files += shardsOf(bytes).length;
      filesDone++;
      return bytes;
    };
    let found: Promise<Uint8Array | undefined> | undefined;
    const index = (): Promise<Uint8Array | undefined> => {
      found ??= findIndex();
      return found;
    };

    /**
     * A hub's commit, else what the server says of every file. Their bodies wait meanwhile: so many connections are always to be had, and
     * of a folder in more shards nothing is kept.
     */
    const versionOf = async (): Promise<string | undefined> => {
      if (!cache || isLocal) return undefined;
      if (commit !== undefined) return commit;
      const shards = await index().then((bytes) => (bytes ? shardsOf(bytes) : [SINGLE]));
      if (shards.length > MAX_HELD) return undefined;
      const answers = await Promise.all(shards.map(answerOf));
      const versions = answers.map(({ answer }) => answer?.version);
      return versions.every((version) => version !== undefined) ? versions.join(" ") : undefined;
    };

    const read = async (file: string, receiver: WeightReceiver): Promise<void> => {
      const url = urlOf(file);
      await translated(url, begin(file));
      if (url.protocol === "file:") {
        if (!(await edge.hasFile(url))) throw missing([file], "no such file");
        await translated(url, edge.streamFile(url, receiver, signal));
      } else {
        const one = held.get(file) ?? hold(file, url);
        held.delete(file);
        await translated(url, one.read(receiver));
      }
      filesDone++;
    };

    return {
      source: { index, read, ...(edge.createHash && { createHash: edge.createHash }) },
      name: place.cacheNameOf(SINGLE),
      version: await versionOf(),
      report: (progress) => onProgress?.({ ...progress, filesDone, files }),
      close: async () => {
        for (const one of held.values()) await one.drop();
      },
    };
  };
  const state = (): FolderState => ({ ...(commit !== undefined && { commit }), filesDone, files, isCached: cache !== undefined });
  const end = (): void => {
    // what is read again later is counted again
    [filesDone, files] = [0, FILES];
  };
  const forget = async (): Promise<void> => {
    for (const name of used) await cache?.remove(name).catch(loseCache);
  };
  return { ...(place.name !== undefined && { name: place.name }), read, readOptional, readWeights, streamWeights, state, end, forget };
};

const OTHERS = ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/** Everything of a model's folder that a copy of it needs. Throws what openModelFolder's files throw. */
export const readModel = async (source: string, options: ModelFilesOptions = {}): Promise<ModelFiles> => {
  const { name, read, readOptional, readWeights, state, end } = await openModelFolder(source, options);
  const config = await read("config.json");
  const tokenizer = await read("tokenizer.json");
  const files: Record<string, Uint8Array> = {};
  for (const file of OTHERS) {
    const bytes = await readOptional(file);
    if (bytes) files[file] = bytes;
  }
  const weights = await readWeights();
  const { filesDone } = state();
  options.onProgress?.({ file: "", bytes: 0, totalBytes: 0, filesDone, files: filesDone });
  end();
  return { config, weights, tokenizer, files, ...(name !== undefined && { name }) };
};
