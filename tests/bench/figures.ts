// What a bench is written with: figures that are measured in rounds, ours and the peers' in turn, and printed as medians.
// A bench is a module `<subject>.bench.ts` of this folder that exports `run: (bench: Bench) => Promise<void>`.

export interface Figure {
  readonly name: string;
  readonly ours: number;
  /** null where nobody else has such a figure. */
  readonly peer: number | null;
  readonly peerName: string | null;
  /** One that ends in "/s" is better when it is larger, every other when it is smaller. */
  readonly unit: string;
}

export interface Bench {
  /** Small sizes and few rounds: does it run at all? */
  readonly isQuick: boolean;
  /** Is the figure asked for? `npm run bench -- stores append reopen` asks for those whose names begin so. */
  wants(name: string): boolean;
  print(figure: Figure): void;
  /** Says on stderr how far it is. */
  progress(line: string): void;
  /** A package of tests/peers, installed at the first use. */
  loadPeer<T>(name: string): Promise<T>;
  /** What a process of its own imports it by. */
  peerPath(name: string): string;
}

/** ratio > 1: ours is better; null without a peer. Three digits that a reader can hold in mind. */
export const toLine = ({ name, ours, peer, peerName, unit }: Figure): Record<string, string | number | null> => ({
  name,
  ours: rounded(ours),
  peer: peer === null ? null : rounded(peer),
  peerName,
  unit,
  ratio: peer === null ? null : rounded(unit.endsWith("/s") ? ours / peer : peer / ours),
});

const rounded = (value: number): number => Number(value.toPrecision(4));

export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] as number) : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
};

/**
 * Runs every contestant once a round, in turn, beginning with another each time, and gives the median of what each returned.
 * The machine's moods so fall on all of them alike. `settleMs`: the threads of whoever ran before (OpenMP's, for one) may spin for so
 * long on cores that the next one needs.
 */
export const inRounds = async <Name extends string>(
  rounds: number,
  contestants: Readonly<Record<Name, (round: number) => Promise<number>>>,
  settleMs = 0,
): Promise<Record<Name, number>> => {
  const names = Object.keys(contestants) as Name[];
  const found = new Map<Name, number[]>(names.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++)
    for (let turn = 0; turn < names.length; turn++) {
      const name = names[(round + turn) % names.length] as Name;
      if (settleMs > 0) await new Promise((resolve) => setTimeout(resolve, settleMs));
      (found.get(name) as number[]).push(await contestants[name](round));
    }
  return Object.fromEntries(names.map((name) => [name, median(found.get(name) as number[])])) as Record<Name, number>;
};

/** Seconds that `act` takes. */
export const seconds = async (act: () => unknown): Promise<number> => {
  const began = performance.now();
  await act();
  return (performance.now() - began) / 1000;
};
