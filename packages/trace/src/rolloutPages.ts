// Rollouts as a query asks for them, a page a transaction: what changes between two pages may be seen or not, nothing twice.

import type { Rows } from "./rows.ts";
import { checkedQuery, sameJson } from "./values.ts";
import type { Rollout, RolloutQuery } from "./vocabulary.ts";

const ROLLOUTS_A_PAGE = 256;

export type Read = <T>(body: (rows: Rows) => Promise<T>) => Promise<T>;

const matches = (rollout: Rollout, query: RolloutQuery): boolean =>
  (query.status === undefined || query.status.includes(rollout.status)) &&
  (query.mode === undefined || query.mode === rollout.mode) &&
  Object.entries(query.metadata ?? {}).every(
    ([name, value]) => Object.hasOwn(rollout.metadata, name) && sameJson(rollout.metadata[name], value),
  );

const isBeyond = ({ seq }: Rollout, { after, order }: RolloutQuery): boolean =>
  after === undefined || (order === "newest" ? seq < after : seq > after);

export async function* rolloutsOf(read: Read, given: RolloutQuery = {}): AsyncGenerator<Rollout> {
  const query = checkedQuery(given);
  let left = query.limit ?? Number.POSITIVE_INFINITY;
  const order = query.order ?? "oldest";
  if (query.ids !== undefined) {
    const ids = [...new Set(query.ids)];
    const found = await read(async (rows) => {
      const all: Rollout[] = [];
      for (const id of ids) {
        const rollout = await rows.rollout(id);
        if (rollout !== undefined) all.push(rollout);
      }
      return all;
    });
    for (const rollout of found.sort((a, b) => (order === "oldest" ? a.seq - b.seq : b.seq - a.seq))) {
      if (!matches(rollout, query) || !isBeyond(rollout, query)) continue;
      if (left-- <= 0) return;
      yield rollout;
    }
    return;
  }
  let seq = query.after;
  while (left > 0) {
    const page = await read((rows) => rows.rollouts(order, seq, ROLLOUTS_A_PAGE));
    for (const rollout of page) {
      if (!matches(rollout, query)) continue;
      yield rollout;
      left -= 1;
      if (left <= 0) return;
    }
    if (page.length < ROLLOUTS_A_PAGE) return;
    seq = page.at(-1)?.seq;
  }
}
