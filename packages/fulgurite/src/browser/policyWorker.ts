// The worker that a page's policy lives in, so that training never stalls the page, and weights never pass through it.

import { createBackend, exposePolicy } from "@fulgurite/engine";
import type { StartOptions } from "../edge.ts";
import { checkIn } from "../gpuVerdicts.ts";
import { startFrom } from "../weightPlace.ts";
import type { ToPage, ToWorker } from "./startMessages.ts";
import { openWebCache } from "./webCache.ts";

/** Absent in private windows of some browsers: then a GPU is tested at no start, since it would be at every one. */
const check = globalThis.caches && globalThis.crypto?.subtle ? checkIn(openWebCache(caches)) : undefined;

exposePolicy<StartOptions & { readonly port: MessagePort }>(self as never, async ({ port, ...options }) => {
  const { device, threads, precision } = options;
  const controller = new AbortController();
  port.onmessage = ({ data }: MessageEvent<ToWorker>) => {
    if (data.kind === "abort") controller.abort();
  };
  const send = (message: ToPage): void => port.postMessage(message);
  const given = { ...(threads !== undefined && { threads }), ...(precision && { precision }) };
  const backend = await createBackend(device, { ...given, ...(check && { check }) });
  try {
    return await startFrom(options, backend, {
      signal: controller.signal,
      onProgress: (progress) => send({ kind: "progress", progress }),
      onReport: (message) => send({ kind: "report", message }),
    });
  } finally {
    port.close();
  }
});
