// Agent Lightning v1.0's rollout object and events, as far as they are read here, and the keys beside them that are ours.

import type { Json } from "../vocabulary.ts";

export type JsonObject = Readonly<Record<string, Json>>;

export interface AgentLightningEvent {
  readonly event_type: string;
  readonly rollout_id: string;
  readonly attempt_id: string;
  /** Seconds since 1970. */
  readonly timestamp: number;
  readonly data: JsonObject;
}

export interface AgentLightningRollout {
  readonly rollout_id: string;
  readonly input: Json;
  readonly is_train: boolean;
  readonly config: JsonObject & { readonly timeout_seconds: number };
  readonly metadata: JsonObject;
  readonly status: JsonObject & {
    readonly state: "queuing" | "running" | "succeeded" | "failed";
    readonly last_attempt_id: string | null;
    readonly error_message: string | null;
    readonly version: number;
    readonly created_at: number;
    readonly updated_at: number;
  };
  readonly fulgurite?: JsonObject;
}

export interface AgentLightningTrace {
  readonly rollout: AgentLightningRollout;
  /** In the order of the store; of all attempts. */
  readonly events: readonly AgentLightningEvent[];
}

/** Our key in their objects. */
export const OURS = "fulgurite";
/** What was theirs, on our spans and on our rollouts' metadata. */
export const THEIRS = "agentlightning.event";
export const THEIRS_OF_ROLLOUT = "agentlightning";
