// What happens in a served store, heard as server-sent events for as long as somebody listens. A connection that breaks, or
// falls silent without an end, is opened again, with the id of the last event, after pauses that grow.

import type { StoreEvent } from "../vocabulary.ts";
import type { Timer } from "../waitBounds.ts";
import { PING_MS, readEvents } from "./protocol.ts";
import { PAUSE_GROWTH, PAUSE_MS, type Requests } from "./requests.ts";

const LONGEST_PAUSE_MS = 30_000;
const SILENCE_MS = 3 * PING_MS;

export interface Listening {
  /** Resolves when what happens from now on is heard, or when the server cannot be heard. */
  readonly ready: Promise<void>;
  stop(): void;
}

export const startListening = (fetched: Requests["fetched"], timer: Timer, emit: (event: StoreEvent) => void): Listening => {
  const stopped = new AbortController();
  let isReady = (): void => {};
  const ready = new Promise<void>((resolve) => {
    isReady = resolve;
  });

  const pause = (ms: number): Promise<void> =>
    new Promise((resolve) => {
      const cut = timer(resolve, ms);
      const wake = () => {
        cut();
        resolve();
      };
      stopped.signal.addEventListener("abort", wake, { once: true });
    });

  const follow = async (): Promise<void> => {
    let last: string | undefined;
    let pauseMs = PAUSE_MS;
    while (!stopped.signal.aborted) {
      const connection = new AbortController();
      const end = (): void => connection.abort();
      stopped.signal.addEventListener("abort", end, { once: true });
      let calm = timer(end, SILENCE_MS);
      const onBytes = (): void => {
        calm();
        calm = timer(end, SILENCE_MS);
      };
      try {
        const headers = last === undefined ? {} : { "last-event-id": last };
        const response = await fetched("GET", "/watch", { signal: connection.signal }, headers);
        const isStream = response.headers.get("content-type")?.startsWith("text/event-stream") ?? true; // else a proxy's page
        if (response.ok && response.body && isStream)
          for await (const { event, id, data } of readEvents(response.body, onBytes)) {
            if (stopped.signal.aborted) return;
            pauseMs = PAUSE_MS;
            if (event === "ready") isReady();
            else if (event === "change") emit(data as StoreEvent);
            last = id;
          }
      } catch {
        // events are hints, and writing tells what is wrong; here it is tried again
      } finally {
        calm();
        stopped.signal.removeEventListener("abort", end);
        end(); // what is left of it is nobody's
      }
      isReady(); // a server that cannot be heard does not stop anyone from writing
      if (stopped.signal.aborted) return;
      await pause(pauseMs);
      pauseMs = Math.min(pauseMs * PAUSE_GROWTH, LONGEST_PAUSE_MS);
    }
  };
  void follow();
  return {
    ready,
    stop: () => {
      stopped.abort();
      isReady();
    },
  };
};
