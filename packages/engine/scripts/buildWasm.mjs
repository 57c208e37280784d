// Compiles src/wasm/assembly with AssemblyScript, once for one thread and once for several, into src/wasm/kernels.ts: base64 strings, so
// that Node, pages and workers load them alike, without fetch or paths. Beside it kernels.wasm, the build for one thread, for edge workers,
// whose bundler has to compile it. Does nothing when the sources are the ones of the last build.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const defaultSources = join(here, "../src/wasm/assembly");
const defaultTarget = join(here, "../src/wasm/kernels.ts");

const SHARED_OPTIONS = ["-O3", "--runtime", "stub", "--noAssert", "--importMemory", "--use", "abort="];
const BUILDS = {
  single: ["--enable", "simd"],
  threaded: ["--enable", "simd,threads", "--sharedMemory", "--initialMemory", "1", "--maximumMemory", "65536"],
};

/** What the output depends on: the sources, this script and the compiler. */
const digestOf = (sources) => {
  const hash = createHash("sha256");
  hash.update(createRequire(import.meta.url)("assemblyscript/package.json").version);
  hash.update(readFileSync(fileURLToPath(import.meta.url)));
  for (const [name, text] of Object.entries(sources)) hash.update(`\0${name}\0${text}`);
  return hash.digest("hex");
};

const compile = async (sources, options) => {
  // Imported only here: the compiler takes a second to load, and most calls have nothing to compile.
  const { default: asc } = await import("assemblyscript/asc");
  let binary;
  const { error, stderr } = await asc.main(["index.ts", "--outFile", "out.wasm", ...SHARED_OPTIONS, ...options], {
    readFile: (name) => sources[name] ?? null,
    writeFile: (_name, content) => {
      binary = content;
    },
    listFiles: () => [],
  });
  if (error || !binary) throw new Error(`buildWasm: the AssemblyScript sources compile, got\n${stderr.toString()}`, { cause: error });
  return binary;
};

/** Returns whether it compiled (true) or found the target up to date (false). */
export const buildWasm = async ({ sourceFolder = defaultSources, target = defaultTarget } = {}) => {
  const names = readdirSync(sourceFolder).filter((name) => name.endsWith(".ts"));
  const sources = Object.fromEntries(names.sort().map((name) => [name, readFileSync(join(sourceFolder, name), "utf8")]));
  const digest = digestOf(sources);
  const binary = target.replace(/ts$/, "wasm");
  if (existsSync(binary) && existsSync(target) && readFileSync(target, "utf8").includes(digest)) return false;
  const builds = {};
  for (const [name, options] of Object.entries(BUILDS)) builds[name] = Buffer.from(await compile(sources, options));
  const fields = Object.entries(builds).map(([name, bytes]) => `  ${name}: "${bytes.toString("base64")}",`);
  mkdirSync(dirname(target), { recursive: true });
  // Renamed into place: a build beside this one never reads half a file.
  const temporary = `${target}.${process.pid}.tmp`;
  writeFileSync(
    temporary,
    `// Written by scripts/buildWasm.mjs from wasm/assembly. Do not edit.\n// sources: ${digest}\nexport const KERNELS: { readonly single: string; readonly threaded: string } = {\n${fields.join("\n")}\n};\n`,
  );
  writeFileSync(`${temporary}.wasm`, builds.single);
  renameSync(`${temporary}.wasm`, binary);
  renameSync(temporary, target);
  return true;
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const began = performance.now();
  const compiled = await buildWasm();
  console.log(compiled ? `WASM kernels built in ${((performance.now() - began) / 1000).toFixed(1)} s` : "WASM kernels are up to date");
}
