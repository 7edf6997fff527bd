/** Events by time, a lane for each source. */

import { type GroupOptions, group } from "./group";
import { BOX_HEIGHT, round, widthOf } from "./layout";
import { NOTHING_DRAWN, type Box, type Drawing, type Grouped, type Lane, type Lineage, type PlacedBox, type PlacedEdge, type Tick } from "./types";
import { timeOfDay } from "./words";

const NEVER_SEEN = "never seen";
const INDENT = 16;
/** Room in a lane above its boxes, for its name, and below them. */
export const LANE_TOP = 22;
const LANE_PADDING = 10;
const ROW_GAP = 12;
const BOX_GAP = 14;
const TICK_SPACE = 96;
const MOST_TICKS = 300;
const AXIS = 34;
const STEM = 14;
const CORNER = 8;
const LEAST_STEP = 24;
const MOST_STEP = 220;

/** Lay out a lineage by time; see `arrangeTimeline`. */
export function timeline(lineage: Lineage, options: GroupOptions = {}): Drawing {
  return arrangeTimeline(group(lineage, { ...options, bySource: true }));
}

/**
 * Place boxes by the time of their first event, in the lane of their source.
 *
 * The distance of two times grows with the logarithm of what lies between them, so that milliseconds and days fit into
 * one drawing. Boxes of one lane that would overlap stand below each other.
 */
export function arrangeTimeline(grouped: Grouped): Drawing {
  const { boxes, edges } = grouped;
  if (boxes.length === 0) return NOTHING_DRAWN;
  const times = timesOf(grouped);
  const { placeOf, ticks } = axis(times);
  const lanes: Lane[] = [];
  const nodes: PlacedBox[] = [];
  let top = AXIS;
  let width = 0;
  for (const [name, members] of laneMembers(boxes, times)) {
    const rows: number[] = [];
    for (const box of members) {
      const size = widthOf(box);
      const left = INDENT + placeOf(times.get(box.id)!);
      let row = rows.findIndex((end) => end + BOX_GAP <= left);
      if (row < 0) row = rows.push(0) - 1;
      rows[row] = left + size;
      width = Math.max(width, left + size);
      const y = top + LANE_TOP + row * (BOX_HEIGHT + ROW_GAP) + BOX_HEIGHT / 2;
      nodes.push({ ...box, x: left + size / 2, y, width: size, height: BOX_HEIGHT, layer: lanes.length, order: 0 });
    }
    const height = LANE_TOP + LANE_PADDING + rows.length * (BOX_HEIGHT + ROW_GAP) - ROW_GAP;
    lanes.push({ name, top, height });
    top += height;
  }
  const placed = new Map(nodes.map((box) => [box.id, box]));
  const lines = edges.map((edge) => ({ ...edge, ...line(placed.get(edge.parent)!, placed.get(edge.child)!) }));
  for (const lane of lanes.keys()) {
    const members = nodes.filter(({ layer }) => layer === lane).sort((a, b) => a.x - b.x || a.y - b.y);
    members.forEach((box, order) => (box.order = order));
  }
  const shifted = ticks.map(({ x, label }) => ({ x: x + INDENT, label }));
  return { nodes, edges: lines, width: width + LANE_PADDING, height: top, lanes, ticks: shifted };
}

/** Milliseconds since 1970 of each box's first event; an unknown one stands at its first effect. */
function timesOf(grouped: Grouped): Map<string, number> {
  const times = new Map<string, number>();
  for (const box of grouped.boxes) {
    let first = Infinity;
    for (const { timestamp } of box.events) if (timestamp !== null) first = Math.min(first, Date.parse(timestamp));
    if (first < Infinity) times.set(box.id, first);
  }
  const effects = new Map<string, number>();
  for (const { parent, child } of grouped.edges) {
    const time = times.get(child);
    if (time !== undefined) effects.set(parent, Math.min(effects.get(parent) ?? Infinity, time));
  }
  let earliest = Infinity;
  for (const time of times.values()) earliest = Math.min(earliest, time);
  for (const { id } of grouped.boxes) {
    if (!times.has(id)) times.set(id, effects.get(id) ?? (earliest < Infinity ? earliest : 0));
  }
  return times;
}

