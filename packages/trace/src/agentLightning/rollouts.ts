// A rollout as v1.0's rollout object, and back, by what its fields alone say.

import { DEFAULT_CONFIG, isTerminal } from "../status.ts";
import type { Json, Rollout, RolloutStatus, StoredSpan } from "../vocabulary.ts";
import { numberOf, objectOf, without } from "./objects.ts";
import { type AgentLightningRollout, type JsonObject, THEIRS_OF_ROLLOUT } from "./shapes.ts";

const STATES = {
  queued: "queuing",
  running: "running",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "failed",
} as const satisfies Readonly<Record<RolloutStatus, string>>;
export const STATUSES = { queuing: "queued", running: "running", succeeded: "succeeded", failed: "failed" } as const;

/** What already has our name in their metadata. */
const only = (metadata: JsonObject): JsonObject =>
  Object.hasOwn(metadata, THEIRS_OF_ROLLOUT) ? { [THEIRS_OF_ROLLOUT]: metadata[THEIRS_OF_ROLLOUT] as Json } : {};

export const toPlainRollout = (rollout: Rollout, spans: readonly StoredSpan[]): AgentLightningRollout => {
  const kept = objectOf(rollout.metadata[THEIRS_OF_ROLLOUT]);
  const state = STATES[rollout.status];
  const was = objectOf(kept.status);
  const status = {
    state,
    k8s_job_name: null,
    last_attempt_id: spans.at(-1)?.attemptId ?? null,
    error_message: rollout.status === "cancelled" ? "cancelled" : null,
    version: 1,
    created_at: rollout.createdAtMs / 1_000,
    updated_at: (rollout.endedAtMs ?? rollout.createdAtMs) / 1_000,
  };
  return {
    rollout_id: rollout.id,
    input: rollout.input,
    is_train: rollout.mode === "train",
    config: {
      local: null,
      k8s: null,
      timeout_seconds: Math.max(1, Math.ceil(Math.min(rollout.config.timeoutMs, Number.MAX_SAFE_INTEGER) / 1_000)),
      ...objectOf(kept.config),
    },
    metadata: {
      ...("status" in kept ? {} : { batch_idx: null, sample_idx_in_batch: null }),
      ...without(rollout.metadata, THEIRS_OF_ROLLOUT),
      ...(THEIRS_OF_ROLLOUT in kept ? { [THEIRS_OF_ROLLOUT]: kept[THEIRS_OF_ROLLOUT] as Json } : {}),
    },
    // as it was, unless it has moved on since
    status: was.state === state ? { ...status, ...was } : { ...status, version: (numberOf(was.version) ?? 0) + 1 },
  };
};

export const fromPlainRollout = (rollout: AgentLightningRollout, isOurs: boolean): Rollout => {
  const { status, config } = rollout;
  const mine = STATUSES[status.state];
  return {
    id: rollout.rollout_id,
    seq: 1,
    input: rollout.input,
    mode: rollout.is_train ? "train" : "val",
    status: mine,
    config: { ...DEFAULT_CONFIG, timeoutMs: config.timeout_seconds * 1_000 },
    metadata: isOurs ? rollout.metadata : { ...rollout.metadata, [THEIRS_OF_ROLLOUT]: { status, config, ...only(rollout.metadata) } },
    attempts: mine === "queued" ? 0 : 1,
    createdAtMs: status.created_at * 1_000,
    ...(isTerminal(mine) ? { endedAtMs: status.updated_at * 1_000 } : {}),
  };
};
