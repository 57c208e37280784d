// Which rollout is open: the address says (#rollout=<id>).
import { type Signal, signal } from "@preact/signals";

const fromAddress = (): string | undefined => {
  const value = new URLSearchParams(location.hash.slice(1)).get("rollout");
  return value ?? undefined;
};

export const selected: Signal<string | undefined> = signal<string | undefined>(fromAddress());

addEventListener("hashchange", () => {
  selected.value = fromAddress();
});