function axis(times: Map<string, number>): { placeOf(time: number): number; ticks: Tick[] } {
  const distinct = Array.from(new Set(times.values())).sort((a, b) => a - b);
  const places = new Map<number, number>();
  let place = 0;
  distinct.forEach((time, at) => {
    if (at > 0) place += Math.min(MOST_STEP, LEAST_STEP + 26 * Math.log10(1 + time - distinct[at - 1]!));
    places.set(time, place);
  });
  const space = Math.max(TICK_SPACE, place / MOST_TICKS);
  const ticks: Tick[] = [];
  for (const [time, x] of places) {
    const last = ticks[ticks.length - 1];
    if (!last || x - last.x >= space) ticks.push({ x, label: tickLabel(time, distinct[0]!) });
  }
  return { placeOf: (time) => places.get(time)!, ticks };
}

/** The first tick is a time of day, the others say how much later they are. */
function tickLabel(time: number, first: number): string {
  const later = time - first;
  if (later === 0) return timeOfDay(new Date(time).toISOString());
  if (later < 1000) return `+${Math.round(later)} ms`;
  if (later < 60_000) return `+${round(later / 1000)} s`;
  if (later < 3_600_000) return `+${round(later / 60_000)} min`;
  if (later < 172_800_000) return `+${round(later / 3_600_000)} h`;
  return `+${round(later / 86_400_000)} days`;
}

/** Lanes in the order of their first event, each with its boxes by time; what was never seen comes last. */
function laneMembers(boxes: Box[], times: Map<string, number>): Map<string, Box[]> {
  const byTime = boxes.slice().sort((a, b) => times.get(a.id)! - times.get(b.id)! || (a.id < b.id ? -1 : 1));
  const lanes = new Map<string, Box[]>();
  const unknown: Box[] = [];
  for (const box of byTime) {
    if (!box.known) {
      unknown.push(box);
      continue;
    }
    const name = box.events[0]!.source ?? "unknown source";
    const members = lanes.get(name);
    if (members) members.push(box);
    else lanes.set(name, [box]);
  }
  if (unknown.length > 0) lanes.set(NEVER_SEEN, unknown);
  return lanes;
}

/**
 * A line from the cause to the left edge of the effect.
 *
 * Left edges are the times, so the line leaves the cause near its left edge; in one row it goes straight on.
 */
function line(parent: PlacedBox, child: PlacedBox): Pick<PlacedEdge, "path" | "against" | "left" | "right" | "top" | "bottom"> {
  const endX = child.x - child.width / 2 - 1;
  const way = Math.sign(child.y - parent.y);
  const startX = way === 0 ? parent.x + parent.width / 2 : parent.x - parent.width / 2 + STEM;
  const startY = parent.y + (way * parent.height) / 2;
  const corner = Math.min(CORNER, Math.max(2, endX - startX - 2), Math.abs(child.y - startY));
  let path = `M${round(startX)} ${round(startY)}`;
  if (way === 0) path += `H${round(endX)}`;
  else if (endX > startX + 4) {
    path += `V${round(child.y - way * corner)}q0 ${way * corner} ${corner} ${way * corner}H${round(endX)}`;
  } else {
    // The effect's clock is behind its cause's: around, and in from the left.
    const out = round(endX - 3 * CORNER);
    const middle = round((startY + child.y) / 2);
    path += `C${round(startX)} ${middle} ${out} ${middle} ${out} ${round(child.y - way * CORNER)}q0 ${way * CORNER} ${CORNER} ${way * CORNER}H${round(endX)}`;
  }
  path += "m-6 -4l6 4l-6 4";
  return {
    path,
    against: endX < startX && way !== 0,
    left: Math.min(startX, endX - 3 * CORNER),
    right: Math.max(startX, endX),
    top: Math.min(startY, child.y),
    bottom: Math.max(startY, child.y),
  };
}
