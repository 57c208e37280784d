// What must not outlive the run, also when it is interrupted: browsers and other children, folders full of profiles.

const cleanings = new Set<() => void>();
const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;
let isListening = false;

const cleanAll = (): void => {
  for (const clean of [...cleanings].reverse())
    try {
      clean();
    } catch {
      // it is gone already
    }
  cleanings.clear();
};

/** Does `clean` when the process ends or is told to end, unless the returned function was called before: then it was done. Synchronous. */
export const uponEnd = (clean: () => void): (() => void) => {
  if (!isListening) {
    isListening = true;
    process.once("exit", cleanAll);
    for (const [name, number] of Object.entries(SIGNALS))
      process.once(name, () => {
        cleanAll();
        process.exit(128 + number);
      });
  }
  cleanings.add(clean);
  return () => void cleanings.delete(clean);
};
