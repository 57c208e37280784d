// A model call's span and the data of a `model_request` event: token ids and log-probs in the places where v1.0's readers look.

import { ATTRIBUTES } from "../attributes.ts";
import type { Attributes, AttributeValue, Json, Rollout, StoredSpan } from "../vocabulary.ts";
import { isObject, jsonOf, numberOf, objectOf, present, without } from "./objects.ts";
import type { JsonObject } from "./shapes.ts";

const PROMPT_IDS = "prompt_token_ids";

const firstChoice = (response: JsonObject): JsonObject => objectOf(Array.isArray(response.choices) ? response.choices[0] : undefined);

const withFirstChoice = (response: JsonObject, choice: JsonObject): JsonObject => ({
  ...response,
  choices: [choice, ...(Array.isArray(response.choices) ? response.choices.slice(1) : [])],
});

const idsOf = (value: Json | undefined): Int32Array | undefined =>
  Array.isArray(value) && value.length > 0 ? Int32Array.from(value as number[]) : undefined;

/** One that is missing or no number makes the list no list. */
const logprobsOf = (choice: JsonObject): Float32Array | undefined => {
  const { content, token_logprobs } = objectOf(choice.logprobs);
  const list = Array.isArray(content) ? content.map((entry) => objectOf(entry).logprob) : token_logprobs;
  if (!Array.isArray(list) || list.length === 0) return undefined;
  return list.every((value) => numberOf(value) !== undefined) ? Float32Array.from(list as number[]) : undefined;
};

/** The response with the arrays in their places, where it has none of its own there. */
const withTokens = (attributes: Attributes): JsonObject => {
  const response = objectOf(attributes[ATTRIBUTES.response]);
  const prompt = attributes[ATTRIBUTES.promptTokens];
  const ids = attributes[ATTRIBUTES.responseTokens];
  const logprobs = attributes[ATTRIBUTES.samplerLogprobs];
  const choice = present({
    token_ids: ids instanceof Int32Array ? [...ids] : undefined,
    logprobs:
      logprobs instanceof Float32Array
        ? { content: Array.from(logprobs, (logprob) => ({ logprob: Number.isFinite(logprob) ? logprob : null })) }
        : undefined,
  });
  return withFirstChoice(
    { ...(prompt instanceof Int32Array ? { [PROMPT_IDS]: [...prompt] } : {}), ...response },
    {
      ...choice,
      ...firstChoice(response),
    },
  );
};

const withoutTokens = (response: JsonObject): JsonObject =>
  without(withFirstChoice(response, without(firstChoice(response), "token_ids", "logprobs")), PROMPT_IDS);

export const toModelRequest = ({ attributes, startMs, endMs, status }: StoredSpan): JsonObject => {
  const text = (name: string): string => (typeof attributes[name] === "string" ? (attributes[name] as string) : "");
  const model = text(ATTRIBUTES.requestModel);
  const version = numberOf(attributes[ATTRIBUTES.policyVersion]) ?? 0;
  const reasons = attributes[ATTRIBUTES.finishReasons];
  return present({
    model,
    model_version: version,
    request:
      jsonOf(attributes[ATTRIBUTES.request]) ??
      present({
        model,
        temperature: numberOf(attributes[ATTRIBUTES.requestTemperature]),
        max_tokens: numberOf(attributes[ATTRIBUTES.requestMaxTokens]),
        seed: numberOf(attributes[ATTRIBUTES.requestSeed]),
      }),
    response: withTokens(attributes),
    server: { model, endpoint: "", version },
    latency_ms: endMs - startMs,
    http_status: status === "ok" ? 200 : 500,
    status,
    retry_count: 0,
    usage: null,
    finish_reason: Array.isArray(reasons) ? ((reasons[0] as Json | undefined) ?? null) : null,
    error: status === "ok" ? undefined : { message: text(ATTRIBUTES.errorType) },
  });
};

/** `isWhole`: the response stays as it came, arrays included. */
export const fromModelRequest = (data: JsonObject, mode: Rollout["mode"], turn: number, isWhole: boolean): Attributes => {
  const request = objectOf(data.request);
  const response = objectOf(data.response);
  const choice = firstChoice(response);
  const prompt = idsOf(response[PROMPT_IDS]) ?? idsOf(choice[PROMPT_IDS]);
  const ids = idsOf(choice.token_ids);
  const id = typeof response.id === "string" && response.id !== "" ? response.id : undefined;
  const finish = choice.finish_reason ?? data.finish_reason;
  const attributes: Record<string, AttributeValue | undefined> = {
    [ATTRIBUTES.operation]: response.object === "text_completion" ? "text_completion" : "chat",
    [ATTRIBUTES.provider]: "agentlightning",
    [ATTRIBUTES.requestModel]: typeof data.model === "string" ? data.model : undefined,
    [ATTRIBUTES.requestTemperature]: numberOf(request.temperature),
    [ATTRIBUTES.requestMaxTokens]: numberOf(request.max_tokens),
    [ATTRIBUTES.requestSeed]: numberOf(request.seed),
    [ATTRIBUTES.responseId]: id,
    [ATTRIBUTES.finishReasons]: typeof finish === "string" ? [finish] : undefined,
    [ATTRIBUTES.inputTokens]: prompt?.length,
    [ATTRIBUTES.outputTokens]: ids?.length,
    [ATTRIBUTES.mode]: mode,
    [ATTRIBUTES.turn]: turn,
    [ATTRIBUTES.keys]: id === undefined ? undefined : [id],
    [ATTRIBUTES.policyVersion]: numberOf(objectOf(data.server).version) ?? numberOf(data.model_version),
    [ATTRIBUTES.fidelity]: "exact",
    [ATTRIBUTES.promptTokens]: prompt,
    [ATTRIBUTES.responseTokens]: ids,
    [ATTRIBUTES.samplerLogprobs]: logprobsOf(choice),
    [ATTRIBUTES.request]: data.request,
    [ATTRIBUTES.response]: isWhole || !isObject(data.response) ? data.response : withoutTokens(data.response),
    [ATTRIBUTES.errorType]: data.status === "error" ? String(objectOf(data.error).message ?? data.http_status ?? "error") : undefined,
  };
  return Object.fromEntries(Object.entries(attributes).filter((entry): entry is [string, AttributeValue] => entry[1] !== undefined));
};
