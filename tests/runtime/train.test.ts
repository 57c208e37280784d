// The command line as a stranger uses it: a headless run, killed in the middle, continued, and called wrongly. Runs the built CLI.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";

const cli = join(import.meta.dirname, "../../apps/gateway/dist/cli.js");
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "fulgurite-train-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

const start = (args: string[], onStderr?: (text: string, child: ChildProcess) => void): Promise<Ended> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [cli, "train", ...args], { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (chunk) => {
      stdout += chunk;
    });
    child.stderr.on("data", (chunk) => {
      stderr += chunk;
      onStderr?.(stderr, child);
    });
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });

const smoke = ["calculator", "--device", "wasm", "--preset", "smoke", "--seed", "5", "--json"];
const read = (run: string, file: string): string => readFileSync(join(folder, run, file), "utf8");

test("a run that is killed in the middle and continued equals one that was not", async () => {
  const whole = await start([...smoke, "--run", "whole"]);
  expect(whole.code, whole.stderr).toBe(0);

  const killed = await start([...smoke, "--run", "cut"], (text, child) => {
    if (/step {3}1:/.test(text)) child.kill("SIGKILL");
  });
  expect(killed.code).toBe(null);
  expect(killed.stdout).toBe("");
  const continued = await start([...smoke, "--run", "cut"]);
  expect(continued.code, continued.stderr).toBe(0);
  expect(continued.stderr).toContain("continuing cut");

  expect(read("cut", "metrics.jsonl")).toBe(read("whole", "metrics.jsonl"));
  expect(read("whole", "metrics.jsonl").trim().split("\n")).toHaveLength(3);
  const { seconds: _, ...result } = JSON.parse(continued.stdout);
  const { seconds, ...expected } = JSON.parse(whole.stdout);
  expect(result).toEqual(expected);
  expect(seconds).toBeGreaterThan(0);
  expect(Object.keys(expected)).toEqual(["demo", "device", "seed", "steps", "before", "after", "control"]);
  expect(readFileSync(join(folder, "cut/adapter/adapter_model.safetensors"))).toEqual(
    readFileSync(join(folder, "whole/adapter/adapter_model.safetensors")),
  );
});

test("a finished run folder is not overwritten: the next run of the same command gets a folder of its own", async () => {
  const args = ["calculator", "--device", "wasm", "--preset", "smoke", "--steps", "1", "--no-control", "--json"];
  const first = await start(args);
  expect(first.stderr).toContain("run folder runs/calculator-wasm-smoke-seed1\n");
  const second = await start(args);
  expect(second.stderr).toContain("run folder runs/calculator-wasm-smoke-seed1-2\n");
  const { seconds: a, ...one } = JSON.parse(first.stdout);
  const { seconds: b, ...two } = JSON.parse(second.stdout);
  expect(two, `${a} s and ${b} s`).toEqual(one); // same seed, same device, same run
});

test.each([
  [["poetry"], /demo is one of calculator.*got "poetry"/],
  [["calculator", "--device", "abacus"], /--device is one of auto, webgpu, wasm, reference, got "abacus"/],
  [["calculator", "--preset", "huge"], /--preset of calculator is one of default, tiny, smoke, got "huge"/],
  [["calculator", "--seed", "-1"], /--seed/],
  [["calculator", "--seed", "1.5"], /--seed is a whole number from 0 to 4294967295, got "1.5"/],
  [["calculator", "--sed", "1"], /--sed/],
  [[], /takes one demo, got 0/],
])("called wrongly (%j) it says what is right and leaves nothing behind", async (args, message) => {
  const { code, stdout, stderr } = await start(args);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/ {4}at /);
  expect([code, stdout]).toEqual([2, ""]);
});

test("a run folder with other options is refused, naming the option", async () => {
  await start([...smoke, "--run", "other"], (text, child) => {
    if (text.includes("run folder")) child.kill("SIGKILL");
  });
  const { code, stderr } = await start([...smoke, "--run", "other", "--steps", "7"]);
  expect(code).toBe(2);
  expect(stderr).toContain("steps 3 there, 7 now");
});

test("a run folder whose file is garbage is refused", async () => {
  const run = mkdtempSync(join(folder, "garbage-"));
  writeFileSync(join(run, "run.json"), "{");
  const { code, stderr } = await start([...smoke, "--run", run]);
  expect(code).toBe(2);
  expect(stderr).toContain("is not a run's file");
});
