// Where downloaded model files are kept between loads: a door with two implementations, node/folderCache.ts and
// browser/webCache.ts. An entry is never patched, only replaced, so there is one for each name: a new revision takes the old
// one's place. Nothing evicts; a folder or a browser's storage is cleared by its owner.

export interface ModelCache {
  /**
   * The bytes of `name` in this `version` (a commit or an ETag). Absent, of another version, torn or corrupt: undefined, since all
   * of them are mended by a download. Rejects where the storage itself fails.
   */
  read(name: string, version: string, signal?: AbortSignal): Promise<Uint8Array | undefined>;
  /** Replaces the entry at once or not at all. Rejects where there is no room. */
  write(name: string, version: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void>;
  /** Absent is fine. */
  remove(name: string): Promise<void>;
}
