// Progress on stderr: one line that is redrawn on a terminal, a line a phase or step elsewhere (logs stay readable).

export interface Progress {
  /** Redrawn in place; only shown on a terminal. */
  update(label: string, done: number, total: number, note: string): void;
  /** Stays. */
  line(text: string): void;
}

const WIDTH = 24;

const bar = (share: number): string => {
  const filled = Math.round(WIDTH * Math.min(1, Math.max(0, share)));
  return "█".repeat(filled) + "░".repeat(WIDTH - filled);
};

export const createProgress = (out: NodeJS.WriteStream): Progress => {
  const isLive = out.isTTY === true;
  const clear = isLive ? "\r\x1b[2K" : "";
  return {
    update(label, done, total, note) {
      if (!isLive) return;
      const text = `${label} ${bar(total === 0 ? 1 : done / total)} ${done}/${total} ${note}`;
      out.write(`${clear}${text.slice(0, (out.columns ?? 100) - 1)}`);
    },
    line(text) {
      out.write(`${clear}${text}\n`);
    },
  };
};
