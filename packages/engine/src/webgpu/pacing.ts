// How much work one submit takes. A submit that lasts seconds freezes the screen and is killed by a watchdog (2 s in some drivers, 10 s
// in browsers), one that lasts microseconds costs more to send than to do. Nobody tells how fast a device is, so it is measured while it
// works, by when each submit ends. Work is counted in multiply-adds (kernels' own figure), and never decides a result.

/** A submit is aimed at so many milliseconds: far from every watchdog, far above what sending it costs. */
export const TARGET_MS = 100;
/** 25 ms on a GPU that does 10¹¹ multiply-adds a second, 0.25 s on one ten times slower: a safe first guess. */
export const FIRST_WORK = 2.5e9;
/** A device that would need more than a second for the least has no business here; one that does the most in 100 ms is not built yet. */
export const LEAST_WORK = 1e8;
export const MOST_WORK = 5e12;

/**
 * Work of the next submit, from that of the last and what a submit of `done` work took. It grows by at most 2, since the next
 * plan's kernels may be slower than these, and shrinks by at most 4. What was much smaller than it might have been says nothing:
 * it measures the way there and back.
 */
export const nextWork = (work: number, { done, ms }: { readonly done: number; readonly ms: number }): number => {
  const isSlow = ms > TARGET_MS;
  if (done < work / 2 && !isSlow) return work;
  const aim = ms <= 0 ? work * 2 : (done / ms) * TARGET_MS;
  return Math.min(MOST_WORK, Math.max(LEAST_WORK, Math.min(work * 2, Math.max(work / 4, aim))));
};

export interface Pacing {
  /** What the next submit may take. */
  readonly work: number;
  /** A submit of so much work was sent; call the result when the device has done it. */
  submitted(work: number): () => void;
}

/** One for each device: its submits end in the order in which they were sent. `now` in milliseconds. */
export const createPacing = (now: () => number = () => performance.now()): Pacing => {
  let work = FIRST_WORK;
  let lastEnd = Number.NEGATIVE_INFINITY;
  return {
    get work() {
      return work;
    },
    submitted: (done) => {
      const sent = now();
      return () => {
        const end = now();
        // It began when it was sent, or when the one before it was through.
        work = nextWork(work, { done, ms: end - Math.max(sent, lastEnd) });
        lastEnd = end;
      };
    },
  };
};
