/**
 * Give each node of an ordered, layered graph a place from left to right: near its neighbours, and without overlaps.
 *
 * Row by row, nodes go to the mean of their neighbours' places; where they would overlap, those that meet move as one.
 * For one row that is the least sum of squared distances with gaps kept (isotonic regression, by pooling adjacent
 * violators). Sweeps down and up spread it over the graph.
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

const LEAST_SWEEPS = 4;
const MOST_SWEEPS = 16;
const SWEEP_WORK = 150_000;
/** Long lines are kept straight: the pull between two places where a line passes, and between such a place and a box. */
const PULL = [1, 2, 8];
/** A line that leans by less than this is set upright where there is room. */
const LEAN = 12;

/** Return the centre of each node, the least left edge being 0. */
export function placeNodes(graph: Layered, rows: number[][], sizes: Sizes): Float64Array {
  const count = graph.layer.length;
  const placing = new Placing(graph, sizes);
  const { x } = placing;
  for (const row of rows) placing.pack(row);
  const sweeps = Math.max(LEAST_SWEEPS, Math.min(MOST_SWEEPS, Math.floor(SWEEP_WORK / (count + 1))));
  for (let sweep = 0; sweep < sweeps; sweep++) {
    const both = sweep >= sweeps / 2;
    for (let at = 1; at < rows.length; at++) placing.settle(rows[at]!, true, both);
    for (let at = rows.length - 2; at >= 0; at--) placing.settle(rows[at]!, both, true);
  }
  for (const row of rows) placing.straighten(row);
  let left = Infinity;
  for (let node = 0; node < count; node++) left = Math.min(left, x[node]! - sizes.width[node]! / 2);
  for (let node = 0; node < count; node++) x[node]! -= left;
  return x;
}

class Placing {
  readonly x: Float64Array;
  private readonly up: Index;
  private readonly down: Index;

  constructor(
    private readonly graph: Layered,
    private readonly sizes: Sizes,
  ) {
    const count = graph.layer.length;
    this.x = new Float64Array(count);
    this.up = indexBy(count, graph.lower);
    this.down = indexBy(count, graph.upper);
  }

  /** Put a row's nodes side by side, the middle at 0. */
  pack(row: number[]): void {
    let at = 0;
    row.forEach((node, place) => {
      if (place > 0) at += this.separation(row[place - 1]!, node);
      this.x[node] = at;
    });
    for (const node of row) this.x[node]! -= at / 2;
  }

  /** Move a row's nodes towards their neighbours above, below or both. */
  settle(row: number[], above: boolean, below: boolean): void {
    const offset = new Float64Array(row.length);
    const sums: number[] = [];
    const weights: number[] = [];
    const sizes: number[] = [];
    row.forEach((node, place) => {
      if (place > 0) offset[place] = offset[place - 1]! + this.separation(row[place - 1]!, node);
      const pull = { sum: 0, weight: 0 };
      if (above) this.addPull(pull, node, this.up, this.graph.upper);
      if (below) this.addPull(pull, node, this.down, this.graph.lower);
      if (pull.weight === 0) {
        pull.weight = 0.1;
        pull.sum = this.x[node]! * pull.weight;
      }
      let sum = pull.sum - offset[place]! * pull.weight;
      let { weight } = pull;
      let size = 1;
      while (sums.length > 0 && sums[sums.length - 1]! / weights[weights.length - 1]! >= sum / weight) {
        sum += sums.pop()!;
        weight += weights.pop()!;
        size += sizes.pop()!;
      }
      sums.push(sum);
      weights.push(weight);
      sizes.push(size);
    });
    let place = 0;
    sizes.forEach((size, pool) => {
      const at = sums[pool]! / weights[pool]!;
      for (const end = place + size; place < end; place++) this.x[row[place]!] = at + offset[place]!;
    });
  }

  /** Set nodes that are the only effect of their only cause right below it, where there is room. */
  straighten(row: number[]): void {
    row.forEach((node, place) => {
      if (degree(this.up, node) !== 1) return;
      const cause = this.graph.upper[this.up.items[this.up.start[node]!]!]!;
      const target = this.x[cause]!;
      if (degree(this.down, cause) !== 1 || Math.abs(target - this.x[node]!) > LEAN) return;
      const left = row[place - 1];
      const right = row[place + 1];
      if (left !== undefined && this.x[left]! + this.separation(left, node) > target) return;
      if (right !== undefined && target + this.separation(node, right) > this.x[right]!) return;
      this.x[node] = target;
    });
  }

  private addPull(pull: { sum: number; weight: number }, node: number, index: Index, ends: Int32Array): void {
    const { passing } = this.sizes;
    for (let item = index.start[node]!; item < index.start[node + 1]!; item++) {
      const other = ends[index.items[item]!]!;
      const weight = PULL[passing[node]! + passing[other]!]!;
      pull.sum += weight * this.x[other]!;
      pull.weight += weight;
    }
  }

  private separation(left: number, right: number): number {
    const { width, passing, boxGap, lineGap } = this.sizes;
    return (width[left]! + width[right]!) / 2 + (passing[left] || passing[right] ? lineGap : boxGap);
  }
}

function degree(index: Index, node: number): number {
  return index.start[node + 1]! - index.start[node]!;
}
