/** A layered drawing (Sugiyama): causes above effects. Pure, deterministic, nothing recursive. */

import { type Layers, layersOf } from "./dag";
import { type GroupOptions, group } from "./group";
import { type Layered, orderLayers } from "./order";
import { placeNodes } from "./place";
import type { Box, BoxEdge, Drawing, Grouped, Lineage, PlacedBox, PlacedEdge } from "./types";
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

/** Give boxes and lines their places: every line goes down, unless it closes a circle; boxes do not overlap. */
export function arrange(grouped: Grouped): Drawing {
  const { boxes, edges } = grouped;
  if (boxes.length === 0) return { nodes: [], edges: [], width: 0, height: 0, lanes: [], ticks: [] };
  const at = new Map<string, number>();
  boxes.forEach((box, number) => at.set(box.id, number));
  const from = Int32Array.from(edges, (edge) => at.get(edge.parent)!);
  const to = Int32Array.from(edges, (edge) => at.get(edge.child)!);
  const layers = layersOf(boxes.length, from, to);
  const proper = throughLayers(from, to, layers);
  const rows = orderLayers(proper.graph);
  const count = proper.graph.layer.length;
  const width = new Float64Array(count);
  const passing = new Uint8Array(count).fill(1, boxes.length);
  boxes.forEach((box, number) => (width[number] = widthOf(box)));
  const x = placeNodes(proper.graph, rows, { width, passing, boxGap: BOX_GAP, lineGap: LINE_GAP });
  const tops = layerTops(rows, proper.graph);
  const nodes = boxes.map((box, number): PlacedBox => {
    const layer = layers.layer[number]!;
    return { ...box, x: x[number]!, y: tops[layer]! + BOX_HEIGHT / 2, width: width[number]!, height: BOX_HEIGHT, layer, order: 0 };
  });
  for (const row of rows) {
    let order = 0;
    for (const number of row) if (number < nodes.length) nodes[number]!.order = order++;
  }
  const lines = edges.map((edge, number) => {
    const passes = proper.passes[number]!.map((pass): [number, number] => [x[pass]!, tops[proper.graph.layer[pass]!]!]);
    return placedEdge(edge, nodes[from[number]!]!, nodes[to[number]!]!, passes, layers.against[number] === 1);
  });
  let right = 0;
  for (let number = 0; number < count; number++) right = Math.max(right, x[number]! + width[number]! / 2);
  const height = tops[tops.length - 1]! + BOX_HEIGHT;
  return { nodes, edges: lines, width: right, height, lanes: [], ticks: [] };
}

interface Proper {
  graph: Layered;
  /** For each edge the places where it passes a layer, from the upper end. */
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

/** Top of each layer: farther apart where many lines run. */
function layerTops(rows: number[][], graph: Layered): number[] {
  const lines = new Array<number>(rows.length).fill(0);
  for (const node of graph.upper) lines[graph.layer[node]!]!++;
  const tops = [0];
  for (let at = 1; at < rows.length; at++) {
    const gap = Math.min(MOST_LAYER_GAP, LAYER_GAP + 5 * Math.sqrt(Math.max(0, lines[at - 1]! - 2)));
    tops.push(tops[at - 1]! + BOX_HEIGHT + gap);
  }
  return tops;
}

/** Draw a line from the parent's lower edge to the child's upper edge, through its passes. */
function placedEdge(
  edge: BoxEdge,
  parent: PlacedBox,
  child: PlacedBox,
  passes: [number, number][],
  against: boolean,
): PlacedEdge {
  const way = against ? -1 : 1;
  const half = (BOX_HEIGHT / 2) * way;
  const points: [number, number][] = [[parent.x, parent.y + half]];
  const ordered = against ? passes.slice().reverse() : passes;
  for (const [x, top] of ordered) {
    points.push([x, against ? top + BOX_HEIGHT : top], [x, against ? top : top + BOX_HEIGHT]);
  }
  points.push([child.x, child.y - half - way]);
  return { ...edge, ...curve(points, way), against };
}

/** Path data of calm curves through points, with an arrow's head at the end, and its bounds. */
function curve(points: [number, number][], way: number): Omit<PlacedEdge, keyof BoxEdge | "against"> {
  const [startX, startY] = points[0]!;
  let path = `M${round(startX)} ${round(startY)}`;
  let left = startX;
  let right = startX;
  let [lastX, lastY] = points[0]!;
  for (const [x, y] of points.slice(1)) {
    if (x === lastX) path += `V${round(y)}`;
    else {
      const middle = round((lastY + y) / 2);
      path += `C${round(lastX)} ${middle} ${round(x)} ${middle} ${round(x)} ${round(y)}`;
    }
    left = Math.min(left, x);
    right = Math.max(right, x);
    [lastX, lastY] = [x, y];
  }
  path += `m${-HEAD} ${-way * (HEAD + 2)}l${HEAD} ${way * (HEAD + 2)}l${HEAD} ${-way * (HEAD + 2)}`;
  return { path, left, right, top: Math.min(startY, lastY), bottom: Math.max(startY, lastY) };
}

export function round(value: number): number {
  return Math.round(value * 10) / 10;
}
