// The worker that a page's policy lives in, so that training never stalls the page.

import { createBackend, createPolicy, exposePolicy } from "@fulgurite/engine";
import type { StartOptions } from "../edge.ts";
import { checkIn } from "../gpuVerdicts.ts";
import { openWebCache } from "./webCache.ts";

/** Absent in private windows of some browsers: then a GPU is tested at no start, since it would be at every one. */
const check = globalThis.caches && globalThis.crypto?.subtle ? checkIn(openWebCache(caches)) : undefined;

exposePolicy<StartOptions>(self as never, async ({ device, threads, ...options }) =>
  createPolicy({
    ...options,
    backend: await createBackend(device, { ...(threads !== undefined && { threads }), ...(check && { check }) }),
  }),
);
