// What may be stored, checked and copied at the store's door: the caller's later writes change nothing, and every store
// gives back the same value. So JSON's own losses happen here, once: -0 becomes 0, absent and undefined are the same, and
// NaN or a Date is refused instead of silently becoming something else in one store and not in another. Headers that let
// somebody in are taken out here too (secretHeaders.ts): no JSON comes in another way.

import { mapped } from "./attributeCodec.ts";
import { TraceError } from "./errors.ts";
import type { CopyArray } from "./rows.ts";
import { HEADERS, isSecret, isSecretField, isSecretPart, meaning, PRINTED_TEXT, REMOVED, withoutSecrets } from "./secretHeaders.ts";
import { ATTEMPT_CHANGES, DEFAULT_CONFIG, ROLLOUT_CHANGES } from "./status.ts";
import type {
  Attempt,
  AttemptError,
  AttemptRef,
  AttemptStatus,
  Attributes,
  AttributeValue,
  Json,
  Resource,
  ResourceEntry,
  ResourceInput,
  Rollout,
  RolloutConfig,
  RolloutQuery,
  RolloutStatus,
  Span,
  StoredSpan,
  StoreItem,
  TaskInput,
} from "./vocabulary.ts";

export const isObject = (value: unknown): value is object => typeof value === "object" && value !== null;

export const refuse = (where: string, rule: string, got: unknown): never => {
  const shown = typeof got === "string" ? JSON.stringify(got) : isObject(got) ? "an object" : String(got);
  throw new TraceError("bad-input", `${where}: ${rule}, got ${shown.slice(0, 200)}; correct the caller`);
};

/** Every store can write and read back what nests so deep; what holds itself does not end. */
const DEEPEST = 256;

/** What is its entries and nothing else: a Map or a Date has none, and would be lost without a word. */
const plain = (value: unknown, where: string): Record<string, unknown> => {
  const prototype = isObject(value) && Object.getPrototypeOf(value);
  if (prototype !== false && (prototype === null || Object.getPrototypeOf(prototype) === null)) return value as Record<string, unknown>;
  return refuse(where, "a value is JSON", prototype ? prototype.constructor?.name : typeof value);
};

/** A frozen deep copy. `place`: what its name says of secrets. @throws TraceError "bad-input" naming the path of what is not JSON. */
export const copyJson = (value: unknown, where: string, depth = 0, place = 0): Json => {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (typeof value === "number") return Number.isFinite(value) ? value + 0 : refuse(where, "numbers are finite", value);
  if (depth > DEEPEST) return refuse(where.slice(0, 80), "a value is JSON", `more than ${DEEPEST} levels`);
  if (Array.isArray(value)) {
    const copy: Json[] = [];
    // a hole is refused
    for (let index = 0; index < value.length; index++) copy.push(copyItem(value, index, where, depth + 1, place));
    return Object.freeze(copy);
  }
  const members = plain(value, where);
  const hides = isSecretField(members, place) ? "value" : undefined;
  return Object.freeze(mapped(members, (item, key) => (key === hides ? REMOVED : copyMember(key, item, where, depth + 1, place))));
};

const copyItem = (list: readonly unknown[], index: number, where: string, depth: number, place: number): Json => {
  if (isSecretPart(list, index, place)) return REMOVED;
  const item = list[index];
  if (typeof item === "string") return place & HEADERS ? withoutSecrets(item) : item; // a line of a header
  return copyJson(item, `${where}[${index}]`, depth, place);
};

const copyMember = (name: string, value: unknown, where: string, depth = 0, place = 0): Json => {
  const bits = meaning(name);
  if (isSecret(bits, value, place)) return REMOVED;
  // nearly all members are one of these, and a path that nobody reads costs as much as they do
  if (typeof value === "string") return bits & PRINTED_TEXT ? withoutSecrets(value) : value;
  if (Number.isFinite(value)) return (value as number) + 0;
  return copyJson(value, `${where}.${name}`, depth, bits);
};

const copyRecord = (value: unknown, where: string): Readonly<Record<string, Json>> => {
  const copy = copyJson(value, where);
  return copy !== null && typeof copy === "object" && !Array.isArray(copy)
    ? (copy as Readonly<Record<string, Json>>)
    : refuse(where, "an object", value);
};

