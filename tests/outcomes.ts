// What became of a call, for tests that look at it.
import { TraceError } from "@fulgurite/trace";
import { expect } from "vitest";

export const collect = async <T>(items: AsyncIterable<T>): Promise<T[]> => {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
};

/** "resolved", or the code of the TraceError. */
export const codeOf = (act: Promise<unknown>): Promise<string> =>
  act.then(
    () => "resolved",
    (error) => (error instanceof TraceError ? error.code : `not a TraceError: ${error}`),
  );

/** The TraceError that a call must reject with. */
export const errorOf = async (act: Promise<unknown>): Promise<TraceError> => {
  const error = await act.then(
    () => new Error("resolved"),
    (caught) => caught,
  );
  expect(error).toBeInstanceOf(TraceError);
  return error;
};
