// The tool calls in an assistant's text, while it is sampled. Text that may open a call is held back until it is decided;
// what turns out to be no call is handed on as text, so that nothing the model said is lost. A call's arguments are the
// model's own characters: parsed to be checked, never written anew.

/** One way in which models write calls. A new model family is a new row, if it wraps a JSON object with a name. */
interface CallSyntax {
  readonly name: string;
  readonly opener: string;
  /** Absent: the call runs to the end of the answer. */
  readonly closer?: string;
  /** The opener is the first character of the JSON itself and counts only at the very start of the answer. */
  readonly bare?: true;
  readonly argumentsKeys: readonly string[];
}

const SYNTAXES: readonly CallSyntax[] = [
  { name: "hermes", opener: "<tool_call>", closer: "</tool_call>", argumentsKeys: ["arguments"] }, // Qwen 2.5/3, Hermes, Spark
  { name: "llama3-tagged", opener: "<|python_tag|>", argumentsKeys: ["parameters", "arguments"] },
  { name: "llama3", opener: "{", bare: true, argumentsKeys: ["parameters"] },
];

export type AnswerPart =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "call"; readonly name: string; readonly arguments: string };

export interface CallParser {
  push(text: string): AnswerPart[];
  /** The answer is over: what was held back comes out. */
  end(): AnswerPart[];
  /** Calls that were opened and did not parse; their text was handed on. */
  readonly failed: number;
}

/** Index after the JSON string that opens at `at`; -1 when it does not close. */
const stringEnd = (text: string, at: number): number => {
  for (let index = at + 1; index < text.length; index++) {
    if (text[index] === "\\") index++;
    else if (text[index] === '"') return index + 1;
  }
  return -1;
};

/**
 * Members of a JSON object as the very characters they were written in. The text is valid JSON.
 * membersOf('{"n": 1.0}') is Map { "n" → "1.0" }.
 */
const membersOf = (json: string): Map<string, string> => {
  const members = new Map<string, string>();
  let depth = 0;
  let key: string | undefined;
  let start = 0;
  for (let at = 0; at < json.length; at++) {
    const character = json[at];
    if (character === '"') {
      const end = stringEnd(json, at);
      if (depth === 1 && key === undefined) {
        key = JSON.parse(json.slice(at, end)) as string;
        start = json.indexOf(":", end) + 1;
        at = start - 1;
      } else at = end - 1;
    } else if (character === "{" || character === "[") depth++;
    else if (character === "}" || character === "]" || character === ",") {
      if (depth === 1 && key !== undefined && character !== "]") {
        members.set(key, json.slice(start, at).trim());
        key = undefined;
      }
      if (character !== ",") depth--;
    }
  }
  return members;
};

const parseCall = (body: string, syntax: CallSyntax, toolNames: ReadonlySet<string>): AnswerPart | undefined => {
  const json = body.trim();
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  const name = (value as { name?: unknown }).name;
  if (typeof name !== "string" || name === "") return undefined;
  // an answer that is itself JSON is a call only when it names a tool that was offered
  if (syntax.bare && !toolNames.has(name)) return undefined;
  const members = membersOf(json);
  const key = syntax.argumentsKeys.find((candidate) => members.has(candidate));
  if (key === undefined) return syntax.bare ? undefined : { kind: "call", name, arguments: "{}" };
  const raw = members.get(key) as string;
  if (raw.startsWith("{")) return { kind: "call", name, arguments: raw };
  // some models write the arguments as a string that holds JSON: its content is what they mean
  const inner: unknown = JSON.parse(raw);
  return typeof inner === "string" ? { kind: "call", name, arguments: inner } : undefined;
};

/** Where the closer stands outside of JSON strings; -1 when it is not there yet. */
const closerOutsideStrings = (text: string, closer: string): number => {
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '"') {
      const end = stringEnd(text, at);
      if (end < 0) return -1;
      at = end - 1;
    } else if (text.startsWith(closer, at)) return at;
  }
  return -1;
};

