// Light, dark, or what the system says; kept in localStorage.
import { effect, type Signal, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";

const KEY = "fulgurite/studio/theme";
const kept = localStorage.getItem(KEY);

export const theme: Signal<Theme> = signal<Theme>(kept === "light" || kept === "dark" ? kept : "system");

/** Changes whenever the colours do: the visitor's choice, or the system's while "system" is chosen. Canvases are redrawn on it. */
export const scheme: Signal<string> = signal<string>("");

const dark = matchMedia("(prefers-color-scheme: dark)");
const readScheme = (): void => {
  scheme.value = theme.value === "system" ? (dark.matches ? "dark" : "light") : theme.value;
};
dark.addEventListener("change", readScheme);

effect(() => {
  const chosen = theme.value;
  document.documentElement.style.colorScheme = chosen === "system" ? "light dark" : chosen;
  if (chosen === "system") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, chosen);
  readScheme();
});

export const nextTheme = (): void => {
  const order: readonly Theme[] = ["system", "light", "dark"];
  theme.value = order[(order.indexOf(theme.value) + 1) % order.length] as Theme;
};
