// What a user's bundler would ship of a package, for tests that weigh it or look into it.
import { join } from "node:path";
import { build } from "vite";
import { expect } from "vitest";

/**
 * Everything that `code` gives away, minified, as one file; `code` imports as if it lay in packages/<room>/src. `replaced` gives other
 * texts to modules of the room, by their path in src.
 */
export const bundle = async (room: string, code: string, replaced: Readonly<Record<string, string>> = {}): Promise<string> => {
  const source = join(import.meta.dirname, "../../packages", room, "src");
  const entry = join(source, "weighed.ts"); // is nowhere: its text is given
  const texts = new Map([[entry, code], ...Object.entries(replaced).map(([path, text]) => [join(source, path), text] as const)]);
  const built = await build({
    configFile: false,
    logLevel: "silent",
    resolve: { conditions: ["@fulgurite/source", "module", "browser", "import", "default"] },
    plugins: [{ name: "weighed", enforce: "pre", resolveId: (id) => (id === entry ? entry : null), load: (id) => texts.get(id) ?? null }],
    build: {
      write: false,
      target: "es2022",
      modulePreload: false,
      rolldownOptions: { input: entry, preserveEntrySignatures: "strict", output: { format: "esm", minify: true, codeSplitting: false } },
    },
  });
  const { output } = (Array.isArray(built) ? built[0] : built) as { output: { code: string }[] };
  expect(output.length).toBe(1);
  return output[0]!.code;
};
