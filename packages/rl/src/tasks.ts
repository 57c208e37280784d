// Tasks: a list, walked in a seeded order that is new in each epoch, or a function that makes the task of an index.

import type { Json } from "@fulgurite/trace";
import { RlError } from "./errors.ts";
import { permutation, seedFrom } from "./random.ts";

export interface Task {
  readonly id: string;
  readonly input: Json;
}

/** A function must be pure: a resumed run asks it again. */
export type TaskSource = readonly Task[] | ((index: number) => Task);

/** The task of a position in the run's order, from 0 on without end. */
export function orderTasks(tasks: TaskSource, seed: number): (position: number) => Task {
  if (typeof tasks === "function") return tasks;
  if (tasks.length === 0) throw new RlError("bad-options", "tasks: a list has at least one task, got 0");
  let epoch = -1;
  let order: Int32Array = new Int32Array(0);
  return (position) => {
    const wanted = Math.floor(position / tasks.length);
    if (wanted !== epoch) {
      epoch = wanted;
      order = permutation(tasks.length, seedFrom(seed, wanted));
    }
    return tasks[order[position % tasks.length]!]!;
  };
}

/** JSON with sorted keys: equal for equal values. */
export const canonicalJson = (value: Json): string =>
  JSON.stringify(value, (_, inner) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );

/** Tells lists of tasks apart, in words for an error message: their number and a 32-bit hash. A function cannot be compared. */
export function describeTasks(tasks: TaskSource): string {
  if (typeof tasks === "function") return "a function";
  let hash = 0x811c9dc5;
  for (const { id, input } of tasks)
    for (const character of `${id}\n${canonicalJson(input)}\n`) hash = Math.imul(hash ^ character.codePointAt(0)!, 0x01000193) >>> 0;
  return `${tasks.length} tasks, hash ${hash.toString(16).padStart(8, "0")}`;
}
