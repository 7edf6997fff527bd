/** A layered drawing (Sugiyama): causes above effects. Pure, deterministic, nothing recursive. */

import { type Layers, layersOf } from "./dag";
import { type GroupOptions, group } from "./group";
import { type Layered, orderLayers } from "./order";
import { placeNodes } from "./place";
import { NOTHING_DRAWN, type Box, type Drawing, type Grouped, type Lineage, type PlacedBox, type PlacedEdge } from "./types";
import { COLUMN_GAP, ROW_GAP, type Unit, unitsOf } from "./units";
import { detailOf, titleOf } from "./words";

export const BOX_HEIGHT = 50;
const WIDTHS = [128, 160, 192, 224, 256, 288];
const BOX_GAP = 26;
const LINE_GAP = 14;
const LAYER_GAP = 52;
const MOST_LAYER_GAP = 120;
/** Places where long lines pass layers, at most; longer lines than fit are drawn straight through. */
const PASSES = 12_000;
const HEAD = 4;
const CORNER = 8;

/** Lay out a lineage; see `arrange`. */
export function layout(lineage: Lineage, options: GroupOptions = {}): Drawing {
  return arrange(group(lineage, options));
}

/** Width of a box, one of a few, so that its words fit. */
export function widthOf(box: Box): number {
  const mark = box.failed ? 22 : 0;
  const needed = Math.max(titleOf(box).length * 7.3 + mark, detailOf(box).length * 6.1) + 30;
  return WIDTHS.find((width) => width >= needed) ?? WIDTHS[WIDTHS.length - 1]!;
}

/**
 * Give boxes and lines their places: every line goes down, unless it closes a circle; boxes do not overlap.
 *
 * Where a row is wide, the effects of one event that led to nothing themselves stand below each other; see `unitsOf`.
 */
export function arrange(grouped: Grouped): Drawing {
  const { boxes, edges } = grouped;
  if (boxes.length === 0) return NOTHING_DRAWN;
  const widths = boxes.map(widthOf);
  const { units, unitOf, from, to, edgeOf } = unitsOf(grouped, widths, BOX_HEIGHT);
  const layers = layersOf(units.length, from, to);
  const proper = throughLayers(from, to, layers);
  const rows = orderLayers(proper.graph);
  const count = proper.graph.layer.length;
  const width = new Float64Array(count);
  const passing = new Uint8Array(count).fill(1, units.length);
  units.forEach((unit, number) => (width[number] = unit.width));
  const x = placeNodes(proper.graph, rows, { width, passing, boxGap: BOX_GAP, lineGap: LINE_GAP });
  const bands = bandsOf(rows, proper.graph, units);
  const nodes: PlacedBox[] = boxes.map((box, at) => ({ ...box, x: 0, y: 0, width: widths[at]!, height: BOX_HEIGHT, layer: 0, order: 0 }));
  rows.forEach((row, layer) => {
    let order = 0;
    for (const number of row) {
      const unit = units[number];
      if (!unit) continue;
      placeUnit(unit, x[number]!, bands[layer]!.top, (box, boxX, boxY) => {
        Object.assign(nodes[box]!, { x: boxX, y: boxY, layer, order: order++ });
      });
    }
  });
  const lines = edges.map((edge, number): PlacedEdge => {
    const line = edgeOf[number]!;
    const ends = { parent: nodes[unitOf.box(edge.parent)]!, child: nodes[unitOf.box(edge.child)]! };
    const unit = units[to[line]!]!;
    if (unit.boxes.length > 1) return { ...edge, ...spine(ends.parent, ends.child, bands[ends.child.layer]!.top), against: false };
    const passes = proper.passes[line]!.map((pass): Pass => ({ x: x[pass]!, ...bands[proper.graph.layer[pass]!]! }));
    const against = layers.against[line] === 1;
    return { ...edge, ...through(ends.parent, ends.child, passes, against), against };
  });
  let right = 0;
  for (let number = 0; number < count; number++) right = Math.max(right, x[number]! + width[number]! / 2);
  const last = bands[bands.length - 1]!;
  return { nodes, edges: lines, width: right, height: last.bottom, lanes: [], ticks: [] };
}

interface Proper {
  graph: Layered;
  /** For each line the places where it passes a layer, from the upper end. */
  passes: number[][];
}

