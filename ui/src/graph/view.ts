/** Zoom and pan as numbers: a point `p` of the drawing is seen at `k * p + (x, y)`. */

import type { Drawing, PlacedBox, PlacedEdge } from "./types";

export interface View {
  x: number;
  y: number;
  k: number;
}

export interface Size {
  width: number;
  height: number;
}

/** Part of a drawing, in its own coordinates. */
export interface Part {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

export const MOST_ZOOM = 2.5;
/** Below it words cannot be read; boxes are drawn without them. */
export const WORDS_ZOOM = 0.3;
const LEAST_ZOOM = 0.02;
const MARGIN = 28;
/** Lanes bring room of their own. */
const LANES_MARGIN = 12;
/** A drawing that fits at this zoom is shown whole at first. */
const READABLE = 0.72;
/** As is one with lanes, of which the lower ones are the end of the story. */
const READABLE_LANES = 0.65;
const LEAST_FIRST = 0.45;
const MOST_FIRST = 0.9;
/** Share of the room that may stay blank at an end of the drawing. */
const BLANK = 0.2;

/** Show all of a drawing, not larger than life. */
export function fit(drawing: Drawing, size: Size): View {
  const around = 2 * marginOf(drawing);
  const k = bounded(Math.min(1, (size.width - around) / drawing.width, (size.height - around) / drawing.height));
  return { k, x: (size.width - k * drawing.width) / 2, y: (size.height - k * drawing.height) / 2 };
}

/** Tell whether all of a drawing can be read at once. */
export function fits(drawing: Drawing, size: Size): boolean {
  return fit(drawing, size).k >= (drawing.lanes.length > 0 ? READABLE_LANES : READABLE);
}

/** Show a box in the middle. */
export function centre(box: PlacedBox, size: Size, k: number): View {
  return { k, x: size.width / 2 - k * box.x, y: size.height / 2 - k * box.y };
}

/**
 * Return what is shown first: the focus in the middle, as large as lets its nearest cause and effect be seen. Where all
 * of the drawing fits and can be read, it is moved from there no farther than needed to show everything.
 */
export function firstView(drawing: Drawing, focus: PlacedBox | undefined, size: Size): View {
  const whole = fit(drawing, size);
  if (!focus) return whole;
  // Lanes have a beginning, and nothing beyond their end.
  if (!fits(drawing, size) && drawing.lanes.length === 0) {
    const view = centre(focus, size, nearZoom(drawing, focus, size));
    // An event at an end of the graph has much of the room to the other side.
    const y = withoutBlank(view.y, view.k * drawing.height, size.height);
    return { ...view, y };
  }
  const k = fits(drawing, size) ? whole.k : nearZoom(drawing, focus, size);
  const middle = centre(focus, size, k);
  const margin = marginOf(drawing);
  const within = (at: number, length: number, room: number) => {
    const [one, other] = [margin, room - margin - length];
    return Math.min(Math.max(one, other), Math.max(Math.min(one, other), at));
  };
  return { k, x: within(middle.x, k * drawing.width, size.width), y: within(middle.y, k * drawing.height, size.height) };
}

function marginOf(drawing: Drawing): number {
  return drawing.lanes.length > 0 ? LANES_MARGIN : MARGIN;
}

/** Move so that little stays blank before the beginning or after the end. */
function withoutBlank(at: number, length: number, room: number): number {
  const [low, high] = [room * (1 - BLANK) - length, room * BLANK];
  return low < high ? Math.min(high, Math.max(low, at)) : at;
}

/** Zoom at which a cause and an effect of a box in the middle are seen, the nearest of each. */
function nearZoom(drawing: Drawing, focus: PlacedBox, size: Size): number {
  const boxes = new Map(drawing.nodes.map((box) => [box.id, box]));
  let [cause, effect] = [0, 0];
  for (const { parent, child } of drawing.edges) {
    const other = boxes.get(child === focus.id ? parent : parent === focus.id ? child : "");
    if (!other) continue;
    const across = (size.width / 2 - MARGIN) / (Math.abs(other.x - focus.x) + other.width / 2);
    const along = (size.height / 2 - MARGIN) / (Math.abs(other.y - focus.y) + other.height / 2);
    if (child === focus.id) cause = Math.max(cause, Math.min(across, along));
    else effect = Math.max(effect, Math.min(across, along));
  }
  return Math.max(LEAST_FIRST, Math.min(MOST_FIRST, cause || MOST_FIRST, effect || MOST_FIRST));
}

/** Zoom, with the point that is seen at (`atX`, `atY`) staying there. */
export function zoomAt(view: View, factor: number, atX: number, atY: number): View {
  const k = bounded(view.k * factor);
  const by = k / view.k;
  return { k, x: atX - (atX - view.x) * by, y: atY - (atY - view.y) * by };
}

/** Move as little as is needed to show a box with some room around it. */
export function reveal(view: View, box: PlacedBox, size: Size): View {
  const shift = (centreAt: number, half: number, room: number) => {
    const low = centreAt - half - MARGIN;
    const high = centreAt + half + MARGIN;
    if (low < 0) return -low;
    return high > room ? room - high : 0;
  };
  return {
    k: view.k,
    x: view.x + shift(view.x + view.k * box.x, (view.k * box.width) / 2, size.width),
    y: view.y + shift(view.y + view.k * box.y, (view.k * box.height) / 2, size.height),
  };
}

/** Return the part of the drawing that is seen, with as much again on each side. */
export function seen(view: View, size: Size): Part {
  const left = -view.x / view.k;
  const top = -view.y / view.k;
  const width = size.width / view.k;
  const height = size.height / view.k;
  return { left: left - width, right: left + 2 * width, top: top - height, bottom: top + 2 * height };
}

/** Tell whether a part still holds all that is seen. */
export function holds(part: Part, view: View, size: Size): boolean {
  const inner = seen(view, size);
  const third = { x: (inner.right - inner.left) / 3, y: (inner.bottom - inner.top) / 3 };
  return (
    part.left <= inner.left + third.x &&
    part.right >= inner.right - third.x &&
    part.top <= inner.top + third.y &&
    part.bottom >= inner.bottom - third.y
  );
}

export function boxIn(box: PlacedBox, part: Part): boolean {
  return (
    box.x + box.width / 2 >= part.left &&
    box.x - box.width / 2 <= part.right &&
    box.y + box.height / 2 >= part.top &&
    box.y - box.height / 2 <= part.bottom
  );
}

export function edgeIn(edge: PlacedEdge, part: Part): boolean {
  return edge.right >= part.left && edge.left <= part.right && edge.bottom >= part.top && edge.top <= part.bottom;
}

function bounded(k: number): number {
  return Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, k));
}
