// What unpublishing and damage do to a folder: bytes leave the disk at once, shared ones stay, damaged ones are set aside.
import { copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compactFileStore, type FileStoreOptions, openFileStore, verifyFileStore } from "@fulgurite/trace/node";
import { expect, test } from "vitest";

const root = mkdtempSync(join(tmpdir(), "fulgurite-resources-"));
let names = 0;
const newFolder = (): string => join(root, `store${++names}`);
const open = (folder: string, options: FileStoreOptions = {}) =>
  openFileStore(folder, {
    onReport: (message) => {
      throw new Error(`nothing was damaged, got the report: ${message}`);
    },
    ...options,
  });
const blobsOf = (folder: string): string[] => readdirSync(join(folder, "blobs"));
const logOf = (folder: string): string =>
  readdirSync(join(folder, "log"))
    .map((name) => readFileSync(join(folder, "log", name), "utf8"))
    .join("");
const adapter = (...bytes: number[]) =>
  ({
    name: "p",
    kind: "lora",
    files: { config: Uint8Array.of(9), weights: Uint8Array.from(bytes) },
    metadata: { secret: `made of ${bytes}` },
  }) as const;

test("unpublishing deletes the blobs that nothing else names, and the store is whole afterwards", async () => {
  const folder = newFolder();
  const store = await open(folder);
  await store.publish(adapter(1));
  await store.publish(adapter(2));
  expect(blobsOf(folder).length).toBe(3); // the config is shared
  await store.unpublish("p", 1);
  expect(blobsOf(folder).length).toBe(2);
  await store.publish(adapter(1)); // the same bytes come again
  expect((await store.resource("p"))?.files.weights).toEqual(Uint8Array.of(1));
  await store.close();
  expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [], blobs: 3 });
});

test("a process that died between the record and the blob leaves a store that deletes it when it is opened, or compacted", async () => {
  for (const finish of ["open", "compact"] as const) {
    const folder = newFolder();
    const store = await open(folder);
    await store.publish(adapter(1));
    await store.publish(adapter(2));
    const { manifest } = (await store.resource("p", 1))!;
    const blob = join(folder, "blobs", manifest.weights!.sha256);
    copyFileSync(blob, `${folder}.blob`);
    await store.unpublish("p", 1);
    await store.close();
    copyFileSync(`${folder}.blob`, blob); // as if it had not come to it
    if (finish === "open") await (await open(folder)).close();
    else await compactFileStore(folder);
    expect(existsSync(blob), finish).toBe(false);
    expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [] });
  }
});

test("compact takes the record of an unpublished version off the disk, and the versions go on", async () => {
  const folder = newFolder();
  const store = await open(folder, { rotateBytes: 300 }); // a record or two a file
  for (const byte of [1, 2, 3]) await store.publish(adapter(byte));
  await store.unpublish("p", 2);
  await store.unpublish("p", 1);
  await store.enqueue([{ id: "a", input: 1 }]);
  await store.close();
  await compactFileStore(folder);
  expect(logOf(folder)).not.toMatch(/made of [12]/);
  expect(logOf(folder)).toContain("made of 3");
  expect(await verifyFileStore(folder)).toMatchObject({ problems: [], notes: [] });
  const again = await open(folder);
  expect((await again.publish(adapter(4))).version).toBe(4);
  expect((await again.resource("p", 3))?.metadata).toEqual({ secret: "made of 3" });
  expect(await again.stats()).toMatchObject({ resources: 2, rollouts: { queued: 1 } });
  await again.close();
});

test("a damaged blob is set aside when it is read, and publishing the same bytes puts it right", async () => {
  const folder = newFolder();
  const reports: string[] = [];
  const store = await open(folder, { onReport: (message) => reports.push(message) });
  const { manifest } = await store.publish(adapter(1, 2, 3));
  const blob = join(folder, "blobs", manifest.weights!.sha256);
  writeFileSync(blob, Uint8Array.of(1, 2, 4));
  expect((await verifyFileStore(`${folder}`).catch((error) => error)).code).toBe("locked");
  await expect(store.resource("p")).rejects.toMatchObject({ code: "corrupt" });
  expect(reports).toEqual([expect.stringMatching(/set aside as .*quarantine/)]);
  expect(readdirSync(join(folder, "quarantine")).map((name) => readFileSync(join(folder, "quarantine", name)))).toEqual([
    Buffer.of(1, 2, 4),
  ]);
  await expect(store.resource("p")).rejects.toThrow("got no file");
  await store.publish(adapter(1, 2, 3));
  expect((await store.resource("p", 1))?.files.weights).toEqual(Uint8Array.of(1, 2, 3));
  writeFileSync(blob, Uint8Array.of(0)); // damaged, and nobody has read it yet
  await store.publish(adapter(1, 2, 3));
  expect((await store.resource("p"))?.files.weights).toEqual(Uint8Array.of(1, 2, 3));
  await store.close();
  expect(await verifyFileStore(folder)).toMatchObject({ problems: [], quarantined: [expect.stringContaining("quarantine")] });
});
