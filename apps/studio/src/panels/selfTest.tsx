// The page at ?selftest: every kernel of this browser's WebGPU against the reference, line by line, and nothing else.

import { signal } from "@preact/signals";
import { type SelfTestEntry, type SelfTestReport, testGpu } from "fulgurite";
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";

const entries = signal<readonly SelfTestEntry[]>([]);
const report = signal<SelfTestReport | undefined>(undefined);
const failure = signal<string | undefined>(undefined);

const run = async (): Promise<void> => {
  try {
    report.value = await testGpu({
      onEntry: (entry) => {
        entries.value = [...entries.value, entry];
      },
    });
  } catch (error) {
    failure.value = (error as Error).message;
  }
};

const verdict = (): string => {
  if (failure.value) return failure.value;
  if (!report.value) return "Testing every WebGPU kernel…";
  const wrong = report.value.entries.filter(({ isRight }) => !isRight).length;
  const count = report.value.entries.length;
  return `${report.value.device}: ${count - wrong} of ${count} checks are right${report.value.isUsable ? "" : "; policies run on WASM here"}`;
};

export const SelfTest = (): JSX.Element => {
  useEffect(() => void run(), []);
  return (
    <main class="page">
      <h1 data-testid="verdict">{verdict()}</h1>
      <table>
        <thead>
          <tr>
            <th>case</th>
            <th>variant</th>
            <th>largest error</th>
            <th />
          </tr>
        </thead>
        <tbody>
          {entries.value.map(({ name, variant, error, isRight, message }) => (
            <tr key={`${name} ${variant}`}>
              <td>{name}</td>
              <td>{variant ?? "–"}</td>
              <td>{message ?? error.toExponential(1)}</td>
              <td>{isRight ? "right" : "WRONG"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </main>
  );
};
