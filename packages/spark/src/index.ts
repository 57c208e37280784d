// Where the built-in policy's files are: a Hugging Face folder beside this module. Nothing is read here.
// Each URL is a literal, so that bundlers find the files and emit them.

export const sparkFiles: Readonly<Record<string, URL>> = {
  "config.json": new URL("../model/config.json", import.meta.url),
  "generation_config.json": new URL("../model/generation_config.json", import.meta.url),
  "model.safetensors": new URL("../model/model.safetensors", import.meta.url),
  "tokenizer.json": new URL("../model/tokenizer.json", import.meta.url),
  "tokenizer_config.json": new URL("../model/tokenizer_config.json", import.meta.url),
  "chat_template.jinja": new URL("../model/chat_template.jinja", import.meta.url),
};
