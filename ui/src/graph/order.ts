/**
 * Order the nodes of each layer so that few lines cross: barycentres in sweeps down and up (Sugiyama, Tagawa and Toda
 * 1981), then exchanges of neighbours.
 *
 * The work is bounded by the size of the graph and not by a clock, so that a graph is always drawn the same.
 */

import { type Index, indexBy } from "./dag";

/** A graph whose segments join neighbouring layers only. */
export interface Layered {
  layer: Int32Array;
  layers: number;
  /** Segments, from the upper to the lower node. */
  upper: Int32Array;
  lower: Int32Array;
}

const MOST_SWEEPS = 24;
const SWEEP_WORK = 400_000;
const IDLE_SWEEPS = 4;
const EXCHANGE_WORK = 400_000;

/** Return the nodes of each layer from left to right. */
export function orderLayers(graph: Layered): number[][] {
  const count = graph.layer.length;
  const down = indexBy(count, graph.upper);
  const up = indexBy(count, graph.lower);
  const rows = firstOrder(graph, down, up);
  const position = new Int32Array(count);
  number(rows, position);
  let best = copy(rows);
  let fewest = crossings(rows, graph, down, position);
  const sweeps = Math.min(MOST_SWEEPS, Math.max(2, Math.floor(SWEEP_WORK / (count + graph.upper.length + 1))));
  let idle = 0;
  for (let sweep = 0; sweep < sweeps && fewest > 0 && idle < IDLE_SWEEPS; sweep++) {
    if (sweep % 2 === 0) {
      for (let at = 1; at < rows.length; at++) sortRow(rows[at]!, up, graph.upper, position);
    } else {
      for (let at = rows.length - 2; at >= 0; at--) sortRow(rows[at]!, down, graph.lower, position);
    }
    const now = crossings(rows, graph, down, position);
    if (now < fewest) {
      fewest = now;
      best = copy(rows);
      idle = 0;
    } else idle++;
  }
  if (fewest > 0) {
    number(best, position);
    exchange(best, graph, down, up, position);
  }
  return best;
}

/** Count the pairs of segments that cross. */
export function countCrossings(rows: number[][], graph: Layered): number {
  const position = new Int32Array(graph.layer.length);
  number(rows, position);
  return crossings(rows, graph, indexBy(graph.layer.length, graph.upper), position);
}

function copy(rows: number[][]): number[][] {
  return rows.map((row) => row.slice());
}

function number(rows: number[][], position: Int32Array): void {
  for (const row of rows) row.forEach((node, at) => (position[node] = at));
}

/** Depth first from the top: what belongs together stands together. */
function firstOrder(graph: Layered, down: Index, up: Index): number[][] {
  const count = graph.layer.length;
  const rows: number[][] = Array.from({ length: graph.layers }, () => []);
  const seen = new Uint8Array(count);
  const byLayer = Array.from({ length: count }, (_, node) => node).sort((a, b) => graph.layer[a]! - graph.layer[b]!);
  const stack: number[] = [];
  for (const top of byLayer) {
    if (seen[top]) continue;
    stack.push(top);
    while (stack.length > 0) {
      const node = stack.pop()!;
      if (seen[node]) continue;
      seen[node] = 1;
      rows[graph.layer[node]!]!.push(node);
      for (let at = up.start[node + 1]! - 1; at >= up.start[node]!; at--) {
        const next = graph.upper[up.items[at]!]!;
        if (!seen[next]) stack.push(next);
      }
      for (let at = down.start[node + 1]! - 1; at >= down.start[node]!; at--) {
        const next = graph.lower[down.items[at]!]!;
        if (!seen[next]) stack.push(next);
      }
    }
  }
  return rows;
}

/** Sort a row by the mean place of its neighbours; those without neighbours keep their places. */
function sortRow(row: number[], index: Index, ends: Int32Array, position: Int32Array): void {
  const places: number[] = [];
  const movable: { node: number; mean: number }[] = [];
  row.forEach((node, at) => {
    const first = index.start[node]!;
    const last = index.start[node + 1]!;
    if (first === last) return;
    let sum = 0;
    for (let item = first; item < last; item++) sum += position[ends[index.items[item]!]!]!;
    places.push(at);
    movable.push({ node, mean: sum / (last - first) });
  });
  movable.sort((a, b) => a.mean - b.mean);
  movable.forEach(({ node }, at) => (row[places[at]!] = node));
  row.forEach((node, at) => (position[node] = at));
}

/** Inversions of the lower ends, layer by layer, with a Fenwick tree (Barth, Jünger and Mutzel 2002). */
function crossings(rows: number[][], graph: Layered, down: Index, position: Int32Array): number {
  let total = 0;
  for (let at = 0; at + 1 < rows.length; at++) {
    const size = rows[at + 1]!.length;
    const tree = new Int32Array(size + 1);
    let inserted = 0;
    for (const node of rows[at]!) {
      const first = down.start[node]!;
      const last = down.start[node + 1]!;
      for (let item = first; item < last; item++) {
        let place = position[graph.lower[down.items[item]!]!]! + 1;
        let atMost = 0;
        for (; place > 0; place -= place & -place) atMost += tree[place]!;
        total += inserted - atMost;
      }
      for (let item = first; item < last; item++) {
        let place = position[graph.lower[down.items[item]!]!]! + 1;
        for (; place <= size; place += place & -place) tree[place]!++;
        inserted++;
      }
    }
  }
  return total;
}

/** Exchange neighbours in a row while that leaves fewer crossings. */
function exchange(rows: number[][], graph: Layered, down: Index, up: Index, position: Int32Array): void {
  let work = 0;
  for (let better = true; better && work < EXCHANGE_WORK; ) {
    better = false;
    for (const row of rows) {
      for (let at = 0; at + 1 < row.length; at++) {
        const left = row[at]!;
        const right = row[at + 1]!;
        const [now, then, steps] = pairCrossings(left, right, graph, down, up, position);
        work += steps + 1;
        if (then < now) {
          row[at] = right;
          row[at + 1] = left;
          position[right] = at;
          position[left] = at + 1;
          better = true;
        }
      }
      if (work >= EXCHANGE_WORK) return;
    }
  }
}

/** Crossings of two neighbours' segments as they stand and exchanged, and how many pairs were looked at. */
function pairCrossings(
  left: number,
  right: number,
  graph: Layered,
  down: Index,
  up: Index,
  position: Int32Array,
): [number, number, number] {
  let now = 0;
  let then = 0;
  let steps = 0;
  for (const [index, ends] of [
    [up, graph.upper],
    [down, graph.lower],
  ] as const) {
    for (let a = index.start[left]!; a < index.start[left + 1]!; a++) {
      const leftEnd = position[ends[index.items[a]!]!]!;
      for (let b = index.start[right]!; b < index.start[right + 1]!; b++) {
        const rightEnd = position[ends[index.items[b]!]!]!;
        if (leftEnd > rightEnd) now++;
        else if (leftEnd < rightEnd) then++;
        steps++;
      }
    }
  }
  return [now, then, steps];
}