const isTyped = (value: unknown): value is Int32Array | Float32Array => value instanceof Int32Array || value instanceof Float32Array;

const sliced: CopyArray = <T extends Int32Array | Float32Array>(array: T): T => array.slice() as T;

const copyAttributes = (attributes: Attributes, where: string, copyArray: CopyArray): Attributes =>
  Object.freeze(
    mapped(plain(attributes, where) as Attributes, (value: AttributeValue, name) =>
      isTyped(value) ? copyArray(value) : copyMember(name, value, where),
    ),
  );

export const text = (value: unknown, where: string): string =>
  typeof value === "string" && value !== "" ? value : refuse(where, "a non-empty string", value);

/** A name that an address and a file can carry too: half of a surrogate pair has no bytes in UTF-8, and all halves would be one name. */
export const nameIn = (value: unknown, where: string): string =>
  /\p{Cs}/u.test(text(value, where)) ? refuse(where, "well-formed text", value) : (value as string);

export const idIn = (id: unknown): string => text(id, "rolloutId");

export const whole = (value: unknown, minimum: number, where: string): number =>
  Number.isSafeInteger(value) && (value as number) >= minimum ? (value as number) : refuse(where, `an integer ≥ ${minimum}`, value);

/** Not a list or a buffer, of which a Uint8Array would quietly make something else. */
export const bytesIn = (value: unknown, where: string): Uint8Array =>
  value instanceof Uint8Array ? value : refuse(where, "a Uint8Array", value);

/** A time, or one before or after all times. */
export const instantIn = (value: unknown, where: string): number =>
  typeof value === "number" && !Number.isNaN(value) ? value : refuse(where, "a number", value);

export const functionIn = <T>(value: T, where: string): T => (typeof value === "function" ? value : refuse(where, "a function", value));

export const arrayIn = <T>(value: readonly T[], where: string): readonly T[] =>
  Array.isArray(value) ? value : refuse(where, "a list", value);

export const guardRef = (ref: AttemptRef): void => {
  text(ref?.rolloutId, "attempt.rolloutId");
  text(ref?.id, "attempt.id");
};

/** A list of objects. */
export const listIn = <T>(value: readonly T[], where: string): readonly T[] =>
  !Array.isArray(value) || value.some((item) => !isObject(item)) ? refuse(where, "a list of objects", value) : value;

export const finite = (value: unknown, where: string): number =>
  Number.isFinite(value) ? (value as number) + 0 : refuse(where, "a finite number", value);

type Named<T> = { [K in keyof Span]-?: NonNullable<Span[K]> extends T ? K : never }[keyof Span];

// what is wrong is named when something is: to spell nine places for every span costs as much as to look at them
const textOf = (span: Span, name: Named<string>): string =>
  typeof span[name] === "string" && span[name] !== "" ? span[name] : refuse(`span ${span.id}.${name}`, "a non-empty string", span[name]);
const timeOf = (span: Span, name: Named<number>): number =>
  Number.isFinite(span[name]) ? span[name] + 0 : refuse(`span ${span.id}.${name}`, "a finite number", span[name]);

/** @throws TraceError "bad-input". */
export const checkedSpan = (span: Span, copyArray: CopyArray = sliced): Span => {
  const id = text(span.id, "span.id");
  return Object.freeze({
    rolloutId: textOf(span, "rolloutId"),
    attemptId: textOf(span, "attemptId"),
    id,
    ...(span.parentId === undefined ? undefined : { parentId: textOf(span, "parentId") }),
    name: textOf(span, "name"),
    startMs: timeOf(span, "startMs"),
    endMs: timeOf(span, "endMs"),
    status: span.status === "ok" || span.status === "error" ? span.status : refuse(`span ${id}.status`, "ok or error", span.status),
    attributes: copyAttributes(span.attributes, `span ${id}.attributes`, copyArray),
  });
};

/** @throws TraceError "bad-input" for a last span of somebody else's. */
export const guardOwn = (attempt: AttemptRef, last: readonly Span[]): void => {
  const stray = last.find(({ rolloutId, attemptId }) => rolloutId !== attempt.rolloutId || attemptId !== attempt.id);
  if (stray !== undefined) {
    const rule = `the last spans are of attempt ${attempt.id} of rollout ${attempt.rolloutId}`;
    refuse("finish", rule, `one of ${stray.attemptId} of ${stray.rolloutId}`);
  }
};

