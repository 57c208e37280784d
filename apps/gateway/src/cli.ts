// fulgurite <command>: reads the command's name, hands the rest on, turns errors into exit codes.
// 0 done · 1 failed · 2 called wrongly · 130 interrupted (Ctrl+C; the run can be continued).

import { exportRun } from "./export.ts";
import { store } from "./store.ts";
import { train } from "./train.ts";
import { UsageError } from "./usageError.ts";

const COMMANDS: Readonly<Record<string, { run: (args: string[]) => Promise<number>; help: string }>> = {
  train: { run: train, help: "train a demo agent headless: fulgurite train calculator --help" },
  export: { run: exportRun, help: "what a run trained, for other tools: fulgurite export --help" },
  store: { run: store, help: "look into a store, move it, check it: fulgurite store --help" },
};

const usage = (): string =>
  ["usage: fulgurite <command> [options]", "", ...Object.entries(COMMANDS).map(([name, { help }]) => `  ${name.padEnd(10)} ${help}`)].join(
    "\n",
  );

const main = async (): Promise<number> => {
  const [name, ...args] = process.argv.slice(2);
  if (name === undefined || name === "--help" || name === "-h") {
    process.stdout.write(`${usage()}\n`);
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) throw new UsageError(`fulgurite: command is one of ${Object.keys(COMMANDS).join(", ")}, got ${JSON.stringify(name)}`);
  return command.run(args);
};

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    if (error instanceof UsageError) {
      process.stderr.write(`${error.message}\n`);
      process.exitCode = 2;
      return;
    }
    const { name, message, code } = error as Error & { code?: string };
    const known = typeof code === "string" && /^(Engine|Trace|Agent|Rl)Error$/.test(name);
    process.stderr.write(known ? `${message}\n` : `${error instanceof Error ? error.stack : String(error)}\n`);
    process.exitCode = 1;
  },
);
