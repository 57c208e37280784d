// npm run bench -- <subject> [--json] [--quick] [figure…]
// Measures this machine: ours beside the peers of tests/peers, in the same run. A table, or with --json a line a figure:
// {"name","ours","peer","peerName","unit","ratio"}, ratio > 1 where ours is better. Progress goes to stderr.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { openSources } from "./sources.mjs";

const here = import.meta.dirname;
const peersFolder = join(here, "../peers");
const subjects = readdirSync(here)
  .filter((name) => name.endsWith(".bench.ts"))
  .map((name) => name.slice(0, -".bench.ts".length))
  .sort();
const [subject, ...rest] = process.argv.slice(2);
const names = rest.filter((word) => !word.startsWith("--"));
const flags = rest.filter((word) => word.startsWith("--"));
if (!subjects.includes(subject) || flags.some((flag) => flag !== "--json" && flag !== "--quick")) {
  console.error(
    `bench: a subject of ${subjects.join(", ")}, got ${process.argv.slice(2).join(" ") || "nothing"}; usage: npm run bench -- ${subjects.join("|")} [--json] [--quick] [figure…]`,
  );
  process.exit(2);
}
const isJson = flags.includes("--json");

const vite = await openSources();
const load = (name) => vite.ssrLoadModule(join(here, name));

const began = Date.now();
const progress = (line) => console.error(`${((Date.now() - began) / 1000).toFixed(0).padStart(4)} s  ${line}`);

/** A part that is built on the spot finds Node's headers beside Node, where a system's package puts them. */
const installPeers = () => {
  const prefix = dirname(dirname(process.execPath));
  const hasHeaders = existsSync(join(prefix, "include/node/node.h"));
  progress(`the peers are installed once, into tests/peers: npm ci${hasHeaders ? ` --nodedir=${prefix}` : ""}`);
  execFileSync("npm", ["ci", "--no-audit", "--no-fund", ...(hasHeaders ? [`--nodedir=${prefix}`] : [])], {
    cwd: peersFolder,
    stdio: ["ignore", 2, 2],
  });
};

const peerPath = (name) => {
  if (!existsSync(join(peersFolder, "node_modules", name))) installPeers();
  return createRequire(join(peersFolder, "package.json")).resolve(name);
};
const loadPeer = async (name) => {
  const module = await import(pathToFileURL(peerPath(name)).href);
  return module.default ?? module;
};

const { toLine } = await load("./figures.ts");
const print = (figure) => {
  const line = toLine(figure);
  if (isJson) return console.log(JSON.stringify(line));
  const against = line.peer === null ? "" : `${`${line.peer} ${line.unit}`.padStart(18)}  ${line.peerName.padEnd(34)} ${line.ratio} ×`;
  console.log(`${line.name.padEnd(46)} ${`${line.ours} ${line.unit}`.padStart(18)} ${against}`);
};
if (!isJson) console.log(`${cpus().length} × ${cpus()[0]?.model}, Node ${process.version}`);
const { run } = await load(`./${subject}.bench.ts`);
await run({
  isQuick: flags.includes("--quick"),
  wants: (name) => names.length === 0 || names.some((word) => name.startsWith(word)),
  print,
  progress,
  loadPeer,
  peerPath,
});
await vite.close();
// peers leave threads behind that would keep the process
process.exit();
