// The worker that a page's policy lives in, so that training never stalls the page.

import { createBackend, createPolicy, exposePolicy } from "@fulgurite/engine";
import type { StartOptions } from "../edge.ts";

exposePolicy<StartOptions>(self as never, async ({ device, threads, ...options }) =>
  createPolicy({ ...options, backend: await createBackend(device, threads === undefined ? {} : { threads }) }),
);
