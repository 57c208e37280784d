// What a Store promises about resources: versions that grow and never change, that can be unpublished, and whose bytes are what was published.
import { type ResourceEntry, type StoreEvent, verifyStore } from "@fulgurite/trace";
import { expect } from "vitest";
import { codeOf, collect } from "../outcomes.ts";
import { describeStores, openWorld, settle } from "./world.ts";

describeStores((storeCase, test_, where) => {
  const persisted = where(storeCase.persists, "it does not persist");
  const spoiled = where(storeCase.spoil, "nothing reaches its bytes from outside");

  test_("published versions grow and never change", async () => {
    const { store, time } = await openWorld(storeCase);
    const adapter = {
      name: "policy",
      kind: "lora",
      metadata: { step: 1 },
      files: { "a.bin": Uint8Array.of(1, 2, 3), "b.bin": new Uint8Array(0) },
    } as const;
    const first = await store.publish(adapter);
    const manifest = {
      "a.bin": { sha256: "039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81", byteLength: 3 },
      "b.bin": { sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", byteLength: 0 },
    };
    expect(first).toEqual({ ...adapter, manifest, version: 1, createdAtMs: 1_000 });
    expect(await collect(store.resources())).toEqual([
      { name: "policy", kind: "lora", metadata: { step: 1 }, manifest, version: 1, createdAtMs: 1_000 },
    ]);
    time.now = 2_000;
    expect(await store.publish({ ...adapter, version: 1 })).toEqual(first);
    expect(await codeOf(store.publish({ ...adapter, version: 1, metadata: { step: 2 } }))).toBe("conflict");
    expect(await codeOf(store.publish({ ...adapter, version: 1, files: { ...adapter.files, "a.bin": Uint8Array.of(1, 2, 4) } }))).toBe(
      "conflict",
    );
    expect(await codeOf(store.publish({ ...adapter, version: 1, files: { "a.bin": Uint8Array.of(1, 2, 3) } }))).toBe("conflict");
    expect(await codeOf(store.publish({ ...adapter, version: 1, kind: "model" }))).toBe("conflict");
    expect((await store.publish({ ...adapter, version: 5, files: { x: Uint8Array.of(9) } })).version).toBe(5);
    expect(await codeOf(store.publish({ ...adapter, version: 3 }))).toBe("conflict");
    expect((await store.publish(adapter)).version).toBe(6);
    expect((await store.publish({ name: "prompt", kind: "prompt", files: {} })).version).toBe(1);
    expect(await store.resource("policy", 1)).toEqual(first);
    expect((await store.resource("policy", 5))?.files).toEqual({ x: Uint8Array.of(9) });
    expect((await store.resource("policy"))?.version).toBe(6);
    expect(await store.resource("policy", 2)).toBeUndefined();
    expect(await store.resource("nobody")).toBeUndefined();
    expect((await store.stats()).resources).toBe(4);
  });

  test_("publishers at once get versions of their own", async () => {
    const { store } = await openWorld(storeCase);
    const all = await Promise.all(
      Array.from({ length: 5 }, (_, index) => store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(index) } })),
    );
    expect(all.map(({ version }) => version).sort()).toEqual([1, 2, 3, 4, 5]);
  });

  test_("unpublish deletes a version with its files, never the latest, and gives no version again", async () => {
    const { store } = await openWorld(storeCase);
    const shared = Uint8Array.of(1, 2, 3);
    const publish = (name: string, byte: number) =>
      store.publish({ name, kind: "lora", files: { shared, own: Uint8Array.of(byte) }, metadata: { byte } });
    for (const byte of [1, 2, 3]) await publish("p", byte);
    await publish("p/1", 1); // of another name, with the same bytes
    const heard: StoreEvent[] = [];
    store.watch((event) => void heard.push(event));
    await settle(); // until a listener over HTTP is heard
    expect(await store.unpublish("p", 1)).toBe(true);
    expect(await store.unpublish("p", 1)).toBe(false);
    expect(await store.unpublish("p", 9)).toBe(false);
    expect(await store.unpublish("nobody", 1)).toBe(false);
    await expect(store.unpublish("p", 3)).rejects.toThrow(/resource p: the latest version stays.* got 3/);
    expect(await codeOf(store.unpublish("p/1", 1))).toBe("conflict");
    await settle();
    expect(heard).toEqual([{ kind: "unpublished", name: "p", version: 1 }]);
    expect(await store.resource("p", 1)).toBeUndefined();
    expect((await collect(store.resources())).map(({ name, version }) => `${name}@${version}`)).toEqual(["p@2", "p@3", "p/1@1"]);
    expect((await store.resource("p", 2))?.files).toEqual({ shared, own: Uint8Array.of(2) });
    expect((await store.resource("p/1"))?.files).toEqual({ shared, own: Uint8Array.of(1) });
    expect((await store.stats()).resources).toBe(3);
    expect(await codeOf(store.publish({ name: "p", kind: "lora", version: 1, files: {} }))).toBe("conflict");
    expect((await publish("p", 1)).version).toBe(4);
    expect((await store.resource("p"))?.files).toEqual({ shared, own: Uint8Array.of(1) });
  });

  persisted("what was unpublished stays so after reopening, and the versions go on", async () => {
    const world = await openWorld(storeCase);
    for (const byte of [1, 2, 3])
      await world.store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(byte), g: Uint8Array.of(7) } });
    await world.store.unpublish("p", 2);
    await world.store.unpublish("p", 1);
    await world.store.close();
    const store = await world.again();
    expect((await collect(store.resources())).map(({ version }) => version)).toEqual([3]);
    expect((await store.resource("p"))?.files).toEqual({ f: Uint8Array.of(3), g: Uint8Array.of(7) });
    expect(await store.unpublish("p", 1)).toBe(false);
    expect((await store.publish({ name: "p", kind: "prompt", files: { f: Uint8Array.of(1) } })).version).toBe(4);
    expect((await store.resource("p"))?.files).toEqual({ f: Uint8Array.of(1) });
  });

  spoiled("a resource whose bytes were changed is an error, never an answer; publishing the same again says so or heals it", async () => {
    const world = await openWorld(storeCase);
    const files = { w: Uint8Array.of(1, 2, 3), whole: Uint8Array.of(4) };
    await world.store.publish({ name: "p", kind: "lora", files });
    await world.store.publish({ name: "q", kind: "lora", files: { whole: Uint8Array.of(4) } });
    const [{ manifest }] = (await collect(world.store.resources())) as [ResourceEntry];
    expect(await verifyStore(world.store)).toEqual({ rollouts: 0, attempts: 0, spans: 0, resources: 2, states: 0, problems: [] });
    await storeCase.spoil!(world.name, { resource: "p", path: "w", sha256: manifest.w!.sha256 });
    const error = await world.store.resource("p").catch((caught) => caught);
    expect([error.code, error.message]).toEqual(["corrupt", expect.stringMatching(/039058c6.*got/)]);
    expect((await world.store.resource("q"))?.files).toEqual({ whole: Uint8Array.of(4) });
    expect((await collect(world.store.resources())).length).toBe(2); // what it should be is still told
    expect((await verifyStore(world.store)).problems).toEqual([expect.stringMatching(/039058c6/)]);
    expect((await world.store.publish({ name: "p", kind: "lora", files })).version).toBe(2);
    expect((await world.store.resource("p"))?.files).toEqual(files);
  });
});
