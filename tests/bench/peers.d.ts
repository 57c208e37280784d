// Of what lives in tests/peers: as much as a bench uses.
declare module "dexie" {
  export interface Table {
    get<T>(key: unknown): Promise<T | undefined>;
    put(item: unknown, key?: unknown): Promise<unknown>;
    add(item: unknown): Promise<unknown>;
    toArray(): Promise<unknown[]>;
    where(index: string): {
      equals(key: unknown): { count(): Promise<number> };
      between(lower: unknown, upper: unknown): { toArray(): Promise<unknown[]> };
    };
  }
  export default class Dexie {
    constructor(name: string, options?: { readonly chromeTransactionDurability: "relaxed" });
    version(version: number): { stores(schema: Readonly<Record<string, string>>): unknown };
    table(name: string): Table;
    transaction<T>(mode: "rw", tables: readonly Table[], body: () => Promise<T>): Promise<T>;
  }
}

declare module "idb" {
  interface Rows {
    get<T>(key: unknown): Promise<T | undefined>;
    getKey(key: unknown): Promise<unknown>;
    put(item: unknown, key?: unknown): Promise<unknown>;
    add(item: unknown): Promise<unknown>;
  }
  interface Database {
    createObjectStore(name: string, options?: IDBObjectStoreParameters): { createIndex(name: string, keyPath: string[]): unknown };
    transaction(
      names: string | readonly string[],
      mode: "readwrite",
      options: { readonly durability: "relaxed" },
    ): { readonly store: Rows; readonly done: Promise<void>; objectStore(name: string): Rows; commit(): void };
    put(store: string, item: unknown): Promise<unknown>;
    getAll(store: string): Promise<unknown[]>;
    getAllFromIndex(store: string, index: string, range: IDBKeyRange): Promise<unknown[]>;
  }
  export const openDB: (name: string, version: number, callbacks: { upgrade(database: Database): void }) => Promise<Database>;
}
