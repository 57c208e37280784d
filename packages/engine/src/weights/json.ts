// Bytes of a JSON file from outside → a value that its reader has yet to check.

import { EngineError } from "../errors.ts";

/** `file` is its name for messages. Throws EngineError("bad-file"). */
export const parseJson = (bytes: Uint8Array, file: string): unknown => {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new EngineError("bad-file", `${file}: it is UTF-8 JSON, got ${(cause as Error).message}; download it again`, { cause });
  }
};
