// The platform's requests and transactions as promises: all that is needed of it here. An append makes two requests, and every
// layer around one is felt.

/** The request's answer. */
export const ask = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Resolves when it is committed. */
export const committed = (transaction: IDBTransaction): Promise<void> =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new DOMException("undone", "AbortError"));
  });

/** The values that a cursor comes by, `limit` of them at most. */
export const askCursor = <T>(request: IDBRequest<IDBCursorWithValue | null>, limit: number): Promise<T[]> =>
  new Promise((resolve, reject) => {
    const found: T[] = [];
    request.onsuccess = () => {
      const cursor = request.result;
      if (cursor) found.push(cursor.value as T);
      if (cursor && found.length < limit) cursor.continue();
      else resolve(found);
    };
    request.onerror = () => reject(request.error);
  });

/** Unless it has ended or is being committed. */
export const undo = (transaction: IDBTransaction): void => {
  try {
    transaction.abort();
  } catch {
    // there is nothing to undo
  }
};
