/** Lineages put together, and the part of one that is shown. Nothing is recursive. */

import type { Direction, Lineage, LineageNode, Load } from "./types";

/** As far as anybody asks: what the server allows by default is more. */
export const ALL = 10_000;
/** The first question's size; most graphs fit. */
export const FIRST_LIMIT = 500;
/** How many events one answer may hold when the first was not enough. */
export const MOST_EVENTS = 10_000;
export const DEFAULT_DOWN = 2;
/** Of how many shown events the causes that are not shown are asked, to find links among what is shown. */
const MOST_QUESTIONS = 16;

/** Which events around the focus are shown. */
export interface Shown {
  /** Generations towards causes; null is all. */
  up: number | null;
  /** Generations towards effects; null is all. */
  down: number | null;
  /** Events whose causes are all shown. */
  grownUp: ReadonlySet<string>;
  /** Events whose effects are all shown. */
  grownDown: ReadonlySet<string>;
}

export interface Gathered {
  lineage: Lineage;
  /** All causes and effects are at hand, whatever is shown. */
  isWhole: boolean;
}

interface Neighbours {
  parents: Map<string, string[]>;
  children: Map<string, string[]>;
}

/** Join lineages. The focus is that of the first; what a later one knows is added. */
export function merge(first: Lineage, ...others: Lineage[]): Lineage {
  const nodes = new Map<string, LineageNode>();
  const edges = new Map<string, { parent: string; child: string }>();
  let cycle = false;
  for (const lineage of [first, ...others]) {
    for (const node of lineage.nodes) {
      const had = nodes.get(node.id);
      if (!had || (!had.known && node.known)) nodes.set(node.id, node);
      else if (node.parents_total > had.parents_total || node.children_total > had.children_total) {
        const parents_total = Math.max(node.parents_total, had.parents_total);
        const children_total = Math.max(node.children_total, had.children_total);
        nodes.set(node.id, { ...had, parents_total, children_total });
      }
    }
    for (const edge of lineage.edges) edges.set(`${edge.parent} ${edge.child}`, edge);
    cycle ||= lineage.cycle;
  }
  const all = Array.from(nodes.values());
  const joined: Lineage = { ...first, direction: "both", nodes: all, edges: Array.from(edges.values()), cycle };
  joined.missing = all.filter(({ known }) => !known).map(({ id }) => id);
  const cuts = [first, ...others].map(({ truncated }) => truncated);
  joined.truncated = {
    depth: cuts.some(({ depth }) => depth),
    limit: cuts.some(({ limit }) => limit),
    frontier: Array.from(new Set(cuts.flatMap(({ frontier }) => frontier))),
  };
  return joined;
}

/** Return the part of a lineage that is shown, with all links among it; depths are counted anew. */
export function shownPart(lineage: Lineage, shown: Shown): Lineage {
  const near = neighbours(lineage);
  const depth = new Map<string, number>([[lineage.focus, 0]]);
  const below = reach(lineage.focus, near.children, shown.down);
  const above = reach(lineage.focus, near.parents, shown.up);
  for (const [id, hops] of below) if (hops > 0) depth.set(id, hops);
  for (const [id, hops] of above) if (hops > 0 && (depth.get(id) ?? Infinity) >= hops) depth.set(id, -hops);
  // What was grown may show events that were grown too, so go on until nothing is added.
  for (let size = -1; size !== depth.size; ) {
    size = depth.size;
    for (const [grown, map, step] of [
      [shown.grownUp, near.parents, -1],
      [shown.grownDown, near.children, 1],
    ] as const) {
      for (const id of grown) {
        const at = depth.get(id);
        if (at === undefined) continue;
        for (const next of map.get(id) ?? []) if (!depth.has(next)) depth.set(next, at + step);
      }
    }
  }
  const nodes = lineage.nodes.filter(({ id }) => depth.has(id)).map((node) => ({ ...node, depth: depth.get(node.id)! }));
  const edges = lineage.edges.filter(({ parent, child }) => depth.has(parent) && depth.has(child));
  const caused = new Set(edges.map(({ child }) => child));
  return {
    ...lineage,
    nodes,
    edges,
    roots: nodes.filter(({ id }) => !caused.has(id)).map(({ id }) => id),
    missing: nodes.filter(({ known }) => !known).map(({ id }) => id),
  };
}

