// A program of the tests, bundled with the packages' sources, for a process of its own: one that is killed, or measured.
import { join } from "node:path";
import { build } from "vite";

/** Bundles `<folder>/<name>.ts` for Node. Returns the path to run. */
export const bundleChild = async (folder: string, name: string, outDir: string): Promise<string> => {
  await build({
    configFile: false,
    logLevel: "silent",
    ssr: { noExternal: true, resolve: { conditions: ["@fulgurite/source", "node", "import", "default"] } },
    build: {
      ssr: join(folder, `${name}.ts`),
      outDir,
      emptyOutDir: false,
      target: "node20",
      rollupOptions: { output: { entryFileNames: `${name}.mjs` } },
    },
  });
  return join(outDir, `${name}.mjs`);
};
