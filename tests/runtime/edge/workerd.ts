// A module of this folder's as a worker in workerd, the runtime of Cloudflare's workers: bundled as a user's bundler would, served on a
// free port, ended by its process. workerd weighs 130 MB, so it is a peer: npm ci --prefix tests/peers/edge.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "vite";
import { test } from "vitest";

const root = join(import.meta.dirname, "../../..");
const program = process.env.WORKERD_PATH ?? join(root, "tests/peers/edge/node_modules/workerd/bin/workerd");

export const isWorkerdThere: boolean = existsSync(program);

/** A test that needs workerd. */
export const scenario = isWorkerdThere
  ? test
  : (title: string, _body: () => unknown) => test.skip(`${title} (workerd is not installed: npm ci --prefix tests/peers/edge)`, () => {});

export interface WorkerOptions {
  /** Texts in the worker's env. */
  readonly bindings?: Readonly<Record<string, string>>;
  /** Classes of the worker that are Durable Objects, each bound as a namespace of its name. */
  readonly durableObjects?: readonly string[];
  /** Compiled ahead, as `import module from "./name.wasm"` finds them: workerd compiles nothing at run time. */
  readonly wasm?: Readonly<Record<string, Uint8Array>>;
}

export interface RunningWorker {
  readonly url: string;
  /** Bytes of each file of the bundle, minified and gzipped. */
  readonly gzipBytes: Readonly<Record<string, number>>;
  /** What workerd wrote so far: uncaught errors, warnings. */
  said(): string;
  stop(): Promise<void>;
}

const configOf = (files: readonly string[], { bindings = {}, durableObjects = [], wasm = {} }: WorkerOptions): string => {
  const modules = [
    ...files.map((name) => `(name = "${name}", esModule = embed "${name}")`),
    ...Object.keys(wasm).map((name) => `(name = "${name}", wasm = embed "${name}")`),
  ];
  const bound = [
    ...Object.entries(bindings).map(([name, text]) => `(name = "${name}", text = ${JSON.stringify(text)})`),
    ...durableObjects.map((name) => `(name = "${name}", durableObjectNamespace = "${name}")`),
  ];
  const namespaces = durableObjects.map((name) => `(className = "${name}", uniqueKey = "${name}")`);
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .main),
    (name = "internet", network = (allow = ["public", "private"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
const main :Workerd.Worker = (
  modules = [${modules.join(", ")}],
  bindings = [${bound.join(", ")}],
  durableObjectNamespaces = [${namespaces.join(", ")}],
  durableObjectStorage = (inMemory = void),
  compatibilityDate = "2026-01-01",
);
`;
};

/** Resolves when `entry`, a path in this folder, is served. */
export const startWorker = async (entry: string, options: WorkerOptions = {}): Promise<RunningWorker> => {
  const folder = mkdtempSync(join(tmpdir(), "fulgurite-workerd-"));
  const built = await build({
    configFile: false,
    logLevel: "silent",
    resolve: { conditions: ["@fulgurite/source", "workerd", "module", "import", "default"] },
    build: {
      outDir: folder,
      emptyOutDir: false,
      target: "es2022",
      modulePreload: false,
      rolldownOptions: {
        input: join(import.meta.dirname, entry),
        preserveEntrySignatures: "strict",
        external: Object.keys(options.wasm ?? {}).map((name) => `./${name}`),
        output: { format: "esm", entryFileNames: "worker.js", chunkFileNames: "[name].js", minify: true },
      },
    },
  });
  const { output } = (Array.isArray(built) ? built[0] : built) as { output: { fileName: string; isEntry?: boolean }[] };
  const files = output.sort((a, b) => Number(b.isEntry ?? false) - Number(a.isEntry ?? false)).map(({ fileName }) => fileName);
  const gzipBytes = Object.fromEntries(files.map((name) => [name, gzipSync(readFileSync(join(folder, name)), { level: 9 }).length]));
  for (const [name, bytes] of Object.entries(options.wasm ?? {})) writeFileSync(join(folder, name), bytes);
  writeFileSync(join(folder, "config.capnp"), configOf(files, options));

  let said = "";
  const child = spawn(program, ["serve", join(folder, "config.capnp"), "--control-fd=3"], { stdio: ["ignore", "pipe", "pipe", "pipe"] });
  for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk) => (said += chunk));
  const url = await new Promise<string>((resolve, reject) => {
    let events = "";
    child.stdio[3]?.on("data", (chunk) => {
      events += chunk;
      const port = /"event":"listen","socket":"http","port":(\d+)/.exec(events)?.[1];
      if (port !== undefined) resolve(`http://127.0.0.1:${port}`);
    });
    child.on("close", (code) => reject(new Error(`workerd must serve, got exit ${code}: ${said}`)));
    child.on("error", reject);
  });
  return {
    url,
    gzipBytes,
    said: () => said,
    stop: async () => {
      if (child.exitCode === null) {
        const gone = new Promise((resolve) => child.on("close", resolve));
        child.kill("SIGKILL"); // SIGTERM waits for connections, and a client may keep one
        await gone;
      }
      rmSync(folder, { recursive: true, force: true });
    },
  };
};
