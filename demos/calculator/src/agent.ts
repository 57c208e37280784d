// An ordinary Vercel AI SDK agent. Nothing here knows of training: it takes the options of an OpenAI-compatible client and answers.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";
import { calculate } from "./calculator.ts";

export interface ClientOptions {
  readonly baseURL: string;
  readonly apiKey: string;
  readonly fetch: typeof globalThis.fetch;
}

const calculator = tool({
  description: "Evaluates an arithmetic expression exactly.",
  inputSchema: z.object({ expression: z.string() }),
  execute: async ({ expression }) => calculate(expression),
});

/** The text that the model ends with; "" when it was still calling tools after four steps. */
export async function solve(question: string, client: ClientOptions, signal?: AbortSignal): Promise<string> {
  const provider = createOpenAICompatible({ name: "openai-compatible", ...client });
  const { text } = await generateText({
    model: provider("policy"),
    prompt: question,
    tools: { calculator },
    stopWhen: stepCountIs(4),
    maxRetries: 0,
    ...(signal && { abortSignal: signal }),
  });
  return text;
}
