/** The command was called wrongly: its message is for the person who typed it, without a stack. */
export class UsageError extends Error {
  override readonly name: string = "UsageError";
}
