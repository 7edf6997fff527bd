import { describe, expect, test } from "vitest";
import { group } from "../../src/graph/group";
import { arrange, layout } from "../../src/graph/layout";
import { countCrossings, type Layered, orderLayers } from "../../src/graph/order";
import { timeline } from "../../src/graph/timeline";
import type { Drawing, Grouped, Lineage, PlacedBox } from "../../src/graph/types";
import { chain, demoDay, idOf, lineageOf, random, star } from "./graphs";

/** Each event a box of its own. */
function apart(lineage: Lineage): Grouped {
  const boxes = lineage.nodes.map((node) => ({
    id: node.id,
    of: null,
    events: [node],
    type: node.event_type,
    known: node.known,
    failed: node.status === "failed",
    hiddenParents: 0,
    hiddenChildren: 0,
  }));
  const edges = lineage.edges.map((edge) => ({ ...edge, count: 1 }));
  return { boxes, edges, boxOf: new Map(boxes.map(({ id }) => [id, id])) };
}

function at(drawing: Drawing, id: string): PlacedBox {
  const box = drawing.nodes.find((node) => node.id === id);
  if (!box) throw new Error(`no box ${id}`);
  return box;
}

function overlaps(drawing: Drawing): string[] {
  const rows = new Map<number, PlacedBox[]>();
  for (const box of drawing.nodes) rows.set(box.y, [...(rows.get(box.y) ?? []), box]);
  const found: string[] = [];
  for (const row of rows.values()) {
    row.sort((a, b) => a.x - b.x);
    row.forEach((box, place) => {
      const next = row[place + 1];
      if (next && box.x + box.width / 2 > next.x - next.width / 2) found.push(`${box.id} ${next.id}`);
    });
  }
  return found;
}

const seeds = Array.from({ length: 30 }, (_, seed) => seed + 1);

describe.each(seeds)("a generated graph (%i)", (seed) => {
  const lineage = random(20 + seed * 13, seed);
  const drawing = arrange(apart(lineage));

  test("has every line, and each goes down", () => {
    expect(drawing.edges.length).toBe(lineage.edges.length);
    const ys = new Map(drawing.nodes.map((box) => [box.id, box.y]));
    for (const { parent, child, against } of drawing.edges) {
      expect(ys.get(parent)!).toBeLessThan(ys.get(child)!);
      expect(against).toBe(false);
    }
  });

  test("has no boxes that overlap, and none outside", () => {
    expect(overlaps(drawing)).toEqual([]);
    for (const box of drawing.nodes) {
      expect(box.x - box.width / 2).toBeGreaterThanOrEqual(-0.001);
      expect(box.x + box.width / 2).toBeLessThanOrEqual(drawing.width + 0.001);
      expect(box.y + box.height / 2).toBeLessThanOrEqual(drawing.height + 0.001);
    }
  });

  test("is drawn the same twice", () => {
    expect(arrange(apart(random(20 + seed * 13, seed)))).toEqual(drawing);
  });

  test("has a timeline without overlaps, in which time goes to the right", () => {
    const byTime = timeline(lineage);
    expect(overlaps(byTime)).toEqual([]);
    const lanes = new Map<number, PlacedBox[]>();
    for (const box of byTime.nodes) if (box.known) lanes.set(box.layer, [...(lanes.get(box.layer) ?? []), box]);
    for (const boxes of lanes.values()) {
      const left = (box: PlacedBox) => box.x - box.width / 2;
      boxes.sort((a, b) => left(a) - left(b));
      const times = boxes.map((box) => Math.min(...box.events.map(({ timestamp }) => Date.parse(timestamp!))));
      expect(times).toEqual(times.slice().sort((a, b) => a - b));
    }
  });
});

test("sweeps leave fewer crossings than the first order", () => {
  const worse: number[] = [];
  for (const seed of seeds) {
    const size = 12;
    const next = random(size * 5, seed);
    const upper: number[] = [];
    const lower: number[] = [];
    // Five rows, joined at random by the generator's own numbers.
    next.edges.forEach(({ parent, child }, number) => {
      const row = number % 4;
      upper.push(row * size + (Number.parseInt(parent.slice(0, 8), 16) % size));
      lower.push((row + 1) * size + (Number.parseInt(child.slice(0, 8), 16) * 7) % size);
    });
    const layer = Int32Array.from({ length: size * 5 }, (_, node) => Math.floor(node / size));
    const graph: Layered = { layer, layers: 5, upper: Int32Array.from(upper), lower: Int32Array.from(lower) };
    const asGiven = Array.from({ length: 5 }, (_, row) => Array.from({ length: size }, (_, place) => row * size + place));
    const ordered = orderLayers(graph);
    expect(ordered.map((row) => row.slice().sort((a, b) => a - b))).toEqual(asGiven);
    if (countCrossings(ordered, graph) > 0.8 * countCrossings(asGiven, graph)) worse.push(seed);
  }
  expect(worse).toEqual([]);
});

test("crossings are counted as by looking at every pair", () => {
  const graph: Layered = {
    layer: Int32Array.from([0, 0, 0, 1, 1, 1]),
    layers: 2,
    upper: Int32Array.from([0, 0, 1, 2, 2]),
    lower: Int32Array.from([5, 4, 3, 3, 4]),
  };
  // 0→5 with 1→3, 2→3, 2→4; 0→4 with 1→3, 2→3.
  expect(countCrossings([[0, 1, 2], [3, 4, 5]], graph)).toBe(5);
  expect(countCrossings([[1, 2, 0], [3, 4, 5]], graph)).toBe(0);
});

