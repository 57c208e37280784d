// Of what lives in tests/peers: as much as a bench uses.
declare module "dexie" {
  export default class Dexie {
    constructor(name: string);
    version(version: number): { stores(schema: Readonly<Record<string, string>>): unknown };
    table(name: string): { put(item: unknown): Promise<unknown>; toArray(): Promise<unknown[]> };
  }
}
