// Databases as past releases made them: fixtures, not to be changed with schema.ts. Runs wherever there is an IndexedDB.

/** Rejects, too, when somebody does not let go. */
export const ask = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    if ("onblocked" in request)
      (request as unknown as IDBOpenDBRequest).onblocked = () => reject(new Error("blocked: the store kept its handle"));
  });

/** What version 1 made, and version 2 kept. */
const makeFirstVersion = (db: IDBDatabase) => {
  const rollouts = db.createObjectStore("rollouts", { keyPath: "id" });
  rollouts.createIndex("bySeq", "seq", { unique: true });
  rollouts.createIndex("byStatus", ["status", "seq"]);
  const attempts = db.createObjectStore("attempts", { keyPath: ["rolloutId", "id"] });
  attempts.createIndex("bySequence", ["rolloutId", "sequence"], { unique: true });
  attempts.createIndex("byHeartbeat", ["status", "lastHeartbeatMs"]);
  const spans = db.createObjectStore("spans", { keyPath: ["rolloutId", "attemptId", "id"] });
  spans.createIndex("bySeq", "seq", { unique: true });
  spans.createIndex("byRollout", ["rolloutId", "seq"]);
  spans.createIndex("byAttempt", ["rolloutId", "attemptId", "seq"]);
  db.createObjectStore("resources", { keyPath: ["name", "version"] });
  db.createObjectStore("states").put(Uint8Array.of(7), "cursor");
  return { rollouts, attempts, spans };
};

const RUNNING = {
  ...{ id: "a", seq: 4, input: 1, mode: "train", status: "running", metadata: {}, attempts: 1, createdAtMs: 1 },
  config: { timeoutMs: 1_000, maxAttempts: 2, retryOn: ["unresponsive"] },
};
const ATTEMPT = { rolloutId: "a", id: "t", sequence: 1, status: "running", workerId: "w", startedAtMs: 5, lastHeartbeatMs: 6 };

const spanOf = (id: string, seq: number) => ({
  ...{ rolloutId: "a", attemptId: "t", id, seq, name: "n", startMs: 0, endMs: 0, status: "ok" },
  attributes: { tokens: Int32Array.of(seq) },
});

/** A database `fulgurite/<name>`: one rollout, "a", queued; of `spanCount` spans (s1, s2 …), if there are any, it runs. */
export const openFirstVersion = (name: string, spanCount = 0): Promise<IDBDatabase> => {
  const request = indexedDB.open(`fulgurite/${name}`, 1);
  request.onupgradeneeded = () => {
    const { rollouts, attempts, spans } = makeFirstVersion(request.result);
    rollouts.put(spanCount === 0 ? { ...RUNNING, status: "queued", attempts: 0 } : RUNNING);
    if (spanCount > 0) attempts.put(ATTEMPT);
    for (let seq = 1; seq <= spanCount; seq++) spans.put(spanOf(`s${seq}`, seq));
  };
  return ask(request);
};

/** The same, and what was counted beyond what is there. Without `spanCount`, two spans: s2 at 7, s1 at 8. */
export const openSecondVersion = (name: string, spanCount = 0): Promise<IDBDatabase> => {
  const request = indexedDB.open(`fulgurite/${name}`, 2);
  request.onupgradeneeded = () => {
    const db = request.result;
    const { rollouts, attempts, spans } = makeFirstVersion(db);
    const counters = db.createObjectStore("counters");
    counters.put(9, "rolloutSeq"); // what came after seq 4 was forgotten
    counters.put(Math.max(20, spanCount), "spanSeq");
    rollouts.put(RUNNING);
    attempts.put(ATTEMPT);
    for (let seq = 1; seq <= spanCount; seq++) spans.put(spanOf(`s${seq}`, seq));
    if (spanCount > 0) return;
    spans.put(spanOf("s2", 7));
    spans.put(spanOf("s1", 8));
  };
  return ask(request);
};
