/** Ways through a drawing: what lies on the path of a box, and where the arrow keys lead. */

import { neighbours, reach } from "./lineage";
import type { Drawing, PlacedBox } from "./types";

export interface Paths {
  parents: Map<string, string[]>;
  children: Map<string, string[]>;
  /** How many events caused a box's, and were caused by them, as far as they are drawn. */
  counts: Map<string, { causes: number; effects: number }>;
}

export function pathsOf(drawing: Drawing): Paths {
  const boxes = new Map(drawing.nodes.map((box) => [box.id, box]));
  const counts = new Map(drawing.nodes.map(({ id }) => [id, { causes: 0, effects: 0 }]));
  const isOne = (id: string) => boxes.get(id)!.events.length === 1;
  for (const { parent, child, count } of drawing.edges) {
    counts.get(child)!.causes += isOne(child) ? count : boxes.get(parent)!.events.length;
    counts.get(parent)!.effects += isOne(parent) ? count : boxes.get(child)!.events.length;
  }
  return { ...neighbours(drawing), counts };
}

/** What a box came from and led to. */
export interface Lit {
  above: ReadonlySet<string>;
  below: ReadonlySet<string>;
}

export function lit(id: string, paths: Paths): Lit {
  return {
    above: new Set(reach(id, paths.parents, null).keys()),
    below: new Set(reach(id, paths.children, null).keys()),
  };
}

/** Tell whether a line lies on the path. */
export function isLit(edge: { parent: string; child: string }, path: Lit): boolean {
  return (path.above.has(edge.parent) && path.above.has(edge.child)) || (path.below.has(edge.parent) && path.below.has(edge.child));
}

export type Step = "up" | "down" | "left" | "right" | "next" | "previous";

/**
 * Return the box that a key leads to, null where there is none.
 *
 * Up is the nearest cause and down the nearest effect; left and right are the siblings, of the same causes or with the
 * same effects, and where there are none the neighbours in the row. Next and previous go through all boxes, row by row.
 */
export function step(from: PlacedBox, way: Step, drawing: Drawing, paths: Paths): PlacedBox | null {
  const at = new Map(drawing.nodes.map((box) => [box.id, box]));
  const boxes = (ids: Iterable<string>) => Array.from(ids, (id) => at.get(id)!).filter((box) => box.id !== from.id);
  if (way === "up" || way === "down") {
    const next = boxes((way === "up" ? paths.parents : paths.children).get(from.id) ?? []);
    return nearest(next, (box) => Math.abs(box.x - from.x) + Math.abs(box.y - from.y) / 4);
  }
  if (way === "next" || way === "previous") {
    const reading = drawing.nodes.slice().sort((a, b) => a.layer - b.layer || a.order - b.order);
    return reading[reading.findIndex(({ id }) => id === from.id) + (way === "next" ? 1 : -1)] ?? null;
  }
  const siblings = new Set<string>();
  for (const parent of paths.parents.get(from.id) ?? []) for (const id of paths.children.get(parent) ?? []) siblings.add(id);
  for (const child of paths.children.get(from.id) ?? []) for (const id of paths.parents.get(child) ?? []) siblings.add(id);
  const isBeside = (box: PlacedBox) => (way === "left" ? before(box, from) : before(from, box));
  const beside = boxes(siblings).filter(isBeside);
  const candidates = beside.length > 0 ? beside : drawing.nodes.filter((box) => box.layer === from.layer && isBeside(box));
  return nearest(candidates, (box) => Math.abs(box.x - from.x) + Math.abs(box.y - from.y) / 1000);
}

function before(a: PlacedBox, b: PlacedBox): boolean {
  return a.x < b.x || (a.x === b.x && a.y < b.y);
}

function nearest(boxes: PlacedBox[], distance: (box: PlacedBox) => number): PlacedBox | null {
  let best: PlacedBox | null = null;
  let least = Infinity;
  for (const box of boxes) {
    const now = distance(box);
    if (now < least) [best, least] = [box, now];
  }
  return best;
}
