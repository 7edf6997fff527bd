/**
 * Give each node of an ordered, layered graph a place from left to right: short and straight lines, nothing overlaps.
 *
 * Brandes and Köpf 2001: four alignments, each compacted, and the mean of the middle two. The compaction goes over a
 * graph of blocks in topological order, as dagre does it, and so needs no recursion.
 */

import { type Index, indexBy } from "./dag";
import type { Layered } from "./order";

export interface Sizes {
  /** Width of each node; 0 where a line passes a layer. */
  width: Float64Array;
  /** True (1) where a line passes. */
  passing: Uint8Array;
  boxGap: number;
  lineGap: number;
}

interface Sides {
  down: Index;
  up: Index;
}

/** Return the centre of each node, the least left edge being 0. */
export function placeNodes(graph: Layered, rows: number[][], sizes: Sizes): Float64Array {
  const count = graph.layer.length;
  const sides = { down: indexBy(count, graph.upper), up: indexBy(count, graph.lower) };
  const conflicts = markConflicts(graph, rows, sides, sizes);
  const layouts: Float64Array[] = [];
  for (const upwards of [true, false]) {
    for (const leftwards of [true, false]) {
      const ordered = (upwards ? rows : rows.slice().reverse()).map((row) => (leftwards ? row : row.slice().reverse()));
      const root = align(graph, ordered, sides, conflicts, upwards);
      const x = compact(ordered, root, sizes);
      if (!leftwards) for (let node = 0; node < count; node++) x[node] = -x[node]!;
      layouts.push(x);
    }
  }
  return balance(layouts, sizes);
}

/** Mark segments that cross an inner segment of a long line: the long line stays straight. */
function markConflicts(graph: Layered, rows: number[][], sides: Sides, sizes: Sizes): Uint8Array {
  const conflicts = new Uint8Array(graph.upper.length);
  const position = positions(graph.layer.length, rows);
  const { up } = sides;
  for (let at = 1; at < rows.length; at++) {
    const row = rows[at]!;
    const above = rows[at - 1]!;
    let from = 0;
    let scanned = 0;
    for (let place = 0; place < row.length; place++) {
      const node = row[place]!;
      let inner = -1;
      if (sizes.passing[node]) {
        const other = graph.upper[up.items[up.start[node]!]!]!;
        if (sizes.passing[other]) inner = position[other]!;
      }
      if (inner < 0 && place < row.length - 1) continue;
      const to = inner < 0 ? above.length : inner;
      for (; scanned <= place; scanned++) {
        const scan = row[scanned]!;
        for (let item = up.start[scan]!; item < up.start[scan + 1]!; item++) {
          const segment = up.items[item]!;
          const other = graph.upper[segment]!;
          const seat = position[other]!;
          if ((seat < from || to < seat) && !(sizes.passing[other] && sizes.passing[scan])) conflicts[segment] = 1;
        }
      }
      from = to;
    }
  }
  return conflicts;
}

function positions(count: number, rows: number[][]): Int32Array {
  const position = new Int32Array(count);
  for (const row of rows) row.forEach((node, at) => (position[node] = at));
  return position;
}

/** Align each node with the median of its neighbours in the row before; return the first node of each one's block. */
function align(graph: Layered, rows: number[][], sides: Sides, conflicts: Uint8Array, upwards: boolean): Int32Array {
  const count = graph.layer.length;
  const index = upwards ? sides.up : sides.down;
  const ends = upwards ? graph.upper : graph.lower;
  const position = positions(count, rows);
  const root = new Int32Array(count);
  const hasNext = new Uint8Array(count);
  for (let node = 0; node < count; node++) root[node] = node;
  for (const row of rows) {
    let last = -1;
    for (const node of row) {
      const segments = Array.from(index.items.subarray(index.start[node]!, index.start[node + 1]!));
      if (segments.length === 0) continue;
      segments.sort((a, b) => position[ends[a]!]! - position[ends[b]!]!);
      const middle = (segments.length - 1) / 2;
      for (let at = Math.floor(middle); at <= Math.ceil(middle); at++) {
        const segment = segments[at]!;
        const other = ends[segment]!;
        if (hasNext[other] || conflicts[segment] || position[other]! <= last) continue;
        hasNext[other] = 1;
        root[node] = root[other]!;
        last = position[other]!;
        break;
      }
    }
  }
  return root;
}

/** Put blocks as far left as they go, then each as far right as its right neighbours let it. */
function compact(rows: number[][], root: Int32Array, sizes: Sizes): Float64Array {
  const count = root.length;
  const from: number[] = [];
  const to: number[] = [];
  const space: number[] = [];
  for (const row of rows) {
    for (let at = 1; at < row.length; at++) {
      from.push(root[row[at - 1]!]!);
      to.push(root[row[at]!]!);
      space.push(separation(row[at - 1]!, row[at]!, sizes));
    }
  }
  const right = indexBy(count, from);
  const waits = new Int32Array(count);
  for (const block of to) waits[block]!++;
  const order: number[] = [];
  for (let node = 0; node < count; node++) if (root[node] === node && waits[node] === 0) order.push(node);
  const x = new Float64Array(count);
  for (let read = 0; read < order.length; read++) {
    const block = order[read]!;
    for (let item = right.start[block]!; item < right.start[block + 1]!; item++) {
      const arrow = right.items[item]!;
      const next = to[arrow]!;
      x[next] = Math.max(x[next]!, x[block]! + space[arrow]!);
      if (--waits[next]! === 0) order.push(next);
    }
  }
  for (let read = order.length - 1; read >= 0; read--) {
    const block = order[read]!;
    let most = Infinity;
    for (let item = right.start[block]!; item < right.start[block + 1]!; item++) {
      const arrow = right.items[item]!;
      most = Math.min(most, x[to[arrow]!]! - space[arrow]!);
    }
    if (most !== Infinity) x[block] = Math.max(x[block]!, most);
  }
  for (let node = 0; node < count; node++) x[node] = x[root[node]!]!;
  return x;
}

function separation(left: number, right: number, sizes: Sizes): number {
  const gap = sizes.passing[left] || sizes.passing[right] ? sizes.lineGap : sizes.boxGap;
  return (sizes.width[left]! + sizes.width[right]!) / 2 + gap;
}

/** Align the four layouts with the narrowest and take the mean of the middle two. */
function balance(layouts: Float64Array[], sizes: Sizes): Float64Array {
  const count = sizes.width.length;
  const bounds = layouts.map((x) => {
    let least = Infinity;
    let most = -Infinity;
    for (let node = 0; node < count; node++) {
      least = Math.min(least, x[node]! - sizes.width[node]! / 2);
      most = Math.max(most, x[node]! + sizes.width[node]! / 2);
    }
    return { least, most };
  });
  const narrowest = bounds.reduce((best, now) => (now.most - now.least < best.most - best.least ? now : best));
  const shifts = bounds.map(({ least, most }, at) =>
    at % 2 === 0 ? narrowest.least - least : narrowest.most - most,
  );
  const x = new Float64Array(count);
  let left = Infinity;
  const four = [0, 0, 0, 0];
  for (let node = 0; node < count; node++) {
    for (let at = 0; at < 4; at++) four[at] = layouts[at]![node]! + shifts[at]!;
    four.sort((a, b) => a - b);
    x[node] = (four[1]! + four[2]!) / 2;
    left = Math.min(left, x[node]! - sizes.width[node]! / 2);
  }
  for (let node = 0; node < count; node++) x[node]! -= left;
  return x;
}
