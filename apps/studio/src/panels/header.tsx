import type { JSX } from "preact";
import { device, isReader, memory, weightFormat } from "../session.ts";
import { nextTheme, theme } from "../theme.ts";

export const Header = (): JSX.Element => (
  <header class="top">
    <a class="brand" href="#top" aria-label="Fulgurite Studio">
      <img src="/icon.svg" alt="" width="26" height="26" />
      <span>
        Fulgurite <b>Studio</b>
      </span>
    </a>
    <div class="top-end">
      {isReader.value && <span class="chip warn">another tab is training</span>}
      <span class="chip" data-testid="device" title="Where the policy runs">
        <i class={device.value ? "dot on" : "dot"} />
        {device.value ?? "loading the policy…"}
      </span>
      {memory.value && (
        <span class="chip" data-testid="memory" title={`The policy takes at most ${memory.value}`}>
          ≤ {memory.value.split(":")[0]}, {weightFormat.value} weights
        </span>
      )}
      <button type="button" class="ghost" onClick={nextTheme} title="Theme: system, light, dark">
        {theme.value === "system" ? "Auto" : theme.value === "light" ? "Light" : "Dark"}
      </button>
    </div>
  </header>
);
