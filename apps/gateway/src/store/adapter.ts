// One adapter out of a store as a PEFT directory or a zip of one, for Python and for other stores, and into a store from either.

import { existsSync } from "node:fs";
import { mkdir, mkdtemp, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, posix, resolve, sep } from "node:path";
import type { Resource, Store } from "@fulgurite/trace";
import { unzipSync, zipSync } from "fflate";
import { UsageError } from "../usageError.ts";
import { answer, type Command, counted, megabytes, withStore } from "./command.ts";

type Files = Resource["files"];

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";

const isZip = (path: string): boolean => path.toLowerCase().endsWith(".zip");

/** A file's place inside the directory, and nowhere else. */
const guardPath = (path: string): string => {
  const plain = posix.normalize(path);
  if (plain !== path || plain.startsWith("/") || plain.startsWith("..") || plain.includes("\\") || plain.endsWith("/"))
    throw new Error(`adapter: a file's path stays inside its directory, got ${JSON.stringify(path)}`);
  return path;
};

const writeDurably = async (path: string, bytes: Uint8Array): Promise<void> => {
  const handle = await open(path, "wx");
  try {
    await handle.writeFile(bytes);
    await handle.sync();
  } finally {
    await handle.close();
  }
};

/** Appears whole or not at all. */
const writeAdapter = async (out: string, files: Files): Promise<void> => {
  if (existsSync(out)) throw new UsageError(`store: --out is a path where nothing is yet, got ${out}; choose another or delete it`);
  const target = resolve(out);
  await mkdir(dirname(target), { recursive: true });
  const partial = await mkdtemp(`${target}.tmp-`);
  try {
    if (isZip(out)) {
      const whole = join(partial, basename(target));
      await writeDurably(whole, zipSync({ ...files }, { level: 6 }));
      await rename(whole, target);
      return;
    }
    const whole = join(partial, "adapter");
    await mkdir(whole);
    for (const [path, bytes] of Object.entries(files)) {
      const at = join(whole, guardPath(path));
      await mkdir(dirname(at), { recursive: true });
      await writeDurably(at, bytes);
    }
    await rename(whole, target);
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
};

const readFolder = async (folder: string): Promise<Files> => {
  const files: Record<string, Uint8Array> = {};
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) {
      const path = join(entry.parentPath, entry.name);
      files[
        path
          .slice(folder.length + 1)
          .split(sep)
          .join("/")
      ] = new Uint8Array(await readFile(path));
    }
  return files;
};

/** A directory that was zipped as a whole has its files one level down. */
const readZip = async (path: string): Promise<Files> => {
  const unzipped = Object.entries(unzipSync(new Uint8Array(await readFile(path)))).filter(([name]) => !name.endsWith("/"));
  const at = unzipped.find(([name]) => basename(name) === CONFIG)?.[0] ?? "";
  const prefix = at.slice(0, -CONFIG.length);
  return Object.fromEntries(
    unzipped.filter(([name]) => name.startsWith(prefix)).map(([name, bytes]) => [guardPath(name.slice(prefix.length)), bytes]),
  );
};

const readAdapter = async (from: string): Promise<Files> => {
  const found = await stat(from).catch(() => undefined);
  if (found === undefined) throw new UsageError(`store: --in is a PEFT directory or a zip of one, got nothing at ${from}`);
  const files = found.isDirectory() ? await readFolder(resolve(from)) : await readZip(from);
  for (const name of [CONFIG, WEIGHTS])
    if (!Object.hasOwn(files, name))
      throw new UsageError(`store: --in holds ${CONFIG} and ${WEIGHTS}, got ${Object.keys(files).slice(0, 5).join(", ") || "no files"}`);
  return files;
};

const noSuch = async (store: Store, name: string, version: number | undefined): Promise<UsageError> => {
  const known = new Set<string>();
  for await (const entry of store.resources()) if (entry.kind === "lora") known.add(entry.name);
  const wanted = version === undefined ? name : `${name} ${version}`;
  return new UsageError(`store: adapter ${wanted}: the store holds ${[...known].join(", ") || "no adapters"}, got another name or version`);
};

export const adapter: Command = {
  knows: ["version", "in", "out", "json"],
  takes: { least: 1, most: 1, what: "an adapter's name" },
  makesFolder: false,
  run: async (folder, [name], { version, in: from, out, json }) => {
    if ((from === undefined) === (out === undefined)) throw new UsageError("store: adapter takes --out or --in, got both or none of them");
    const files = from === undefined ? undefined : await readAdapter(from);
    const resource = await withStore(folder, async (opened) => {
      if (files) return opened.publish({ name: name as string, kind: "lora", files, ...(version === undefined ? {} : { version }) });
      const found = await opened.resource(name as string, version);
      if (found?.kind !== "lora") throw await noSuch(opened, name as string, version);
      await writeAdapter(out as string, found.files);
      return found;
    });
    const byteLength = Object.values(resource.manifest).reduce((sum, file) => sum + file.byteLength, 0);
    if (json) answer({ name: resource.name, version: resource.version, manifest: resource.manifest });
    else {
      const what = `${resource.name} ${resource.version}: ${counted(Object.keys(resource.manifest).length, "file")}, ${megabytes(byteLength)}`;
      process.stdout.write(`${what}, ${out === undefined ? `published from ${from}` : `written to ${out}`}\n`);
    }
    return 0;
  },
};
