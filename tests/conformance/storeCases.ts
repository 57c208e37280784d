// Which stores there are, what each can do, and where each runs. A store that cannot run here says why.
import { createMemoryStore, type Store, type StoreOptions } from "@fulgurite/trace";
import { openHttpStore, serveStore } from "@fulgurite/trace/http";

export type Spoil = (store: string, file: { readonly resource: string; readonly path: string; readonly sha256: string }) => Promise<void>;

export interface StoreCase {
  readonly name: string;
  /** What is stored outlives the object. */
  readonly persists: boolean;
  /** Two objects may have one store open at once. */
  readonly shared: boolean;
  /** Calls may overtake each other on their way to it. */
  readonly isFarAway?: boolean;
  /** Opens the store of that name: a new one, or what was stored before under it. */
  readonly open: (name: string, options: StoreOptions) => Promise<Store>;
  /** Flips a bit in a file of a resource's only version, behind the store's back. */
  readonly spoil?: Spoil;
  /** Leaves the store's disk without room for another byte, until the returned function is called. */
  readonly fillDisk?: (store: string) => () => void;
  /** Why it cannot run here. */
  readonly skip?: string;
}

export const inNode: boolean = typeof process !== "undefined" && process.versions?.node !== undefined;

const absent = (name: string, skip: string): StoreCase => ({
  name,
  persists: true,
  shared: false,
  skip,
  open: () => Promise.reject(new Error(skip)),
});

const here = async (): Promise<StoreCase[]> => {
  if (inNode) {
    const { fakeIndexedDbCase, filesCase } = await import("./storeCasesInNode.ts");
    return [fakeIndexedDbCase, filesCase, absent("IndexedDB", "Node has none; the browser project runs it in Chromium")];
  }
  const { openIndexedDbStore } = await import("@fulgurite/trace/indexedDb");
  const { fillIndexedDb, spoilIndexedDb } = await import("./indexedDbDamage.ts");
  return [
    { name: "IndexedDB", persists: true, shared: true, open: openIndexedDbStore, spoil: spoilIndexedDb, fillDisk: fillIndexedDb },
    absent("fake-indexeddb", "it stands in where there is no IndexedDB"),
    absent("files", "a browser has no folder of ours"),
  ];
};

const servers = new Map<string, (request: Request) => Promise<Response>>();

/** Both sides of HTTP in one process, without a socket. What is redacted is redacted before it is sent. */
const openOverHttp: StoreCase["open"] = async (name, options) => {
  const { redact: _, ...served } = options;
  const serve = servers.get(name) ?? serveStore(createMemoryStore(served));
  servers.set(name, serve);
  return openHttpStore("http://store.test/", { ...options, fetch: (url, init) => serve(new Request(url, init)) });
};

export const storeCases: StoreCase[] = [
  { name: "HTTP", persists: true, shared: true, isFarAway: true, open: openOverHttp },
  { name: "memory", persists: false, shared: false, open: async (_name, options) => createMemoryStore(options) },
  ...(await here()),
];
