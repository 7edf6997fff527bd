/** Which colour stands for which domain or source. */

import type { Box } from "./types";

export type ColourBy = "domain" | "source";

/** Colours that are told apart; further names share the last one, grey. */
export const COLOURS = 8;

export interface LegendItem {
  name: string;
  /** 0 … 7, or 8 for the grey of all others. */
  colour: number;
  events: number;
}

export interface Legend {
  items: LegendItem[];
  colourOf(box: Box): number;
}

/** The domain of a type is its first word. */
export function domainOf(type: string | null): string {
  return type === null ? "unknown" : type.split(".", 1)[0]!;
}

/**
 * Give each domain or source a colour.
 *
 * A name's colour comes from the name, so that it is the same in other graphs; only where two would share one, the
 * later in the alphabet takes the next that is free.
 */
export function legendOf(boxes: Box[], by: ColourBy): Legend {
  const events = new Map<string, number>();
  for (const box of boxes) {
    if (!box.known) continue;
    const name = nameOf(box, by);
    events.set(name, (events.get(name) ?? 0) + box.events.length);
  }
  const taken = new Map<number, string>();
  const colours = new Map<string, number>();
  for (const name of Array.from(events.keys()).sort()) {
    let colour = hash(name) % COLOURS;
    for (let tries = 0; tries < COLOURS && taken.has(colour); tries++) colour = (colour + 1) % COLOURS;
    if (taken.has(colour)) colour = COLOURS;
    else taken.set(colour, name);
    colours.set(name, colour);
  }
  const items = Array.from(events, ([name, count]) => ({ name, colour: colours.get(name)!, events: count }));
  items.sort((a, b) => b.events - a.events || (a.name < b.name ? -1 : 1));
  return { items, colourOf: (box) => (box.known ? (colours.get(nameOf(box, by)) ?? COLOURS) : COLOURS) };
}

function nameOf(box: Box, by: ColourBy): string {
  if (by === "domain") return domainOf(box.type);
  const sources = new Set(box.events.map(({ source }) => source ?? "unknown"));
  return sources.size === 1 ? Array.from(sources)[0]! : "several sources";
}

/** FNV-1a, 32 bits. */
function hash(name: string): number {
  let value = 0x811c9dc5;
  for (let at = 0; at < name.length; at++) value = Math.imul(value ^ name.charCodeAt(at), 0x01000193);
  return value >>> 0;
}
