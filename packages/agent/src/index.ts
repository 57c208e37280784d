export { type ChatFormatFiles, loadChatFormat } from "./chatFormat.ts";
export { type ChatOptions, type ChatRequest, parseChatRequest } from "./conversation.ts";
export { createEndpoint } from "./endpoint.ts";
export { AgentError, type AgentErrorCode } from "./errors.ts";
export { createRunner } from "./runner.ts";
export { seedOf, seedOfTurn } from "./seeds.ts";
export { parseToolCalls } from "./toolCalls.ts";
export type * from "./types.ts";
