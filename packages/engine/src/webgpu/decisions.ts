// Which kernel variants one backend uses: what the self-test switched off, what the tuner picked, and for a moment what either of them
// asks for. Pure data behind Target.choose; what it knows goes into a text and comes back from it.

import type { Problem, Target, Variant } from "./kernels/target.ts";

/** What a failure is remembered for: variants of one operation and format share their text, whatever the sizes. */
export const familyOf = ({ op, format }: Problem): string => `${op} ${format}`;

/** A thin product has its own tiles by default, and is over before a timing could say anything. */
const MIN_WIDTH = 256;

/** Problems of one class share the tuner's pick; undefined: never timed, the default is taken. */
export const classOf = (problem: Problem): string | undefined => {
  const { op, rows, sizes } = problem;
  if (op === "attention") return sizes.C! <= 64 ? `${familyOf(problem)} C64` : sizes.C! <= 128 ? `${familyOf(problem)} C128` : undefined;
  if (op !== "linear" && op !== "linearBackward") return undefined;
  if (Math.min(...Object.values(sizes)) < MIN_WIDTH) return undefined;
  return `${familyOf(problem)} ${rows <= 16 ? "few" : rows <= 128 ? "some" : "many"} rows`;
};

/** Variants of products that are never a default and are worth a timing. All others of their kind are neither tuned nor tested. */
const LARGE_TILES: ReadonlySet<string> = new Set(["64x64 wide", "64x64 8x8 wide", "128x64 wide", "skinny"]);

/** Candidates that may come to be used: the default, and what the tuner may pick. */
export const shortlist = (problem: Problem, candidates: readonly Variant[]): readonly Variant[] =>
  problem.op === "linear" || problem.op === "linearBackward"
    ? candidates.filter(({ name }, i) => i === 0 || LARGE_TILES.has(name))
    : candidates;

export interface Seen {
  readonly problem: Problem;
  readonly candidates: readonly Variant[];
}

export interface Decisions {
  readonly choose: NonNullable<Target["choose"]>;
  /** "family name" of every variant that gave wrong results. */
  readonly failed: Set<string>;
  /** class → name of the fastest variant. */
  readonly picks: Map<string, string>;
  /** Problems that came up since `watch`, by first appearance. */
  watch(): readonly Seen[];
  /** Takes these variants (family → name) as long as `work` lasts, whatever is known about them. */
  force<T>(variants: ReadonlyMap<string, string>, work: () => Promise<T>): Promise<T>;
}

export const createDecisions = (): Decisions => {
  const failed = new Set<string>();
  const picks = new Map<string, string>();
  let seen: Seen[] = [];
  let forced: ReadonlyMap<string, string> = new Map();
  return {
    failed,
    picks,
    choose: (problem, candidates) => {
      seen.push({ problem, candidates });
      const family = familyOf(problem);
      const wanted = forced.get(family);
      const found = candidates.find(({ name }) => name === wanted);
      if (found) return found;
      const right = candidates.filter(({ name }) => !failed.has(`${family} ${name}`));
      const pick = picks.get(classOf(problem) ?? "");
      return right.find(({ name }) => name === pick) ?? right[0];
    },
    watch: () => {
      seen = [];
      return seen;
    },
    force: async (variants, work) => {
      forced = variants;
      try {
        return await work();
      } finally {
        forced = new Map();
      }
    },
  };
};
