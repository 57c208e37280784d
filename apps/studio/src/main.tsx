import { render } from "preact";
import { App } from "./app.tsx";
import "uplot/dist/uPlot.min.css";
import "./style.css";

const root = document.getElementById("app") as HTMLElement;
if (new URLSearchParams(location.search).has("selftest")) {
  const { SelfTest } = await import("./panels/selfTest.tsx");
  render(<SelfTest />, root);
} else render(<App />, root);
