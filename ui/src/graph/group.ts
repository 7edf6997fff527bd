/** Siblings of one type with the same causes become one box when there are many. Nothing is lost: see `boxOf`. */

import { type Index, indexBy, topological } from "./dag";
import type { Box, Grouped, Lineage, LineageNode } from "./types";

/** More boxes than this are too many to read: smaller groups are made too. */
export const MANY_BOXES = 500;
/** More siblings than this are always one box. */
export const MANY_SIBLINGS = 12;
/** How many events an expanded group lets go at a time. */
export const EXPAND_STEP = 24;
const GROUP_PREFIX = "group:";
/** Least siblings of a group, tried in turn until there are few boxes enough. */
const LEAST_SIBLINGS = [MANY_SIBLINGS + 1, 6, 3, 2];

export interface GroupOptions {
  /** How many events of a group (by the group's id) are boxes of their own. */
  expanded?: ReadonlyMap<string, number>;
  /** Only events of one source are grouped, as the lanes of a timeline need. */
  bySource?: boolean;
}

/** Tell whether a box's id is that of a group. */
export function isGroup(id: string): boolean {
  return id.startsWith(GROUP_PREFIX);
}

/** Make boxes of a lineage's events. The focus is never grouped. */
export function group(lineage: Lineage, options: GroupOptions = {}): Grouped {
  const graph = numbered(lineage);
  let assigned: Int32Array | null = null;
  for (const least of LEAST_SIBLINGS) {
    assigned = assign(graph, least, options.bySource ?? false);
    if (countOf(assigned) <= MANY_BOXES) break;
  }
  return boxed(lineage, graph, expand(graph, assigned!, options.expanded));
}

interface Numbered {
  nodes: LineageNode[];
  focus: number;
  from: Int32Array;
  to: Int32Array;
}

function numbered(lineage: Lineage): Numbered {
  const at = new Map<string, number>();
  lineage.nodes.forEach((node, number) => at.set(node.id, number));
  const from: number[] = [];
  const to: number[] = [];
  for (const { parent, child } of lineage.edges) {
    const upper = at.get(parent);
    const lower = at.get(child);
    if (upper === undefined || lower === undefined || upper === lower) continue;
    from.push(upper);
    to.push(lower);
  }
  return {
    nodes: lineage.nodes,
    focus: at.get(lineage.focus) ?? -1,
    from: Int32Array.from(from),
    to: Int32Array.from(to),
  };
}

function countOf(assigned: Int32Array): number {
  let count = 0;
  assigned.forEach((first, node) => (count += first === node ? 1 : 0));
  return count;
}

/** Return for each node the first node of its group, itself where it has none. Causes are grouped before effects. */
function assign(graph: Numbered, least: number, bySource: boolean): Int32Array {
  const count = graph.nodes.length;
  const up = indexBy(count, graph.to);
  const down = indexBy(count, graph.from);
  const order = topological(count, graph.from, graph.to);
  const assigned = new Int32Array(count);
  for (let node = 0; node < count; node++) assigned[node] = node;
  const height = new Int32Array(count);
  for (const node of order) {
    for (let at = up.start[node]!; at < up.start[node + 1]!; at++) {
      height[node] = Math.max(height[node]!, height[graph.from[up.items[at]!]!]! + 1);
    }
  }
  const byHeight = Array.from(order).sort((a, b) => height[a]! - height[b]!);
  for (let first = 0; first < count; ) {
    let last = first;
    while (last < count && height[byHeight[last]!] === height[byHeight[first]!]) last++;
    const alike = new Map<string, number[]>();
    for (const node of byHeight.slice(first, last).sort((a, b) => a - b)) {
      const event = graph.nodes[node]!;
      if (node === graph.focus || !event.known) continue;
      const causes = new Set<number>();
      for (let at = up.start[node]!; at < up.start[node + 1]!; at++) causes.add(assigned[graph.from[up.items[at]!]!]!);
      const kin = causes.size > 0 ? Array.from(causes) : effectsOf(graph, down, node);
      const way = causes.size > 0 ? "of" : "to";
      const key = [event.event_type, bySource ? event.source : "", way, ...kin.sort((a, b) => a - b)].join(" ");
      const siblings = alike.get(key);
      if (siblings) siblings.push(node);
      else alike.set(key, [node]);
    }
    for (const siblings of alike.values()) {
      if (siblings.length >= least) for (const node of siblings) assigned[node] = siblings[0]!;
    }
    first = last;
  }
  return assigned;
}

/** Events without a cause are siblings when they led to the same. */
function effectsOf(graph: Numbered, down: Index, node: number): number[] {
  return Array.from(down.items.subarray(down.start[node]!, down.start[node + 1]!), (edge) => graph.to[edge]!);
}

interface Members {
  /** Id of the box. It stays the same while events are let out. */
  id: string;
  of: string | null;
  nodes: number[];
}

/** Let events out of the groups that are expanded. */
function expand(graph: Numbered, assigned: Int32Array, expanded?: ReadonlyMap<string, number>): Members[] {
  const groups = new Map<number, number[]>();
  assigned.forEach((first, node) => {
    const members = groups.get(first);
    if (members) members.push(node);
    else groups.set(first, [node]);
  });
  const boxes: Members[] = [];
  for (const [first, members] of Array.from(groups).sort((a, b) => a[0] - b[0])) {
    const id = GROUP_PREFIX + graph.nodes[first]!.id;
    const out = expanded?.get(id) ?? 0;
    const left = members.length - out < 2 ? [] : members.slice(out);
    // What is left stands first, where the whole group was.
    if (left.length > 0) boxes.push({ id, of: null, nodes: left });
    for (const node of members.slice(0, members.length - left.length)) {
      boxes.push({ id: graph.nodes[node]!.id, of: members.length > 1 ? id : null, nodes: [node] });
    }
  }
  return boxes;
}

function boxed(lineage: Lineage, graph: Numbered, members: Members[]): Grouped {
  const boxOf = new Map<string, string>();
  const parents = new Int32Array(graph.nodes.length);
  const children = new Int32Array(graph.nodes.length);
  for (let edge = 0; edge < graph.from.length; edge++) {
    children[graph.from[edge]!]!++;
    parents[graph.to[edge]!]!++;
  }
  const boxes: Box[] = [];
  for (const { id, of, nodes } of members) {
    const events = nodes.map((node) => graph.nodes[node]!);
    const event = events[0]!;
    const box: Box = {
      id,
      of,
      events,
      type: event.event_type,
      known: event.known,
      failed: events.some(({ status }) => status === "failed"),
      hiddenParents: 0,
      hiddenChildren: 0,
    };
    for (const node of nodes) {
      const event = graph.nodes[node]!;
      box.hiddenParents += Math.max(0, event.parents_total - parents[node]!);
      box.hiddenChildren += Math.max(0, event.children_total - children[node]!);
      boxOf.set(event.id, id);
    }
    boxes.push(box);
  }
  const edges = new Map<string, { parent: string; child: string; count: number }>();
  for (let edge = 0; edge < graph.from.length; edge++) {
    const parent = boxOf.get(lineage.nodes[graph.from[edge]!]!.id)!;
    const child = boxOf.get(lineage.nodes[graph.to[edge]!]!.id)!;
    const key = `${parent} ${child}`;
    const known = edges.get(key);
    if (known) known.count++;
    else edges.set(key, { parent, child, count: 1 });
  }
  return { boxes, edges: Array.from(edges.values()), boxOf };
}
