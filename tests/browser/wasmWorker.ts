// Runs the operation cases on two threads inside a worker, where Atomics.wait is allowed, and answers with what it found.

import { createReferenceBackend } from "../../packages/engine/src/reference/backend.ts";
import { createWasmBackend } from "../../packages/engine/src/wasm/backend.ts";
import { opCase, opCases, runCase } from "../unit/engine/opCases.ts";

export interface WorkerFindings {
  readonly description: string;
  readonly cases: number;
  /** Names of cases whose numbers are not within their tolerance of the reference. */
  readonly wrong: readonly string[];
  /** Names of cases whose bits on two threads are not those on one. */
  readonly different: readonly string[];
}

const check = async (): Promise<WorkerFindings> => {
  const [single, double] = [await createWasmBackend({ threads: 1 }), await createWasmBackend({ threads: 2, minThreadedFlop: 0 })];
  const names = opCases().map(({ name }) => name);
  const [wrong, different]: [string[], string[]] = [[], []];
  for (const name of names) {
    const [a, b, c] = [opCase(name), opCase(name), opCase(name)];
    const want = await runCase(createReferenceBackend(), a);
    const alone = await runCase(single, b);
    const together = await runCase(double, c);
    for (const [i, output] of a.outputs.entries()) {
      const [x, y, z] = [want.get(output)!, alone.get(b.outputs[i]!)!, together.get(c.outputs[i]!)!];
      const isClose = x.every((value, j) => Object.is(value, z[j]) || Math.abs(value - z[j]!) <= c.tolerance * (1 + Math.abs(value)));
      if (!isClose) wrong.push(name);
      if (!y.every((value, j) => Object.is(value, z[j]))) different.push(name);
    }
  }
  const { description } = double.device;
  await Promise.all([single.dispose(), double.dispose()]);
  return { description, cases: names.length, wrong, different };
};

check().then(
  (findings) => postMessage(findings),
  (cause) => {
    // out of the promise, so that the page's onerror sees it
    setTimeout(() => {
      throw cause;
    });
  },
);