/** Return the events that can be reached, with the fewest hops to each. */
export function reach(start: string, next: Map<string, string[]>, most: number | null): Map<string, number> {
  const hops = new Map<string, number>([[start, 0]]);
  let level = [start];
  for (let distance = 1; level.length > 0 && (most === null || distance <= most); distance++) {
    const following: string[] = [];
    for (const id of level) {
      for (const other of next.get(id) ?? []) {
        if (hops.has(other)) continue;
        hops.set(other, distance);
        following.push(other);
      }
    }
    level = following;
  }
  return hops;
}

/** Return the parents and children of each end of the edges. */
export function neighbours(graph: { edges: readonly { parent: string; child: string }[] }): Neighbours {
  const parents = new Map<string, string[]>();
  const children = new Map<string, string[]>();
  const put = (map: Map<string, string[]>, key: string, value: string) => {
    const values = map.get(key);
    if (values) values.push(value);
    else map.set(key, [value]);
  };
  for (const { parent, child } of graph.edges) {
    put(parents, child, parent);
    put(children, parent, child);
  }
  return { parents, children };
}

/**
 * Ask the server for what is shown around an event.
 *
 * One question in both directions is enough for most. Where that is cut, causes and effects are asked for apart; links
 * between the two are then found by asking a few of the shown events for their causes.
 */
export async function gather(load: Load, id: string, up: number | null, down: number | null): Promise<Gathered> {
  const whole = await bounded(load, id, "both", ALL, FIRST_LIMIT);
  if (!whole.truncated.limit && !whole.truncated.depth) return { lineage: whole, isWhole: true };
  const [above, below] = await Promise.all([
    bounded(load, id, "ancestors", up ?? ALL, MOST_EVENTS),
    bounded(load, id, "descendants", down ?? ALL, MOST_EVENTS),
  ]);
  const joined = merge(below, above, whole);
  const cut = { depth: false, limit: above.truncated.limit || below.truncated.limit, frontier: [] };
  const shown = shownPart(joined, { up, down, grownUp: new Set(), grownDown: new Set() });
  return { lineage: { ...(await withLinks(load, joined, shown.nodes)), truncated: cut }, isWhole: false };
}

/** Ask for the causes or effects of events of a lineage and join them to it. At most 16 events are asked at a time. */
export async function grow(load: Load, lineage: Lineage, ids: string[], way: "up" | "down"): Promise<Lineage> {
  const direction = way === "up" ? "ancestors" : "descendants";
  const asked = ids.slice(0, MOST_QUESTIONS);
  const found = await Promise.all(asked.map((id) => bounded(load, id, direction, 1, MOST_EVENTS)));
  const joined = merge(lineage, ...found);
  const known = new Set(lineage.nodes.map(({ id }) => id));
  const fresh = joined.nodes.filter(({ id }) => !known.has(id));
  return { ...(await withLinks(load, joined, fresh)), truncated: lineage.truncated };
}

/** Ask a few events whose causes are not all at hand for them: links among what is shown are found so. */
async function withLinks(load: Load, lineage: Lineage, among: LineageNode[]): Promise<Lineage> {
  const { parents } = neighbours(lineage);
  const asked = among
    .filter(({ id, parents_total }) => parents_total > (parents.get(id)?.length ?? 0))
    .slice(0, MOST_QUESTIONS);
  const found = await Promise.all(asked.map(({ id }) => load(id, "ancestors", 1, null)));
  return merge(lineage, ...found);
}

/** Ask again with the server's own bounds where it allows less. */
async function bounded(load: Load, id: string, direction: Direction, depth: number, limit: number): Promise<Lineage> {
  try {
    return await load(id, direction, depth, limit);
  } catch (error) {
    if ((error as { status?: unknown } | null)?.status !== 400) throw error;
    return load(id, direction, null, null);
  }
}
