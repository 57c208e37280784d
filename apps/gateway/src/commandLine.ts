// The words after a command, read once for all commands: options as node:util reads them, and a mistake answered with the command's help.

import { type ParseArgsConfig, parseArgs } from "node:util";
import { UsageError } from "./usageError.ts";

type Known = NonNullable<ParseArgsConfig["options"]>;
type Parsed<Options extends Known> = ReturnType<typeof parseArgs<{ args: string[]; options: Options; allowPositionals: true }>>;

/** `command` begins every message. Throws UsageError with the help for an unknown option or one without its value. */
export const readOptions = <const Options extends Known>(
  command: string,
  help: string,
  args: string[],
  options: Options,
): Parsed<Options> => {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (cause) {
    throw new UsageError(`${command}: ${(cause as Error).message}\n\n${help}`, { cause });
  }
};
