// The README's example, run as it stands there: what a newcomer copies must work.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");
const example = readFileSync(join(root, "README.md"), "utf8").match(/```ts\n([\s\S]*?)```/)?.[1];

// what the reader has already: tools and tasks of their own
const PRELUDE = `
import { calculate, calculatorDemo } from "@fulgurite/demo-calculator";
import { tool } from "ai";
import { z } from "zod";
const tools = { calculator: tool({ inputSchema: z.object({ expression: z.string() }), execute: ({ expression }) => calculate(expression) }) };
const tasks = calculatorDemo.tasks("train", 64);
`;

test("the README's example captures and trains", async () => {
  expect(example).toBeDefined();
  const lines = (example as string).trim().split("\n");
  expect(lines.length).toBeLessThanOrEqual(12);
  const store = mkdtempSync(join(tmpdir(), "fulgurite-readme-"));
  // inside the repository, so that packages are found; short, so that it takes seconds
  const file = join(root, "tests/runtime", `readme-${process.pid}.mjs`);
  const body = (example as string)
    .replace('"my-agent"', JSON.stringify(store))
    .replace(/steps: \d+/, "steps: 2, tasksPerStep: 2, groupSize: 4")
    .replace(/console\.log\((.*?)\);/, "rewards.push($1);");
  writeFileSync(file, `${PRELUDE}export const rewards = [];\n${body}\nawait policy.dispose();\nawait store.close();\n`);
  try {
    const { rewards } = (await import(/* @vite-ignore */ pathToFileURL(file).href)) as { rewards: number[] };
    expect(rewards).toHaveLength(2);
    for (const reward of rewards) expect(reward).toBeGreaterThanOrEqual(0);
  } finally {
    rmSync(file, { force: true });
    rmSync(store, { recursive: true, force: true });
  }
});
