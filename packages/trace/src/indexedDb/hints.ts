// What one tab tells the others of a store: that something changed. Hints may be late and may be lost with their tab; what is
// true is in the database.

import type { StoreEvent } from "../vocabulary.ts";

/** A message between tabs of one store. */
interface TabMessage {
  readonly magic: "fulgurite-hints";
  readonly v: 1;
  readonly events: readonly StoreEvent[];
}

/** A message costs as much as a fifth of an append: those of one frame of a screen share one. Tabs that nobody sees tell within a second. */
const HINT_EVERY_MS = 16;

const isTabMessage = (data: Partial<TabMessage> | null): data is TabMessage => data?.magic === "fulgurite-hints" && data.v === 1;

export interface TabHints {
  readonly hasOtherWriters: true;
  announce(events: readonly StoreEvent[]): void;
  connect(emit: (events: readonly StoreEvent[]) => void): void;
  /** Tells the rest. */
  close(): void;
}

export const openHints = (channelName: string): TabHints => {
  let channel = typeof BroadcastChannel === "undefined" ? undefined : new BroadcastChannel(channelName);
  // Node's channel keeps the process alive unless told; browsers' has no such method
  (channel as unknown as { unref?(): void } | undefined)?.unref?.();
  let events: StoreEvent[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const tell = () => {
    channel?.postMessage({ magic: "fulgurite-hints", v: 1, events } satisfies TabMessage);
    events = [];
    timer = undefined;
  };
  return {
    hasOtherWriters: true,
    announce: (more) => {
      events.push(...more);
      timer ??= setTimeout(tell, HINT_EVERY_MS);
    },
    connect: (emit) => {
      if (channel) channel.onmessage = ({ data }) => isTabMessage(data) && emit(data.events);
    },
    close: () => {
      clearTimeout(timer);
      tell();
      channel?.close();
      channel = undefined;
    },
  };
};
