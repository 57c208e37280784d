// Light, dark, or what the system says; kept in localStorage.
import { effect, type Signal, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";

const KEY = "fulgurite/studio/theme";
const kept = localStorage.getItem(KEY);

export const theme: Signal<Theme> = signal<Theme>(kept === "light" || kept === "dark" ? kept : "system");

effect(() => {
  const chosen = theme.value;
  document.documentElement.style.colorScheme = chosen === "system" ? "light dark" : chosen;
  if (chosen === "system") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, chosen);
});

export const nextTheme = (): void => {
  const order: readonly Theme[] = ["system", "light", "dark"];
  theme.value = order[(order.indexOf(theme.value) + 1) % order.length] as Theme;
};
