// A store's events as server-sent events. Who was cut off comes back with the id of the last that it heard, and hears the rest
// if that is not too long ago: events are hints, so what is missed is not lost.

import { platformRandom } from "../ids.ts";
import type { Json, Store, StoreEvent } from "../vocabulary.ts";
import type { Timer } from "../waitBounds.ts";
import { encodeEvent, PING_MS } from "./protocol.ts";

/** Events that a listener may have missed. */
const REMEMBERED = 1_000;

/** The store's events for whoever is connected, and the last of them for who was not for a moment. */
export const createBroadcast = (store: Store, timer: Timer): ((lastEventId: string | null, signal: AbortSignal) => Response) => {
  // minted for the first who asks, for an edge worker may not ask for randomness while it loads; what happened before, nobody heard
  let minted: string | undefined;
  const epochOf = (): string => (minted ??= Array.from(platformRandom(6), (byte) => byte.toString(16).padStart(2, "0")).join(""));
  const past: StoreEvent[] = [];
  let count = 0; // of all events; past holds the last of them
  const listeners = new Set<(event: StoreEvent, id: string) => void>();
  store.watch((event) => {
    count += 1;
    past.push(event);
    if (past.length > REMEMBERED) past.shift();
    for (const listener of listeners) listener(event, `${epochOf()}.${count}`);
  });

  return (lastEventId: string | null, signal: AbortSignal): Response => {
    const epoch = epochOf();
    let stop = (): void => {};
    const body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          const encoder = new TextEncoder();
          const send = (text: string): void => {
            // who does not read is sent away, and may come back with the id of the last that was read
            if ((controller.desiredSize ?? 0) < -REMEMBERED) end();
            else controller.enqueue(encoder.encode(text));
          };
          const listener = (event: StoreEvent, id: string) => send(encodeEvent({ id, event: "change", data: event as unknown as Json }));
          let stopPing = (): void => {};
          const ping = (): void => {
            stopPing = timer(() => {
              ping();
              send(": ping\n\n");
            }, PING_MS);
          };
          stop = () => {
            listeners.delete(listener);
            signal.removeEventListener("abort", end);
            stopPing();
          };
          const end = (): void => {
            stop();
            controller.close();
          };
          signal.addEventListener("abort", end, { once: true });
          const [lastEpoch, last] = (lastEventId ?? "").split(".");
          const since = lastEpoch === epoch ? count - Number(last) : 0;
          const missed = since > 0 && since <= past.length ? since : 0; // of another epoch, or too long ago: they were hints
          send(encodeEvent({ id: `${epoch}.${count - missed}`, event: "ready", data: {} }));
          if (missed > 0)
            for (const [index, event] of past.slice(-missed).entries()) listener(event, `${epoch}.${count - missed + index + 1}`);
          listeners.add(listener);
          ping();
          if (signal.aborted) end();
        },
        cancel: () => stop(),
      },
      { highWaterMark: 0 },
    );
    return new Response(body, { headers: { "content-type": "text/event-stream", "cache-control": "no-store" } });
  };
};
