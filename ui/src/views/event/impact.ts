/** What an event led to, in a sentence. Pure. */

import type { Impact } from "../../api/types";
import { count, listed, many, span } from "../../app/words";

const MOST_NAMED = 3;

/** Return one sentence, and a second one where something failed or counting was cut short. */
export function impactSentence(impact: Impact): string {
  const { descendants, first, last, truncated } = impact;
  const isCut = truncated.depth || truncated.limit;
  if (descendants === 0) return isCut ? "What it led to could not be counted within the limits." : "It has led to nothing so far.";
  const kinds = Object.entries(impact.by_type).sort(([a, m], [b, n]) => n - m || a.localeCompare(b));
  const named = kinds.slice(0, MOST_NAMED).map(([type, number]) => (descendants === 1 ? type : `${count(number)} ${type}`));
  const others = kinds.slice(MOST_NAMED).reduce((sum, [, number]) => sum + number, 0);
  if (others > 0) named.push(many(others, "other"));
  const seconds = first !== null && last !== null ? (Date.parse(last) - Date.parse(first)) / 1000 : 0;
  const within = descendants > 1 && seconds > 0 ? ` within ${span(seconds)}` : "";
  const makers = Object.keys(impact.by_source).length;
  const by = makers > 1 ? ` by ${many(makers, "source")}` : "";
  const parts = [`It led to ${isCut ? "at least " : ""}${many(descendants, "event")}${by}${within}: ${listed(named)}.`];
  const { failed } = impact.by_status;
  if (failed > 0) parts.push(failedSentence(failed, descendants));
  if (isCut) parts.push("Counting ended at the limit, so there may be more.");
  return parts.join(" ");
}

function failedSentence(failed: number, descendants: number): string {
  if (descendants === 1) return "That one failed.";
  if (failed < descendants) return `${count(failed)} of them failed.`;
  return descendants === 2 ? "Both failed." : "All of them failed.";
}