/** Length of the longest end of `text` that begins `word` without completing it. */
export const openingLength = (text: string, word: string): number => {
  for (let length = Math.min(word.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(word.slice(0, length))) return length;
  }
  return 0;
};

/** Without tools nothing is a call, and everything passes straight through. Whitespace around calls belongs to the syntax. */
export const createCallParser = (toolNames: ReadonlySet<string>): CallParser => {
  let pending = "";
  let open: CallSyntax | undefined;
  let gap = ""; // whitespace before the open call: dropped with a call, handed on with a failed one
  let started = false; // something but whitespace was seen
  let afterCall = false; // nothing but whitespace since the last call
  let failed = 0;

  const emit = (parts: AnswerPart[], text: string): void => {
    if (text !== "") parts.push({ kind: "text", text });
    if (text.trim() !== "") {
      started = true;
      afterCall = false;
    }
  };

  const findOpener = (): { syntax: CallSyntax; at: number } | undefined => {
    let first: { syntax: CallSyntax; at: number } | undefined;
    for (const syntax of SYNTAXES) {
      const at = syntax.bare
        ? !started && pending.trimStart().startsWith(syntax.opener)
          ? pending.search(/\S/)
          : -1
        : pending.indexOf(syntax.opener);
      if (at >= 0 && (first === undefined || at < first.at)) first = { syntax, at };
    }
    return first;
  };

  const close = (parts: AnswerPart[], syntax: CallSyntax, body: string, closer: string): void => {
    const call = parseCall(body, syntax, toolNames);
    if (call !== undefined) {
      parts.push(call);
      afterCall = true;
      started = true;
    } else {
      if (!syntax.bare) failed++;
      emit(parts, gap + (syntax.bare ? "" : syntax.opener) + body + closer);
    }
    open = undefined;
    gap = "";
  };

  const advance = (parts: AnswerPart[], ended: boolean): void => {
    for (;;) {
      if (open === undefined) {
        const found = findOpener();
        if (found === undefined) break;
        const before = pending.slice(0, found.at).trimEnd();
        emit(parts, before);
        gap = pending.slice(before.length, found.at);
        pending = pending.slice(found.at + (found.syntax.bare ? 0 : found.syntax.opener.length));
        open = found.syntax;
      }
      const { closer } = open;
      let at = closer === undefined ? -1 : closerOutsideStrings(pending, closer);
      // a string that never closes would swallow every later call
      if (at < 0 && ended && closer !== undefined) at = pending.indexOf(closer);
      if (at < 0) {
        if (ended) {
          close(parts, open, pending, "");
          pending = "";
        }
        return;
      }
      const body = pending.slice(0, at);
      pending = pending.slice(at + (closer as string).length);
      close(parts, open, body, closer as string);
    }
    if (ended) {
      if (!(afterCall && pending.trim() === "")) emit(parts, pending);
      pending = "";
      return;
    }
    let held = 0;
    for (const syntax of SYNTAXES) if (!syntax.bare) held = Math.max(held, openingLength(pending, syntax.opener));
    const safe = pending.slice(0, pending.length - held).trimEnd();
    emit(parts, safe);
    pending = pending.slice(safe.length);
  };

  return {
    push(text) {
      if (toolNames.size === 0) return text === "" ? [] : [{ kind: "text", text }];
      pending += text;
      const parts: AnswerPart[] = [];
      advance(parts, false);
      return parts;
    },
    end() {
      const parts: AnswerPart[] = [];
      advance(parts, true);
      return parts;
    },
    get failed() {
      return failed;
    },
  };
};

/** A whole answer at once: its text, its calls, and how many calls did not parse. */
export const parseToolCalls = (
  answer: string,
  toolNames: ReadonlySet<string>,
): { text: string; calls: { name: string; arguments: string }[]; failed: number } => {
  const parser = createCallParser(toolNames);
  const parts = [...parser.push(answer), ...parser.end()];
  let text = "";
  const calls: { name: string; arguments: string }[] = [];
  for (const part of parts) {
    if (part.kind === "text") text += part.text;
    else calls.push({ name: part.name, arguments: part.arguments });
  }
  return { text, calls, failed: parser.failed };
};
