// The arrows of docs/architecture.md: who may import whom. Reads every import of every package.
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");

/** Package → house packages it may import; a name with a star only with `import type` (the engine's contract). */
const MAY_IMPORT: Record<string, readonly string[]> = {
  trace: [],
  engine: [],
  spark: [],
  agent: ["trace", "engine*"],
  rl: ["agent", "trace", "engine*"],
  fulgurite: ["rl", "agent", "trace", "engine", "spark"],
};

const sources = (folder: string): string[] =>
  readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    if (statSync(path).isDirectory()) return name === "node_modules" || name === "dist" ? [] : sources(path);
    return /\.tsx?$/.test(name) ? [path] : [];
  });

interface Import {
  file: string;
  target: string;
  typeOnly: boolean;
}

const importsOf = (file: string): Import[] =>
  [
    ...readFileSync(file, "utf8").matchAll(
      /(?:^|\n)\s*(?:import|export)\s+(type\s+)?(?:[^"';]*?\sfrom\s+)?["']([^"']+)["']|import\(\s*["']([^"']+)["']\s*\)/g,
    ),
  ].map((match) => ({ file: relative(root, file), target: (match[2] ?? match[3]) as string, typeOnly: match[1] !== undefined }));

const houseName = (target: string): string | undefined =>
  target === "fulgurite" || target.startsWith("fulgurite/") ? "fulgurite" : target.match(/^@fulgurite\/([^/]+)/)?.[1];

for (const [name, allowed] of Object.entries(MAY_IMPORT)) {
  const imports = sources(join(root, "packages", name, "src")).flatMap(importsOf);
  test(`packages/${name} imports only ${allowed.length ? allowed.join(", ") : "itself"} of the house`, () => {
    const wrong = imports.filter(({ target, typeOnly }) => {
      const other = houseName(target);
      return other !== undefined && other !== name && !allowed.includes(other) && !(typeOnly && allowed.includes(`${other}*`));
    });
    expect(wrong).toEqual([]);
  });
  test(`packages/${name} leaves its own folder only through package names`, () => {
    const wrong = imports.filter(({ file, target }) => {
      if (!target.startsWith(".")) return false;
      return relative(join(root, "packages", name), join(root, file, "..", target)).startsWith("..");
    });
    expect(wrong).toEqual([]);
  });
}

test("the reader of imports sees what it must refuse", () => {
  const path = join(root, "tests/unit/layering.test.ts");
  expect(importsOf(path).map((found) => found.target)).toContain("vitest");
  expect(houseName("@fulgurite/engine/node")).toBe("engine");
});

test("shared code imports node: only below a folder called node", () => {
  const wrong = Object.keys(MAY_IMPORT)
    .flatMap((name) => sources(join(root, "packages", name, "src")))
    .flatMap(importsOf)
    .filter(({ file, target }) => target.startsWith("node:") && !file.split("/").includes("node"));
  expect(wrong).toEqual([]);
});
