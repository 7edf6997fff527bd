import { expect, test } from "vitest";
import { layout } from "../../src/graph/layout";
import { timeline } from "../../src/graph/timeline";
import type { Drawing, PlacedBox } from "../../src/graph/types";
import { boxIn, centre, edgeIn, firstView, fit, fits, holds, reveal, seen, type View, zoomAt } from "../../src/graph/view";
import { chain, demoDay, random } from "./graphs";

const size = { width: 1000, height: 600 };

function focusOf(drawing: Drawing, id: string): PlacedBox {
  return drawing.nodes.find((box) => box.id === id)!;
}

function isSeen(box: PlacedBox, { x, y, k }: View, within = size): boolean {
  const left = x + k * (box.x - box.width / 2);
  const top = y + k * (box.y - box.height / 2);
  return left >= 0 && top >= 0 && left + k * box.width <= within.width && top + k * box.height <= within.height;
}

test("a drawing that fits is seen whole at first", () => {
  const lineage = demoDay();
  const drawing = layout(lineage);
  expect(fits(drawing, size)).toBe(true);
  const view = firstView(drawing, focusOf(drawing, lineage.focus), size);
  expect(drawing.nodes.every((box) => isSeen(box, view))).toBe(true);
  expect(view.k).toBeLessThanOrEqual(1);
});

test("in a drawing that does not fit the focus is in the middle", () => {
  const lineage = chain(60, 30);
  const drawing = layout(lineage);
  const focus = focusOf(drawing, lineage.focus);
  const view = firstView(drawing, focus, size);
  expect(view.x + view.k * focus.x).toBeCloseTo(500);
  expect(view.y + view.k * focus.y).toBeCloseTo(300);
});

test("a focus at the end of a long drawing is seen, with more room for the rest", () => {
  for (const at of [0, 59]) {
    const lineage = chain(60, at);
    const drawing = layout(lineage);
    const focus = focusOf(drawing, lineage.focus);
    const view = firstView(drawing, focus, size);
    expect(isSeen(focus, view)).toBe(true);
    expect(drawing.nodes.filter((box) => isSeen(box, view)).length).toBeGreaterThanOrEqual(4);
  }
});

test("a timeline begins with its first lanes, or ends with its last ones, without blank room", () => {
  for (const at of [0, 59]) {
    const lineage = chain(60, at);
    lineage.nodes.forEach((node, index) => (node.source = `source ${index % 12}`));
    const drawing = timeline(lineage);
    expect(fits(drawing, size)).toBe(false);
    const { x, y, k } = firstView(drawing, focusOf(drawing, lineage.focus), size);
    expect(isSeen(focusOf(drawing, lineage.focus), { x, y, k })).toBe(true);
    expect(y).toBeLessThanOrEqual(12);
    expect(y + k * drawing.height).toBeGreaterThanOrEqual(size.height - 12);
    expect(x).toBeLessThanOrEqual(12);
  }
});

test("the timeline of a short day is seen whole at first", () => {
  const lineage = demoDay();
  const drawing = timeline(lineage);
  const page = { width: 1232, height: 544 };
  const view = firstView(drawing, focusOf(drawing, lineage.focus), page);
  expect(drawing.nodes.every((box) => isSeen(box, view, page))).toBe(true);
});

test("all of a large drawing is seen when it is fitted", () => {
  const drawing = layout(random(400, 2));
  const view = fit(drawing, size);
  expect(drawing.nodes.every((box) => isSeen(box, view))).toBe(true);
});

test("what is pointed at stays there while zooming", () => {
  const view = { x: 40, y: -20, k: 0.7 };
  const point = (now: View) => [(300 - now.x) / now.k, (200 - now.y) / now.k];
  expect(point(zoomAt(view, 1.5, 300, 200))[0]).toBeCloseTo(point(view)[0]!);
  expect(point(zoomAt(view, 0.001, 300, 200))[1]).toBeCloseTo(point(view)[1]!);
});

test("a box outside is brought in, and one inside moves nothing", () => {
  const drawing = layout(chain(60, 30));
  const [first, last] = [drawing.nodes[0]!, drawing.nodes[59]!];
  const view = centre(first, size, 1);
  expect(reveal(view, first, size)).toEqual(view);
  expect(isSeen(last, view)).toBe(false);
  expect(isSeen(last, reveal(view, last, size))).toBe(true);
});

test("the part that is drawn holds what is seen until it moved by a screen", () => {
  const view = { x: 0, y: 0, k: 1 };
  const part = seen(view, size);
  expect(holds(part, { ...view, x: -900 }, size)).toBe(true);
  expect(holds(part, { ...view, x: -1100 }, size)).toBe(false);
  expect(holds(part, { ...view, k: 0.2 }, size)).toBe(false);
});

test("boxes and lines of a part are those that touch it", () => {
  const drawing = layout(chain(60, 30));
  const view = centre(drawing.nodes[30]!, size, 1);
  const part = seen(view, size);
  const boxes = drawing.nodes.filter((box) => boxIn(box, part));
  expect(boxes.length).toBeLessThan(30);
  expect(drawing.nodes.filter((box) => isSeen(box, view)).every((box) => boxes.includes(box))).toBe(true);
  const edges = drawing.edges.filter((edge) => edgeIn(edge, part));
  expect(edges.length).toBeGreaterThanOrEqual(boxes.length - 1);
});
