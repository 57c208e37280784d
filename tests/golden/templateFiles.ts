// The folders of tests/golden/templates, for the tests that start from them.

import { readFileSync } from "node:fs";
import type { ChatFormatFiles } from "@fulgurite/agent";

export const STYLES = ["llama3", "qwen", "mistral", "gemma3", "smollm2"] as const;
export type Style = (typeof STYLES)[number];

export const readTemplateFile = (path: string): string => readFileSync(new URL(`./templates/${path}`, import.meta.url), "utf8");

/** What loadChatFormat takes, as text. */
export const styleFiles = (style: Style): ChatFormatFiles & { tokenizer: string; tokenizerConfig: string; chatTemplate: string } => ({
  tokenizer: readTemplateFile(`${style}/tokenizer.json`),
  tokenizerConfig: readTemplateFile(`${style}/tokenizer_config.json`),
  chatTemplate: readTemplateFile(`${style}/chat_template.jinja`),
});
