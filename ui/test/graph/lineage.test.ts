import { describe, expect, test } from "vitest";
import { gather, grow, merge, neighbours, reach, shownPart } from "../../src/graph/lineage";
import type { Direction, Lineage, Load } from "../../src/graph/types";
import { chain, demoDay, idOf, lineageOf, random, star } from "./graphs";

const nobody: ReadonlySet<string> = new Set();

/** A server with this lineage: breadth first, cut by depth and limit, all edges among what it answers. */
function serverOf(whole: Lineage): { load: Load; asked: string[] } {
  const asked: string[] = [];
  const { parents, children } = neighbours(whole);
  const load: Load = async (id, direction: Direction, maxDepth, limit) => {
    asked.push(`${direction} ${maxDepth} ${limit}`);
    const most = limit ?? 500;
    const found = new Set<string>([id]);
    let depth = false;
    for (const [way, map] of [["ancestors", parents], ["descendants", children]] as const) {
      if (direction !== way && direction !== "both") continue;
      const all = reach(id, map, null);
      for (const [other, hops] of all) {
        if (hops > (maxDepth ?? 50)) depth = true;
        else found.add(other);
      }
    }
    const kept = new Set(Array.from(found).slice(0, most));
    return {
      ...whole,
      focus: id,
      direction,
      nodes: whole.nodes.filter((node) => kept.has(node.id)),
      edges: whole.edges.filter(({ parent, child }) => kept.has(parent) && kept.has(child)),
      truncated: { depth, limit: kept.size < found.size, frontier: [] },
    };
  };
  return { load, asked };
}

test("one question is enough for a small graph, and all of it is at hand", async () => {
  const { load, asked } = serverOf(demoDay());
  const { lineage } = await gather(load, idOf(7), null, 2);
  expect(asked).toHaveLength(1);
  expect(lineage.nodes).toHaveLength(9);
});

test("two generations of effects and all causes are shown", () => {
  const shown = shownPart(chain(100, 50), { up: null, down: 2, grownUp: nobody, grownDown: nobody });
  expect(shown.nodes).toHaveLength(53);
  expect(shown.nodes.map(({ depth }) => depth)).toEqual(Array.from({ length: 53 }, (_, at) => at - 50));
});

test("generations of causes can be bounded", () => {
  const shown = shownPart(chain(100, 50), { up: 3, down: 0, grownUp: nobody, grownDown: nobody });
  expect(shown.nodes.map(({ depth }) => depth)).toEqual([-3, -2, -1, 0]);
  expect(shown.roots).toEqual([idOf(47)]);
});

test("a grown event shows its effects, and theirs when they are grown too", () => {
  const grownDown = new Set([idOf(53), idOf(52)]);
  const shown = shownPart(chain(100, 50), { up: 0, down: 2, grownUp: nobody, grownDown });
  expect(shown.nodes).toHaveLength(5);
});

test("a link between a cause and an effect is shown, though both are asked for apart", async () => {
  // 0 → 1 → 2 (focus) → 3, and 0 → 3; 2 has many effects, so that the first answer is cut.
  const made = [{}, { parents: [0] }, { parents: [1] }, { parents: [2, 0] }, ...Array.from({ length: 600 }, () => ({ parents: [2] }))];
  const { load, asked } = serverOf(lineageOf(made, 2));
  const { lineage } = await gather(load, idOf(2), null, 2);
  expect(asked.length).toBeGreaterThan(1);
  const shown = shownPart(lineage, { up: null, down: 2, grownUp: nobody, grownDown: nobody });
  expect(shown.edges).toContainEqual({ parent: idOf(0), child: idOf(3) });
  expect(shown.nodes).toHaveLength(604);
});

test("a star of 5,000 comes whole", async () => {
  const { load } = serverOf(star(5_000));
  const { lineage } = await gather(load, idOf(0), null, null);
  expect(lineage.nodes).toHaveLength(5_000);
  expect(lineage.truncated.limit).toBe(false);
});

test("a server that allows less is asked within its own bounds", async () => {
  const { load } = serverOf(chain(10));
  const strict: Load = async (id, direction, depth, limit) => {
    if ((depth ?? 0) > 100) throw Object.assign(new Error("max_depth must be at most 100."), { status: 400 });
    return load(id, direction, depth, limit);
  };
  expect((await gather(strict, idOf(0), null, 2)).lineage.nodes).toHaveLength(10);
  const refusing: Load = async () => {
    throw Object.assign(new Error("unknown"), { status: 404 });
  };
  await expect(gather(refusing, idOf(0), null, 2)).rejects.toThrow("unknown");
});

test("growing adds an event's effects, with their links to what is shown", async () => {
  const made = [{}, { parents: [0] }, { parents: [1] }, { parents: [1, 0] }];
  const whole = lineageOf(made, 0);
  const { load } = serverOf(whole);
  const first = await load(idOf(0), "descendants", 1, null);
  const part = { ...first, nodes: first.nodes.filter(({ id }) => id !== idOf(3)), edges: first.edges.filter(({ child }) => child !== idOf(3)) };
  const grown = await grow(load, part, [idOf(1)], "down");
  expect(grown.edges).toHaveLength(4);
});

describe("merging", () => {
  test("has each event and link once, and keeps the focus of the first", () => {
    const whole = random(200, 3);
    const merged = merge(whole, whole, { ...whole, focus: idOf(1) });
    expect(merged.nodes).toEqual(whole.nodes);
    expect(merged.edges).toEqual(whole.edges);
    expect(merged.focus).toBe(whole.focus);
  });

  test("knows an event that one of them knows", () => {
    const unknown = lineageOf([{ known: false }, { parents: [0] }], 1);
    const known = lineageOf([{}, { parents: [0] }], 1);
    expect(merge(unknown, known).missing).toEqual([]);
    expect(merge(known, unknown).missing).toEqual([]);
    expect(merge(unknown, unknown).missing).toEqual([idOf(0)]);
  });
});
