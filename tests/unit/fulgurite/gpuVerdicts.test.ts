// Verdicts on a GPU lie beside the model files, under a name of their own.

import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { verdictsIn } from "../../../packages/fulgurite/src/gpuVerdicts.ts";
import { openFolderCache } from "../../../packages/fulgurite/src/node/folderCache.ts";

test("what is written is read again; another name and a damaged file are no verdict", async () => {
  const folder = await mkdtemp(join(tmpdir(), "fulgurite-verdicts-"));
  try {
    const verdicts = verdictsIn(openFolderCache(folder));
    expect(await verdicts.read("a")).toBeUndefined();
    await verdicts.write("a", '{"format":1}');
    expect(await verdicts.read("a")).toBe('{"format":1}');
    expect(await verdicts.read("b")).toBeUndefined();
    for (const name of await readdir(folder)) if (!name.endsWith(".json")) await writeFile(join(folder, name), "{}");
    expect(await verdicts.read("a")).toBeUndefined();
  } finally {
    await rm(folder, { recursive: true });
  }
});
