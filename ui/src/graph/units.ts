/** What is placed as one: a box, or in wide drawings a family of boxes that stand below each other. */

import { layersOf } from "./dag";
import type { Grouped } from "./types";

/** A row of more boxes is wide. */
const WIDE_ROW = 16;
const LEAST_FAMILY = 3;
const MOST_ROWS = 5;
/** Room at the left of each column, where its lines run. */
export const COLUMN_GAP = 26;
export const ROW_GAP = 16;

export interface Unit {
  /** Numbers of its boxes. */
  boxes: number[];
  columns: Column[];
  width: number;
  height: number;
}

interface Column {
  boxes: number[];
  widths: number[];
  width: number;
}

export interface Units {
  units: Unit[];
  unitOf: { box(id: string): number };
  /** Lines between units, and for each edge of the boxes which of them it is. */
  from: Int32Array;
  to: Int32Array;
  edgeOf: Int32Array;
}

/** Put boxes together: effects of one event alone that led to nothing, where there are three or more in a wide drawing. */
export function unitsOf(grouped: Grouped, widths: number[], boxHeight: number): Units {
  const { boxes, edges } = grouped;
  const numbers = new Map(boxes.map(({ id }, number) => [id, number]));
  const parent = Int32Array.from(edges, (edge) => numbers.get(edge.parent)!);
  const child = Int32Array.from(edges, (edge) => numbers.get(edge.child)!);
  const families = isWide(boxes.length, parent, child) ? familiesOf(boxes.length, parent, child) : [];
  const unitOf = new Int32Array(boxes.length).fill(-1);
  const units: Unit[] = [];
  for (const family of families) {
    for (const box of family) unitOf[box] = units.length;
    units.push(familyUnit(family, widths, boxHeight));
  }
  boxes.forEach((_, box) => {
    if (unitOf[box]! >= 0) return;
    unitOf[box] = units.length;
    const width = widths[box]!;
    units.push({ boxes: [box], columns: [{ boxes: [box], widths: [width], width }], width, height: boxHeight });
  });
  const lines = new Map<string, number>();
  const from: number[] = [];
  const to: number[] = [];
  const edgeOf = Int32Array.from(edges, (_, edge) => {
    const ends = [unitOf[parent[edge]!]!, unitOf[child[edge]!]!] as const;
    const key = ends.join(" ");
    let line = lines.get(key);
    if (line === undefined) {
      line = from.push(ends[0]) - 1;
      to.push(ends[1]);
      lines.set(key, line);
    }
    return line;
  });
  return { units, unitOf: { box: (id) => numbers.get(id)! }, from: Int32Array.from(from), to: Int32Array.from(to), edgeOf };
}

function isWide(count: number, parent: Int32Array, child: Int32Array): boolean {
  const { layer, count: layers } = layersOf(count, parent, child);
  const sizes = new Int32Array(layers);
  for (const at of layer) sizes[at]!++;
  return sizes.some((size) => size > WIDE_ROW);
}

function familiesOf(count: number, parent: Int32Array, child: Int32Array): number[][] {
  const effects = new Int32Array(count);
  const causes = new Int32Array(count);
  const cause = new Int32Array(count).fill(-1);
  for (let edge = 0; edge < parent.length; edge++) {
    effects[parent[edge]!]!++;
    causes[child[edge]!]!++;
    cause[child[edge]!] = parent[edge]!;
  }
  const families = new Map<number, number[]>();
  for (let box = 0; box < count; box++) {
    if (effects[box] !== 0 || causes[box] !== 1) continue;
    const family = families.get(cause[box]!);
    if (family) family.push(box);
    else families.set(cause[box]!, [box]);
  }
  return Array.from(families.values()).filter(({ length }) => length >= LEAST_FAMILY);
}

function familyUnit(family: number[], widths: number[], boxHeight: number): Unit {
  const count = Math.ceil(family.length / MOST_ROWS);
  const rows = Math.ceil(family.length / count);
  const columns: Column[] = [];
  for (let first = 0; first < family.length; first += rows) {
    const boxes = family.slice(first, first + rows);
    const own = boxes.map((box) => widths[box]!);
    columns.push({ boxes, widths: own, width: Math.max(...own) });
  }
  return {
    boxes: family,
    columns,
    width: columns.reduce((sum, { width }) => sum + width + COLUMN_GAP, 0),
    height: rows * boxHeight + (rows - 1) * ROW_GAP,
  };
}