/** Cut lines that span several layers into segments, short lines first while there is room. */
function throughLayers(from: Int32Array, to: Int32Array, layers: Layers): Proper {
  const layer: number[] = Array.from(layers.layer);
  const upper: number[] = [];
  const lower: number[] = [];
  const passes: number[][] = Array.from(from, () => []);
  const spanOf = (edge: number) => Math.abs(layers.layer[to[edge]!]! - layers.layer[from[edge]!]!);
  const byLength = Array.from(from, (_, edge) => edge).sort((a, b) => spanOf(a) - spanOf(b));
  let room = PASSES;
  for (const edge of byLength) {
    const [start, end] = layers.against[edge] ? [to[edge]!, from[edge]!] : [from[edge]!, to[edge]!];
    const needed = spanOf(edge) - 1;
    if (needed > room) continue;
    room -= needed;
    let last = start;
    for (let at = layers.layer[start]! + 1; at < layers.layer[end]!; at++) {
      const pass = layer.length;
      layer.push(at);
      passes[edge]!.push(pass);
      upper.push(last);
      lower.push(pass);
      last = pass;
    }
    upper.push(last);
    lower.push(end);
  }
  const graph = { layer: Int32Array.from(layer), layers: layers.count, upper: Int32Array.from(upper), lower: Int32Array.from(lower) };
  return { graph, passes };
}

interface Band {
  top: number;
  bottom: number;
}

/** Where each layer begins and ends: farther apart where many lines run. */
function bandsOf(rows: number[][], graph: Layered, units: Unit[]): Band[] {
  const lines = new Array<number>(rows.length).fill(0);
  for (const node of graph.upper) lines[graph.layer[node]!]!++;
  const bands: Band[] = [];
  let top = 0;
  rows.forEach((row, layer) => {
    let height = BOX_HEIGHT;
    for (const number of row) height = Math.max(height, units[number]?.height ?? 0);
    bands.push({ top, bottom: top + height });
    top += height + Math.min(MOST_LAYER_GAP, LAYER_GAP + 5 * Math.sqrt(Math.max(0, lines[layer]! - 2)));
  });
  return bands;
}

/** Place the boxes of a unit, column by column. */
function placeUnit(unit: Unit, x: number, top: number, place: (box: number, x: number, y: number) => void): void {
  let left = x - unit.width / 2;
  for (const column of unit.columns) {
    if (unit.boxes.length > 1) left += COLUMN_GAP;
    column.boxes.forEach((box, row) => {
      place(box, left + column.widths[row]! / 2, top + row * (BOX_HEIGHT + ROW_GAP) + BOX_HEIGHT / 2);
    });
    left += column.width;
  }
}

interface Pass extends Band {
  x: number;
}

type Line = Pick<PlacedEdge, "path" | "left" | "right" | "top" | "bottom">;

/** Draw a line from the parent's lower edge to the child's upper edge, through its passes. */
function through(parent: PlacedBox, child: PlacedBox, passes: Pass[], against: boolean): Line {
  const way = against ? -1 : 1;
  const half = (BOX_HEIGHT / 2) * way;
  const points: [number, number][] = [[parent.x, parent.y + half]];
  for (const { x, top, bottom } of against ? passes.slice().reverse() : passes) {
    points.push([x, against ? bottom : top], [x, against ? top : bottom]);
  }
  points.push([child.x, child.y - half - way]);
  const [startX, startY] = points[0]!;
  let path = `M${round(startX)} ${round(startY)}`;
  let left = startX;
  let right = startX;
  let [lastX, lastY] = [startX, startY];
  for (const [x, y] of points.slice(1)) {
    path += x === lastX ? `V${round(y)}` : sway(lastX, lastY, x, y);
    left = Math.min(left, x);
    right = Math.max(right, x);
    [lastX, lastY] = [x, y];
  }
  path += `m${-HEAD} ${-way * (HEAD + 2)}l${HEAD} ${way * (HEAD + 2)}l${HEAD} ${-way * (HEAD + 2)}`;
  return { path, left, right, top: Math.min(startY, lastY), bottom: Math.max(startY, lastY) };
}

/** Draw a line to a box in a column: down beside the column, then into the box from the left. */
function spine(parent: PlacedBox, child: PlacedBox, top: number): Line {
  const edge = child.x - child.width / 2;
  const x = edge - COLUMN_GAP / 2;
  const startY = parent.y + parent.height / 2;
  const path =
    `M${round(parent.x)} ${round(startY)}${sway(parent.x, startY, x, top)}V${round(child.y - CORNER)}` +
    `q0 ${CORNER} ${CORNER} ${CORNER}H${round(edge - 1)}m${-HEAD - 2} ${-HEAD}l${HEAD + 2} ${HEAD}l${-HEAD - 2} ${HEAD}`;
  return { path, left: Math.min(parent.x, x), right: Math.max(parent.x, edge), top: startY, bottom: child.y };
}

/** A curve that leaves and arrives upright. */
function sway(fromX: number, fromY: number, x: number, y: number): string {
  const middle = round((fromY + y) / 2);
  return `C${round(fromX)} ${middle} ${round(x)} ${middle} ${round(x)} ${round(y)}`;
}

export function round(value: number): number {
  return Math.round(value * 10) / 10;
}
