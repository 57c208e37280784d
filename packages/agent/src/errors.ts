// Errors of the agent room. Message form: "where: rule, got value; what to do".

export type AgentErrorCode =
  | "bad-format" // tokenizer, template or stop tokens that cannot serve as a chat format
  | "template-refused" // the chat template raised on these messages
  | "bad-request" // a request that the endpoint cannot honour; `param` names the field
  | "context-length" // the prompt leaves no room in the sampler's context
  | "not-found" // no such route, attempt or model
  | "unauthorized" // no key, or one that no open attempt owns
  | "closed" // the attempt has ended
  | "aborted" // the run ended the attempt, or the client its request
  | "bad-reward" // a reward that is no finite number
  | "timeout" // the agent took longer than its rollout allows
  | "capture" // spans of an attempt could not be stored
  | "sampler"; // the sampler failed, or broke its contract

export class AgentError extends Error {
  readonly code: AgentErrorCode;
  /** The request's field at fault, e.g. "messages[2].content[0].type". */
  readonly param: string | undefined;
  constructor(code: AgentErrorCode, message: string, options?: ErrorOptions & { param?: string }) {
    super(message, options);
    this.name = "AgentError";
    this.code = code;
    this.param = options?.param;
  }
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
