// npm run fault -- stores [--json] [files] [indexedDb] [http]
// Does to the stores what machines do to them, and ends with one JSON line a store. Exit code 1 when anything that was
// acknowledged is gone, is there twice, or was given to two workers. Progress goes to stderr.
import { join } from "node:path";
import { createServer } from "vite";

const USAGE = "usage: npm run fault -- stores [--json] [files] [indexedDb] [http]";
const STORES = {
  files: ["./fileFaults.ts", "faultFiles"],
  indexedDb: ["./indexedDbFaults.ts", "faultIndexedDb"],
  http: ["./httpFaults.ts", "faultHttp"],
};

const [subject, ...rest] = process.argv.slice(2);
const json = rest.includes("--json");
const named = rest.filter((word) => word !== "--json");
if (subject !== "stores" || named.some((name) => !Object.hasOwn(STORES, name))) {
  console.error(
    `fault: stores, and of them ${Object.keys(STORES).join(", ")}, got ${process.argv.slice(2).join(" ") || "nothing"}; ${USAGE}`,
  );
  process.exit(2);
}

/** Modules run on the packages' sources: no build is needed. */
const vite = await createServer({
  root: join(import.meta.dirname, "../.."),
  appType: "custom",
  configFile: false,
  logLevel: "error",
  server: { middlewareMode: true, ws: false, watch: null },
  ssr: { resolve: { conditions: ["@fulgurite/source", "node", "import", "module", "default"] } },
});
const load = (name) => vite.ssrLoadModule(join(import.meta.dirname, name));

const began = Date.now();
const progress = (line) => console.error(`${((Date.now() - began) / 1000).toFixed(0).padStart(4)} s  ${line}`);
const { isClean } = await load("./ledger.ts");
const tallies = [];
for (const [name, [file, run]] of Object.entries(STORES)) {
  if (named.length > 0 && !named.includes(name)) continue;
  tallies.push(await (await load(file))[run](progress));
}
for (const tally of tallies)
  console.log(
    json
      ? JSON.stringify(tally)
      : `${tally.store}: ${tally.faults} faults; ${tally.acknowledged} acknowledged, ${tally.recovered} recovered, ${tally.lost} lost, ${tally.duplicates} duplicates, ${tally.doubleClaims} double claims`,
  );
await vite.close();
process.exitCode = tallies.every(isClean) ? 0 : 1;
