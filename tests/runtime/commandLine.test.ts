// The command as npm links it: what `npx fulgurite` runs in a checkout that was installed before it was built.
import { execFileSync } from "node:child_process";
import { accessSync, constants, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");

test("npx fulgurite is the command line, and its file is there without a build", () => {
  const { bin } = JSON.parse(readFileSync(join(root, "apps/gateway/package.json"), "utf8")) as { bin: { fulgurite: string } };
  const tracked = execFileSync("git", ["ls-files", join("apps/gateway", bin.fulgurite)], { cwd: root, encoding: "utf8" });
  expect(tracked).toBe("apps/gateway/bin/fulgurite.mjs\n");
  accessSync(join(root, "apps/gateway", bin.fulgurite), constants.X_OK);
  const said = execFileSync("npx", ["--no-install", "fulgurite", "store", "--help"], { cwd: root, encoding: "utf8" });
  expect(said).toContain("usage: fulgurite store");
});