/** Typed arrays cannot be frozen: whoever is handed a span gets arrays of its own. */
export const copySpan = (span: StoredSpan): StoredSpan =>
  Object.freeze({ ...span, attributes: Object.freeze(mapped(span.attributes, (value) => (isTyped(value) ? value.slice() : value))) });

const oneOf =
  <T extends string>(list: readonly T[]) =>
  (value: unknown, where: string): T =>
    list.includes(value as T) ? (value as T) : refuse(where, `one of ${list.join(", ")}`, value);

const RETRIED = oneOf(["failed", "timeout", "unresponsive"]);
const MODE = oneOf(["train", "val"]);
const KIND = oneOf(["lora", "prompt", "model"]);

const checkedConfig = (config: Partial<RolloutConfig>, where: string): RolloutConfig => {
  const { timeoutMs = DEFAULT_CONFIG.timeoutMs, maxAttempts = DEFAULT_CONFIG.maxAttempts, retryOn = DEFAULT_CONFIG.retryOn } = config;
  if (!(finite(timeoutMs, `${where}.timeoutMs`) > 0)) refuse(`${where}.timeoutMs`, "more than 0", timeoutMs);
  whole(maxAttempts, 1, `${where}.maxAttempts`);
  if (!Array.isArray(retryOn)) refuse(`${where}.retryOn`, "a list", retryOn);
  for (const end of retryOn) RETRIED(end, `${where}.retryOn`);
  return Object.freeze({ timeoutMs, maxAttempts, retryOn: Object.freeze([...retryOn]) });
};

export type CheckedTask = Required<Omit<TaskInput, "config">> & { readonly config: RolloutConfig };

/** @throws TraceError "bad-input". */
export const checkedTask = (task: TaskInput, newId: () => string): CheckedTask => {
  const id = nameIn(task.id === undefined ? newId() : task.id, "task.id");
  return {
    id,
    mode: MODE(task.mode ?? "train", `task ${id}.mode`),
    config: checkedConfig(task.config ?? {}, `task ${id}.config`),
    ...checkedRedaction(task, id),
  };
};

/** What `redact` made of a task. @throws TraceError "bad-input". */
export const checkedRedaction = (task: Pick<TaskInput, "input" | "metadata">, id: string): Pick<CheckedTask, "input" | "metadata"> => ({
  input: copyJson(task.input, `task ${id}.input`),
  metadata: copyRecord(task.metadata ?? {}, `task ${id}.metadata`),
});

export type CheckedResource = Required<Omit<ResourceInput, "version">> & { readonly version: number | undefined };

/** @throws TraceError "bad-input". */
export const checkedResource = (resource: ResourceInput): CheckedResource => {
  const name = nameIn(resource?.name, "resource.name");
  const { version } = resource;
  if (version !== undefined) whole(version, 1, `resource ${name}.version`);
  for (const [path, bytes] of Object.entries(resource.files ?? refuse(`resource ${name}.files`, "bytes by path", resource.files)))
    bytesIn(bytes, `resource ${name}.files.${path}`);
  return {
    name,
    kind: KIND(resource.kind, `resource ${name}.kind`),
    version,
    metadata: copyRecord(resource.metadata ?? {}, `resource ${name}.metadata`),
    files: copyFiles(resource.files),
  };
};

/** Plain Uint8Arrays with a buffer of their own (a Node Buffer would drag its pool along). */
export const copyFiles = (files: Readonly<Record<string, Uint8Array>>): Readonly<Record<string, Uint8Array>> =>
  Object.freeze(Object.fromEntries(Object.entries(files).map(([path, bytes]) => [path, new Uint8Array(bytes)])));

/** Key order does not matter in objects, order does in lists. */
export const sameJson = (a: Json | undefined, b: Json | undefined): boolean => {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null || Array.isArray(a) !== Array.isArray(b)) return false;
  const [left, right] = [Object.entries(a), b as Readonly<Record<string, Json>>];
  return left.length === Object.keys(b).length && left.every(([key, value]) => Object.hasOwn(b, key) && sameJson(value, right[key]));
};

type Content = Pick<ResourceEntry, "kind" | "metadata" | "manifest">;

