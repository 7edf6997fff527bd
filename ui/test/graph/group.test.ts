import { describe, expect, test } from "vitest";
import { EXPAND_STEP, group, isGroup } from "../../src/graph/group";
import type { Lineage } from "../../src/graph/types";
import { chain, demoDay, idOf, lineageOf, random, star } from "./graphs";

const seeds = Array.from({ length: 20 }, (_, seed) => seed + 1);

/** Three generations: each event has as many effects of one type, `llm.prompt` and `llm.response` in turns. */
function fan(each: number): Lineage {
  const made: { type: string; parents: number[] }[] = [{ type: "llm.prompt", parents: [] }];
  let last = [0];
  for (const type of ["llm.response", "artifact.created"]) {
    const next: number[] = [];
    for (const parent of last) for (let count = 0; count < each; count++) next.push(made.push({ type, parents: [parent] }) - 1);
    last = next;
  }
  return lineageOf(made);
}

describe.each(seeds)("groups of a generated graph (%i)", (seed) => {
  const lineage = random(100 * seed, seed, { back: 3 });
  const grouped = group(lineage);

  test("lose no event", () => {
    const events = grouped.boxes.flatMap((box) => box.events.map(({ id }) => id));
    expect(events.slice().sort()).toEqual(lineage.nodes.map(({ id }) => id).sort());
    for (const box of grouped.boxes) for (const { id } of box.events) expect(grouped.boxOf.get(id)).toBe(box.id);
  });

  test("lose no link", () => {
    expect(grouped.edges.reduce((sum, { count }) => sum + count, 0)).toBe(lineage.edges.length);
    const drawn = new Set(grouped.edges.map(({ parent, child }) => `${parent} ${child}`));
    for (const { parent, child } of lineage.edges) {
      expect(drawn.has(`${grouped.boxOf.get(parent)} ${grouped.boxOf.get(child)}`)).toBe(true);
    }
  });

  test("hold events of one type only, and never the focus", () => {
    for (const box of grouped.boxes.filter(({ id }) => isGroup(id))) {
      expect(new Set(box.events.map(({ event_type }) => event_type)).size).toBe(1);
      expect(box.events.every(({ id, known }) => known && id !== lineage.focus)).toBe(true);
    }
  });

  test("are the same twice", () => {
    expect(group(lineage)).toEqual(grouped);
  });
});

test("twelve siblings are boxes of their own, thirteen are one", () => {
  expect(group(star(13)).boxes).toHaveLength(13);
  expect(group(star(14)).boxes).toHaveLength(2);
});

test("a small graph is drawn as it is", () => {
  expect(group(demoDay()).boxes).toHaveLength(9);
});

test("siblings of several types are a group each", () => {
  const made = [{}, ...Array.from({ length: 40 }, (_, at) => ({ type: at % 2 ? "a.b" : "c.d", parents: [0] }))];
  expect(group(lineageOf(made)).boxes.map(({ events }) => events.length)).toEqual([1, 20, 20]);
});

test("siblings with other causes are not grouped with them", () => {
  const made = [{}, { parents: [0], type: "other.cause" }, ...Array.from({ length: 30 }, (_, at) => ({ type: "a.b", parents: at < 15 ? [0] : [0, 1] }))];
  expect(group(lineageOf(made)).boxes.map(({ events }) => events.length)).toEqual([1, 1, 15, 15]);
});

test("causes without causes are grouped by what they led to", () => {
  const made = [{ type: "note.written", parents: Array.from({ length: 20 }, (_, at) => at + 1) }, ...Array.from({ length: 20 }, () => ({ type: "call.recorded" }))];
  expect(group(lineageOf(made)).boxes.map(({ events }) => events.length)).toEqual([1, 20]);
});

test("groups below groups are groups: 5,000 events in three generations are three boxes", () => {
  expect(group(fan(70)).boxes.map(({ events }) => events.length)).toEqual([1, 70, 4900]);
});

test("small families are grouped when there are many events", () => {
  expect(group(fan(2)).boxes).toHaveLength(7);
  const deep = lineageOf(Array.from({ length: 4095 }, (_, at) => ({ parents: at > 0 ? [(at - 1) >> 1] : [] })));
  expect(group(deep).boxes).toHaveLength(12);
});

test("an expanded group lets go some events and keeps its id", () => {
  const id = `group:${idOf(1)}`;
  const grouped = group(star(101), { expanded: new Map([[id, EXPAND_STEP]]) });
  expect(grouped.boxes).toHaveLength(1 + EXPAND_STEP + 1);
  expect(grouped.boxes.find((box) => box.id === id)!.events).toHaveLength(100 - EXPAND_STEP);
  expect(grouped.boxes.filter(({ of }) => of === id)).toHaveLength(EXPAND_STEP);
  // What is left of it stands where it stood.
  expect(grouped.boxes[1]!.id).toBe(id);
});

test("a group of which one event would be left has none left", () => {
  const grouped = group(star(26), { expanded: new Map([[`group:${idOf(1)}`, EXPAND_STEP]]) });
  expect(grouped.boxes.filter(({ id }) => isGroup(id))).toEqual([]);
  expect(grouped.boxes).toHaveLength(26);
});

test("a chain is not grouped", () => {
  expect(group(chain(2_000)).boxes).toHaveLength(2_000);
});

test("a box counts the causes and effects that are not drawn", () => {
  const lineage = star(20);
  lineage.nodes[0]!.parents_total = 3;
  for (const node of lineage.nodes.slice(1)) node.children_total = 2;
  const [cause, effects] = group(lineage).boxes;
  expect([cause!.hiddenParents, cause!.hiddenChildren]).toEqual([3, 0]);
  expect([effects!.hiddenParents, effects!.hiddenChildren]).toEqual([0, 38]);
});

test("groups of a timeline hold events of one source", () => {
  const made = [{}, ...Array.from({ length: 40 }, (_, at) => ({ type: "a.b", source: at % 2 ? "one" : "two", parents: [0] }))];
  expect(group(lineageOf(made), { bySource: true }).boxes).toHaveLength(3);
  expect(group(lineageOf(made)).boxes).toHaveLength(2);
});
