// `fulgurite store serve` as a process: its key, a client, SIGTERM, and what is in the folder afterwards. Runs the built CLI.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openHttpStore } from "@fulgurite/trace/http";
import { verifyFileStore } from "@fulgurite/trace/node";
import { afterAll, expect, test } from "vitest";

const cli = join(import.meta.dirname, "../../apps/gateway/dist/cli.js");
const root = mkdtempSync(join(tmpdir(), "fulgurite-serve-cli-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

interface Serving {
  readonly child: ChildProcess;
  readonly url: string;
  readonly ended: Promise<{ code: number | null; stderr: string }>;
}

const serve = (folder: string, env: NodeJS.ProcessEnv, ...more: string[]): Promise<Serving> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [cli, "store", "serve", folder, "--port", "0", "--json", ...more], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let [stdout, stderr] = ["", ""];
    const ended = new Promise<{ code: number | null; stderr: string }>((done) => child.on("close", (code) => done({ code, stderr })));
    child.stderr.on("data", (chunk) => {
      stderr += chunk;
    });
    child.stdout.on("data", (chunk) => {
      stdout += chunk;
      if (stdout.endsWith("\n")) resolve({ child, url: (JSON.parse(stdout) as { url: string }).url, ended });
    });
    void ended.then(() => reject(new Error(`it must serve, got: ${stderr}`)));
  });

test("a worker's claim, spans and end survive SIGTERM and kill -9; a key that nobody chose is said", async () => {
  const folder = join(root, "store");
  const first = await serve(folder, { FULGURITE_TOKEN: "chosen" });
  let store = openHttpStore(first.url, { token: "chosen" });
  await store.enqueue(["a", "b"].map((id) => ({ id, input: 0 })));
  const [claim] = await store.claim("w");
  first.child.kill("SIGTERM");
  expect(await first.ended).toEqual({ code: 0, stderr: "store: ending what is under way\n" });
  expect((await verifyFileStore(folder)).problems).toEqual([]);

  const second = await serve(folder, { FULGURITE_TOKEN: "chosen" });
  store = openHttpStore(second.url, { token: "chosen" });
  expect((await store.finish(claim!.attempt, { status: "succeeded" })).status).toBe("succeeded");
  second.child.kill("SIGKILL");
  expect((await second.ended).code).toBeNull();

  const third = await serve(folder, { FULGURITE_TOKEN: "" });
  third.child.kill("SIGINT");
  const { code, stderr } = await third.ended;
  expect([code, stderr]).toEqual([0, expect.stringMatching(/the key of this run is [\w-]{32} /)]);
  const fourth = await serve(folder, {}, "--token", "given");
  const rollouts = [];
  for await (const { id, status } of openHttpStore(fourth.url, { token: "given" }).rollouts()) rollouts.push(`${id} ${status}`);
  expect(rollouts).toEqual(["a succeeded", "b queued"]);
  fourth.child.kill("SIGTERM");
  expect((await fourth.ended).code).toBe(0);
});
