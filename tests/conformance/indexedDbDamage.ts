// What happens to an IndexedDB behind a store's back: changed bytes, a full disk. Through the platform's own door.
import type { Spoil, StoreCase } from "./storeCases.ts";

export const spoilIndexedDb: Spoil = (store, { resource, path }) =>
  new Promise((resolve, reject) => {
    const opening = indexedDB.open(`fulgurite/${store}`);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const transaction = opening.result.transaction("resources", "readwrite");
      const rows = transaction.objectStore("resources");
      const found = rows.get([resource, 1]);
      found.onsuccess = () => {
        found.result.files[path][0] ^= 1;
        rows.put(found.result);
      };
      transaction.oncomplete = () => {
        opening.result.close();
        resolve();
      };
      transaction.onerror = () => reject(transaction.error);
    };
  });

/** Of every database: there is one quota for all. */
export const fillIndexedDb: NonNullable<StoreCase["fillDisk"]> = () => {
  const { add, put } = IDBObjectStore.prototype;
  IDBObjectStore.prototype.add = IDBObjectStore.prototype.put = () => {
    throw new DOMException("no room", "QuotaExceededError");
  };
  return () => Object.assign(IDBObjectStore.prototype, { add, put });
};
