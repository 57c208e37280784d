import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import { Curve } from "./panels/curve.tsx";
import { Header } from "./panels/header.tsx";
import { Metrics } from "./panels/metrics.tsx";
import { RolloutList } from "./panels/rolloutList.tsx";
import { RolloutPanel } from "./panels/rolloutPanel.tsx";
import { RunPanel } from "./panels/runPanel.tsx";
import { Scores } from "./panels/scores.tsx";
import { open } from "./session.ts";

export const App = (): JSX.Element => {
  useEffect(() => void open(), []);
  return (
    <>
      <Header />
      <main class="page">
        <RunPanel />
        <Scores />
        <Curve />
        <Metrics />
        <RolloutList />
        <RolloutPanel />
      </main>
    </>
  );
};
