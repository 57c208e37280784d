// What page and worker say to each other while a policy starts, beside comlink's call: one port, two unions.

import type { LoadProgress } from "../modelFiles.ts";

export type ToPage = { readonly kind: "progress"; readonly progress: LoadProgress } | { readonly kind: "report"; readonly message: string };

export type ToWorker = { readonly kind: "abort" };