test("a chain stands below itself", () => {
  const drawing = layout(chain(9));
  expect(new Set(drawing.nodes.map(({ x }) => x)).size).toBe(1);
  expect(drawing.nodes.map(({ layer }) => layer)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
});

test("a chain of 10,000 is laid out", () => {
  const drawing = arrange(apart(chain(10_000)));
  expect(drawing.nodes.length).toBe(10_000);
  expect(at(drawing, idOf(9_999)).layer).toBe(9_999);
});

test("a chain of 10,000 whose events all name the first is laid out", () => {
  const made = Array.from({ length: 10_000 }, (_, number) => ({ parents: number > 1 ? [number - 1, 0] : number > 0 ? [0] : [] }));
  const drawing = arrange(apart(lineageOf(made)));
  expect(drawing.edges.length).toBe(19_997);
});

test("a circle of 10,000 is laid out, with one line against it", () => {
  const made = Array.from({ length: 10_000 }, (_, number) => ({ parents: [(number + 9_999) % 10_000] }));
  const drawing = arrange(apart(lineageOf(made)));
  expect(drawing.edges.filter(({ against }) => against).map(({ parent, child }) => [parent, child])).toEqual([[idOf(9_999), idOf(0)]]);
});

test("circles in a generated graph lose no line", () => {
  const lineage = random(300, 5, { forward: 0.2 });
  const drawing = arrange(apart(lineage));
  expect(drawing.edges.length).toBe(lineage.edges.length);
  expect(overlaps(drawing)).toEqual([]);
  expect(drawing.edges.some(({ against }) => against)).toBe(true);
});

test("a star of 5,000 is one box below its cause", () => {
  const drawing = layout(star(5_000));
  expect(drawing.nodes.map(({ events }) => events.length)).toEqual([1, 4_999]);
  expect(drawing.edges).toHaveLength(1);
  expect(drawing.edges[0]!.count).toBe(4_999);
});

test("a star of 5,000 without groups is laid out", () => {
  expect(overlaps(arrange(apart(star(5_000))))).toEqual([]);
});

test("a diamond has its shared effect once, in the middle", () => {
  const drawing = layout(lineageOf([{}, { parents: [0], type: "a.b" }, { parents: [0], type: "c.d" }, { parents: [1, 2] }]));
  expect(drawing.nodes.length).toBe(4);
  expect(at(drawing, idOf(3)).x).toBeCloseTo((at(drawing, idOf(1)).x + at(drawing, idOf(2)).x) / 2);
  expect(at(drawing, idOf(3)).x).toBeCloseTo(at(drawing, idOf(0)).x);
});

test("a cause without causes stands right above its effect", () => {
  const drawing = layout(lineageOf([{}, { parents: [0] }, { parents: [1] }, { known: false }, { parents: [2, 3] }], 4));
  expect(at(drawing, idOf(3)).layer).toBe(2);
});

test("a line that spans layers passes no box", () => {
  // 0 → 1 → 2 → 3 and 0 → 3.
  const drawing = layout(lineageOf([{}, { parents: [0] }, { parents: [1] }, { parents: [2, 0] }]));
  const long = drawing.edges.find(({ parent, child }) => parent === idOf(0) && child === idOf(3))!;
  const passes = Array.from(long.path.matchAll(/ ([\d.]+) [\d.]+V/g), (match) => Number(match[1]));
  expect(passes.length).toBeGreaterThan(0);
  for (const x of passes) expect(Math.abs(x - at(drawing, idOf(1)).x)).toBeGreaterThan(at(drawing, idOf(1)).width / 2);
});

test("one event alone is a drawing, and nothing is one too", () => {
  expect(layout(chain(1)).nodes).toHaveLength(1);
  expect(arrange({ boxes: [], edges: [], boxOf: new Map() }).nodes).toEqual([]);
  expect(layout(demoDay()).edges).toHaveLength(9);
});

test("what was never seen has a lane of its own, the last", () => {
  const drawing = timeline(lineageOf([{ known: false }, { parents: [0], source: "a" }, { parents: [1], source: "b" }], 1));
  expect(drawing.lanes.map(({ name }) => name)).toEqual(["a", "b", "never seen"]);
});

test("times that are far apart stay in one drawing", () => {
  const day = 86_400_000;
  const drawing = timeline(lineageOf([{ at: 0 }, { at: 5, parents: [0] }, { at: 400 * day, parents: [1] }]));
  expect(drawing.width).toBeLessThan(1200);
  expect(drawing.ticks[drawing.ticks.length - 1]!.label).toBe("+400 days");
});

test("a long timeline has few marks on its axis", () => {
  const drawing = timeline(chain(5_000));
  expect(drawing.ticks.length).toBeLessThanOrEqual(301);
  expect(drawing.nodes).toHaveLength(5_000);
});

test("in a wide drawing the effects that led to nothing stand below each other", () => {
  const made = [{}, ...Array.from({ length: 6 }, () => ({ parents: [0], type: "a.b" }))];
  for (let parent = 1; parent <= 6; parent++) {
    for (let child = 0; child < 4; child++) made.push({ parents: [parent], type: `effect.number${child}` });
  }
  const drawing = layout(lineageOf(made));
  expect(overlaps(drawing)).toEqual([]);
  expect(drawing.edges).toHaveLength(30);
  const family = [7, 8, 9, 10].map((number) => at(drawing, idOf(number)));
  expect(new Set(family.map(({ x, width }) => x - width / 2)).size).toBe(1);
  expect(new Set(family.map(({ y }) => y)).size).toBe(4);
  expect(new Set(family.map(({ layer }) => layer))).toEqual(new Set([2]));
});

test("groups of more than one box are laid out like boxes", () => {
  const grouped = group(random(3_000, 11));
  expect(overlaps(arrange(grouped))).toEqual([]);
});
