// The attribute names that toTransitions reads. OpenTelemetry GenAI names (still in development there, so our table is
// the only place that spells them) plus ours, which start with "fulgurite.".

export const ATTRIBUTES = {
  operation: "gen_ai.operation.name",
  provider: "gen_ai.provider.name",
  requestModel: "gen_ai.request.model",
  requestTemperature: "gen_ai.request.temperature",
  requestTopP: "gen_ai.request.top_p",
  requestTopK: "gen_ai.request.top_k",
  requestMaxTokens: "gen_ai.request.max_tokens",
  requestSeed: "gen_ai.request.seed",
  responseId: "gen_ai.response.id",
  finishReasons: "gen_ai.response.finish_reasons",
  inputTokens: "gen_ai.usage.input_tokens",
  outputTokens: "gen_ai.usage.output_tokens",
  agentName: "gen_ai.agent.name",
  rewardName: "gen_ai.evaluation.name",
  rewardValue: "gen_ai.evaluation.score.value",
  rewardReason: "fulgurite.reward.reason",
  rewardSource: "fulgurite.reward.source",
  mode: "fulgurite.mode",
  turn: "fulgurite.turn",
  /** Every call and response id of the answer, string[]. */
  keys: "fulgurite.keys",
  policyVersion: "fulgurite.policy.version",
  fidelity: "fulgurite.fidelity",
  /** true on a call that ended after its attempt did: shown, never trained. */
  late: "fulgurite.late",
  promptTokens: "fulgurite.prompt.tokens",
  responseTokens: "fulgurite.response.tokens",
  samplerLogprobs: "fulgurite.sampler.logprobs",
  /** Where top-p, top-k, a bias or a grammar restricted it: log-probs under what was really drawn from. */
  drawnLogprobs: "fulgurite.drawn.logprobs",
  /** Places in the response of tokens that a grammar left no choice, Int32Array. */
  forcedTokens: "fulgurite.response.forced",
  request: "fulgurite.request",
  response: "fulgurite.response",
  errorType: "error.type",
  /** On spans that travel: in a store they are the span's own fields. */
  rolloutId: "fulgurite.rollout.id",
  attemptId: "fulgurite.attempt.id",
} as const;
