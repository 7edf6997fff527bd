/** What the graph says in words: labels of boxes, the summary above it, and what is left out. */

import { neighbours, reach } from "./lineage";
import type { Box, Lineage, LineageNode } from "./types";

/** The beginning of an id, as the `bb` command shows it. */
export function shortId(id: string): string {
  return id.slice(0, 13);
}

/** Count something: `1 cause`, `2 causes`. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** Time of day, `15:59:30`, in the reader's zone; empty when not known. */
export function timeOfDay(timestamp: string | null): string {
  if (timestamp === null) return "";
  const time = new Date(timestamp);
  return [time.getHours(), time.getMinutes(), time.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

/** The first line of a box. */
export function titleOf(box: Box): string {
  const type = box.type ?? "unknown event";
  return box.events.length > 1 ? `${box.events.length.toLocaleString("en")} × ${type}` : type;
}

/** The second line of a box. */
export function detailOf(box: Box): string {
  const first = box.events[0]!;
  if (!box.known) return `${shortId(first.id)} · never seen`;
  if (box.events.length === 1) return [shortId(first.id), timeOfDay(first.timestamp), first.source].filter(Boolean).join(" · ");
  const [from, to] = span(box.events);
  const sources = new Set(box.events.map(({ source }) => source));
  const who = sources.size === 1 ? first.source : counted(sources.size, "source");
  return [from === to ? from : `${from} to ${to}`, who].filter(Boolean).join(" · ");
}

/** Everything that a box shows, for screen readers and the line below the graph. */
export function labelOf(box: Box, causes: number, effects: number): string {
  const parts: string[] = [];
  // Whoever speaks to the page says what stands in the box: the name begins with that.
  const seen = `${titleOf(box)} ${detailOf(box)}`;
  parts.push(box.events.length > 1 ? `Group of ${seen}` : box.known ? seen : `${seen}, or no longer kept`);
  if (box.known) parts.push(box.failed ? "failed" : "ok");
  parts.push(counted(causes, "cause"), counted(effects, "effect"));
  if (box.hiddenParents > 0) parts.push(`${counted(box.hiddenParents, "more cause")} not drawn`);
  if (box.hiddenChildren > 0) parts.push(`${counted(box.hiddenChildren, "more effect")} not drawn`);
  return parts.filter(Boolean).join(", ");
}

/** The graph in a few sentences. */
export function summary(lineage: Lineage): string {
  const { nodes, focus } = lineage;
  const { parents, children } = neighbours(lineage);
  const before = reach(focus, parents, null).size - 1;
  const after = reach(focus, children, null).size - 1;
  const beside = Math.max(0, nodes.length - 1 - before - after);
  const failed = nodes.filter(({ status }) => status === "failed").length;
  const unknown = nodes.filter(({ known }) => !known).length;
  const told = [`${counted(nodes.length, "event")}: this one, ${counted(before, "cause")} before it, ${counted(after, "effect")} after it`];
  told[0] += beside > 0 ? `, ${counted(beside, "other")} beside it.` : ".";
  const roots = lineage.roots.map((id) => nodes.find((node) => node.id === id)).filter((node) => node?.known);
  if (before > 0 && roots.length > 0 && roots.length <= 3) {
    told.push(`It began with ${roots.map((node) => node!.event_type).join(", ")}.`);
  } else if (before > 0 && roots.length > 3) told.push(`It began with ${counted(roots.length, "event")}.`);
  if (failed > 0) told.push(`${counted(failed, "event")} failed.`);
  if (unknown > 0) {
    const were = unknown === 1 ? "cause was named and never seen, or is" : "causes were named and never seen, or are";
    told.push(`${unknown.toLocaleString("en")} ${were} older than what is kept.`);
  }
  if (lineage.cycle) told.push("Some events name each other as causes, in a circle.");
  return told.join(" ");
}

/** What is not drawn, in a sentence; empty when everything is. */
export function leftOut(boxes: Box[], cut: boolean): string {
  let causes = 0;
  let effects = 0;
  for (const box of boxes) {
    causes += box.hiddenParents;
    effects += box.hiddenChildren;
  }
  const parts = [];
  if (causes > 0) parts.push(counted(causes, "cause"));
  if (effects > 0) parts.push(counted(effects, "effect"));
  const told = [];
  if (parts.length > 0) told.push(`Not drawn: ${parts.join(" and ")} of these events. Press a “+” to see more.`);
  if (cut) told.push("There are more events than one answer holds; the graph is not whole.");
  return told.join(" ");
}

function span(events: LineageNode[]): [string, string] {
  let first: string | null = null;
  let last: string | null = null;
  for (const { timestamp } of events) {
    if (timestamp === null) continue;
    if (first === null || timestamp < first) first = timestamp;
    if (last === null || timestamp > last) last = timestamp;
  }
  return [timeOfDay(first), timeOfDay(last)];
}
