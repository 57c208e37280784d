// Damage to a resource in IndexedDB, done through the platform's own door.
import type { Spoil } from "./storeCases.ts";

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
