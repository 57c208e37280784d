// Errors of the trace room. Message form: "where: rule, got value; what to do".

export type TraceErrorCode =
  | "bad-input" // a task, span, resource or query outside its contract
  | "bad-span" // a stored span whose numbers cannot be trained on
  | "unknown" // no such rollout, attempt or resource
  | "status" // a change that the status tables forbid
  | "conflict" // a published version with other content
  | "locked" // another process has the folder open for writing, another tab trains, or holds an older database
  | "outdated" // a newer release has changed the database that this code would write to
  | "no-locks" // nobody can be asked whether another trains
  | "corrupt" // stored bytes that are not what was written
  | "storage" // the platform refused: I/O, a lost connection
  | "full" // no room for this call; what was stored stays, reading and forgetting go on
  | "denied" // a store over HTTP wants another key
  | "too-large" // more than a store takes at once
  | "closed"
  | "timeout";

export class TraceError extends Error {
  readonly code: TraceErrorCode;
  constructor(code: TraceErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "TraceError";
    this.code = code;
  }
}
