// Server-sent events out: one `data:` line an event, whole UTF-8, a terminal `[DONE]`. The queue is bounded by the answer's
// own length, so writing never waits for a reader; a reader that cancels is told of once.

import type { Json } from "@fulgurite/trace";

export interface EventStream {
  readonly body: ReadableStream<Uint8Array>;
  send(event: Json): void;
  /** `[DONE]`, then the end. */
  done(): void;
  /** The end without `[DONE]`: what came before is truncated. */
  close(): void;
  /** The reader sees this error, as a reader of an aborted fetch does. */
  fail(reason: unknown): void;
}

export const createEventStream = (onCancel: (reason: unknown) => void): EventStream => {
  const encoder = new TextEncoder();
  let open = true;
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  const body = new ReadableStream<Uint8Array>({
    start(given) {
      controller = given;
    },
    cancel(reason) {
      open = false;
      onCancel(reason);
    },
  });
  const write = (data: string): void => {
    if (open) controller?.enqueue(encoder.encode(`data: ${data}\n\n`));
  };
  const close = (): void => {
    if (open) controller?.close();
    open = false;
  };
  return {
    body,
    send: (event) => write(JSON.stringify(event)),
    done() {
      write("[DONE]");
      close();
    },
    close,
    fail(reason) {
      if (open) controller?.error(reason);
      open = false;
    },
  };
};
