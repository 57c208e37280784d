// The names under which a sampler's policies are asked for: the one that is trained, and each adapter that is loaded beside it, by its own
// name as on other OpenAI-compatible servers, or by "policy:name". Any other name is the trained one's: an agent keeps what it calls its model.

import type { Sampler } from "@fulgurite/engine";
import type { Json } from "@fulgurite/trace";
import { AgentError } from "./errors.ts";

export interface Served {
  readonly sampler: Sampler;
  /** What the trained policy is called. */
  readonly modelName: string;
}

const namesOf = ({ sampler, modelName }: Served): readonly string[] => [
  modelName,
  ...(sampler.adapters ?? []).filter((name) => name !== modelName),
];

const unknown = (served: Served, got: string): AgentError =>
  new AgentError("not-found", `endpoint: the model must be one of ${namesOf(served).join(", ")}, got ${got}; load the adapter first`, {
    param: "model",
  });

/** The adapter that a request's model names; undefined: the trained policy's. @throws AgentError "not-found" for "policy:name" of none. */
export const adapterOf = (served: Served, model: string | undefined): string | undefined => {
  const { sampler, modelName } = served;
  if (model === undefined || model === modelName) return undefined;
  const adapters = sampler.adapters ?? [];
  if (adapters.includes(model)) return model;
  if (!model.startsWith(`${modelName}:`)) return undefined;
  const name = model.slice(modelName.length + 1);
  if (!adapters.includes(name)) throw unknown(served, model);
  return name;
};

const toModel = ({ sampler, modelName }: Served, id: string): Json => ({
  ...{ id, object: "model", created: 0, owned_by: "fulgurite" },
  ...(id === modelName ? { policy_version: sampler.policyVersion } : { parent: modelName }),
});

export const listModels = (served: Served): Json => ({ object: "list", data: namesOf(served).map((name) => toModel(served, name)) });

/** @throws AgentError "not-found". */
export const findModel = (served: Served, id: string): Json => {
  if (!namesOf(served).includes(id)) throw unknown(served, id);
  return toModel(served, id);
};
