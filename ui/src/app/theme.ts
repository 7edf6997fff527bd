/** Light, dark, or as the system has it. */

import { signal } from "@preact/signals";

import { keptIn } from "./storage";

export const THEMES = ["auto", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const STORED = "bloodbank.theme";
const browser = keptIn(() => localStorage);

/** What was chosen; `auto` follows the system. */
export const theme = signal<Theme>(stored());

/** Choose, and remember it in this browser. */
export function chooseTheme(chosen: Theme): void {
  browser.set(STORED, chosen);
  theme.value = chosen;
  applyTheme();
}

/** Let the document have the chosen colours: `data-theme` on its root, which the style sheet reads. */
export function applyTheme(): void {
  if (theme.value === "auto") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme.value;
}

function stored(): Theme {
  const found = browser.get(STORED);
  return THEMES.find((name) => name === found) ?? "auto";
}