/** Whether the files are the same, their hashes tell. */
export const sameContent = (a: Content, b: Content): boolean =>
  a.kind === b.kind && sameJson(a.metadata, b.metadata) && sameJson(a.manifest as unknown as Json, b.manifest as unknown as Json);

// ---- what another store held ----------------------------------------------------------------------------------------------

type Check<T> = (value: unknown, where: string) => T;

/** The members that `checks` names, each as its check gives it; what that gives as undefined is left out. */
const checkedFields = <T extends object>(given: T, where: string, checks: { readonly [K in keyof T]-?: Check<T[K]> }): T => {
  const checked: Partial<T> = {};
  for (const name of Object.keys(checks) as (keyof T & string)[]) {
    const value = checks[name](given[name], `${where}.${name}`);
    if (value !== undefined) checked[name] = value;
  }
  return Object.freeze(checked) as T;
};

const optional =
  <T>(check: Check<T>): Check<T | undefined> =>
  (value, where) =>
    value == null ? undefined : check(value, where);

const positive: Check<number> = (value, where) => whole(value, 1, where);

const ROLLOUT_STATUS = oneOf(Object.keys(ROLLOUT_CHANGES) as RolloutStatus[]);

/** @throws TraceError "bad-input". */
export const checkedQuery = (query: RolloutQuery): RolloutQuery =>
  checkedFields<RolloutQuery>(plain(query, "rollouts") as RolloutQuery, "rollouts", {
    ids: optional((value, at) => arrayIn(value as string[], at)),
    status: optional((value, at) => arrayIn(value as unknown[], at).map((status) => ROLLOUT_STATUS(status, at))),
    mode: optional(MODE),
    metadata: optional((value, at) => plain(value, at) as RolloutQuery["metadata"] & object),
    order: optional(oneOf(["oldest", "newest"])),
    after: optional(finite),
    limit: optional(instantIn),
  });

const checkedRollout = (rollout: Rollout, where: string): Rollout =>
  Object.freeze({
    ...checkedTask(rollout, () => refuse(`${where}.id`, "a non-empty string", rollout.id)),
    ...checkedFields<Omit<Rollout, keyof CheckedTask>>(rollout, where, {
      seq: positive,
      status: ROLLOUT_STATUS,
      attempts: (value, at) => whole(value, 0, at),
      createdAtMs: finite,
      endedAtMs: optional(finite),
    }),
  }) as Rollout;

/** Without what it printed of secret headers. */
export const checkedError = (error: AttemptError): AttemptError => {
  const said = (value: unknown): string => withoutSecrets(String(value));
  return checkedFields(error, "", { name: said, message: said, stack: optional(said) });
};

const checkedAttempt = (attempt: Attempt, where: string): Attempt =>
  checkedFields(attempt, where, {
    rolloutId: text,
    id: nameIn,
    sequence: positive,
    status: oneOf(Object.keys(ATTEMPT_CHANGES) as AttemptStatus[]),
    workerId: text,
    startedAtMs: finite,
    claimId: optional(text),
    lastHeartbeatMs: finite,
    endedAtMs: optional(finite),
    error: optional((value) => checkedError(value as AttemptError)),
  });

/** @throws TraceError "bad-input", naming `where`. */
export const checkedItem = (item: StoreItem, where: string): StoreItem => {
  if (!isObject(item?.data)) return refuse(where, "an item with kind and data", item);
  switch (item.kind) {
    case "rollout":
      return { kind: "rollout", data: checkedRollout(item.data, `${where}: rollout`) };
    case "attempt":
      return { kind: "attempt", data: checkedAttempt(item.data, `${where}: attempt`) };
    case "span":
      return { kind: "span", data: Object.freeze({ ...checkedSpan(item.data), seq: whole(item.data.seq, 1, `${where}: span.seq`) }) };
    case "resource": {
      const checked = checkedResource(item.data);
      const data: Resource = {
        ...checked,
        version: whole(checked.version, 1, `${where}: resource.version`),
        manifest: item.data.manifest, // its truth is withManifest's to find out
        createdAtMs: finite(item.data.createdAtMs, `${where}: resource.createdAtMs`),
      };
      return { kind: "resource", data: Object.freeze(data) };
    }
    default:
      return refuse(where, "kind is rollout, attempt, span or resource", (item as { kind?: unknown }).kind);
  }
};
