import { describe, expect, test } from "vitest";
import { COLOURS, domainOf, legendOf } from "../../src/graph/colour";
import { cut, toMermaid, toSvg } from "../../src/graph/export";
import { group } from "../../src/graph/group";
import { layout } from "../../src/graph/layout";
import { timeline } from "../../src/graph/timeline";
import type { Drawing } from "../../src/graph/types";
import { isLit, lit, pathsOf, step } from "../../src/graph/walk";
import { labelOf, leftOut, summary } from "../../src/graph/words";
import { demoDay, idOf, lineageOf, random, star } from "./graphs";

const palette = {
  background: "#ffffff",
  box: "#ffffff",
  line: "#8a94a6",
  text: "#111827",
  muted: "#4b5563",
  failed: "#b42318",
  accent: "#1d4ed8",
  marks: Array.from({ length: COLOURS + 1 }, (_, at) => `#00000${at}`),
};

describe("the summary", () => {
  test("says how much came before and after, how it began and what failed", () => {
    expect(summary(demoDay())).toBe(
      "9 events: this one, 7 causes before it, 1 effect after it. It began with fireflies.transcript.upload. 1 event failed.",
    );
  });

  test("says that causes were never seen", () => {
    const lineage = lineageOf([{ known: false }, { parents: [0] }], 1);
    expect(summary(lineage)).toContain("1 cause was named and never seen, or is older than what is kept.");
  });

  test("says that there is a circle", () => {
    expect(summary({ ...demoDay(), cycle: true })).toContain("in a circle");
  });

  test("says what is not drawn", () => {
    const lineage = star(3);
    lineage.nodes[1]!.children_total = 1200;
    lineage.nodes[2]!.parents_total = 2;
    expect(leftOut(group(lineage).boxes, false)).toBe("Not drawn: 1 cause and 1,200 effects of these events. Press a “+” to see more.");
    expect(leftOut(group(star(3)).boxes, false)).toBe("");
    expect(leftOut(group(star(3)).boxes, true)).toContain("not whole");
  });
});

test("a box's label says type, id, time, source, status, causes and effects", () => {
  const box = group(demoDay()).boxes[8]!;
  const label = labelOf({ ...box, hiddenChildren: 3 }, 1, 0);
  expect(label).toMatch(/^artifact\.ingestion\.failed 00000008-0000 · \d\d:\d\d:\d\d · indexer, failed, 1 cause, 0 effects, 3 more effects not drawn$/);
});

test("a domain is the first word of a type", () => {
  expect(domainOf("fireflies.transcript.ready")).toBe("fireflies");
  expect(domainOf(null)).toBe("unknown");
});

test("names have colours of their own while there are enough, and then grey", () => {
  const made = Array.from({ length: 12 }, (_, at) => ({ type: `domain${at}.happened`, parents: at > 0 ? [0] : [] }));
  const { items } = legendOf(group(lineageOf(made)).boxes, "domain");
  const colours = items.map(({ colour }) => colour);
  expect(new Set(colours.filter((colour) => colour < COLOURS)).size).toBe(COLOURS);
  expect(colours.filter((colour) => colour === COLOURS)).toHaveLength(4);
});

test("the legend counts events, by source too", () => {
  const { items } = legendOf(group(demoDay()).boxes, "source");
  expect(items.map(({ name, events }) => [name, events])).toContainEqual(["scribe", 2]);
});

describe("the path of an event", () => {
  const drawing = layout(demoDay());
  const paths = pathsOf(drawing);

  test("is its causes and effects, and not its siblings", () => {
    const path = lit(idOf(3), paths);
    expect(Array.from(path.above).sort()).toEqual([0, 1, 2, 3].map(idOf));
    expect(Array.from(path.below).sort()).toEqual([3, 5, 7, 8].map(idOf));
    expect(isLit({ parent: idOf(2), child: idOf(3) }, path)).toBe(true);
    expect(isLit({ parent: idOf(2), child: idOf(4) }, path)).toBe(false);
  });

  test("arrow keys lead to causes, effects and siblings", () => {
    const go = (from: number, way: "up" | "down" | "left" | "right") =>
      step(drawing.nodes.find(({ id }) => id === idOf(from))!, way, drawing, paths)?.id ?? null;
    expect(go(7, "down")).toBe(idOf(8));
    expect([idOf(5), idOf(6)]).toContain(go(7, "up"));
    expect(go(0, "up")).toBeNull();
    expect(new Set([go(3, "left"), go(3, "right")])).toEqual(new Set([idOf(4), null]));
  });

  test("next and previous lead through every box", () => {
    const many = layout(random(400, 8));
    const around = pathsOf(many);
    let box = many.nodes.find(({ layer, order }) => layer === 0 && order === 0)!;
    const seen = [box.id];
    for (let next = step(box, "next", many, around); next; next = step(box, "next", many, around)) {
      expect(step(next, "previous", many, around)).toBe(box);
      box = next;
      seen.push(box.id);
    }
    expect(seen.sort()).toEqual(many.nodes.map(({ id }) => id).sort());
  });
});

describe("an SVG file", () => {
  const svgOf = (drawing: Drawing, focus: string) => toSvg(drawing, focus, legendOf(drawing.nodes, "domain"), palette);

  test("has every box and line, and nothing from outside", () => {
    const svg = svgOf(layout(demoDay()), idOf(7));
    expect(svg.match(/<g transform="translate\([\d.]+ [\d.]+\)"><rect/g)).toHaveLength(9);
    expect(svg.match(/stroke-width="1.5"/g)).toHaveLength(9);
    expect(svg).not.toMatch(/href|url\(|<style|style=|var\(|currentColor/);
    expect(svg).toContain("artifact.ingestion");
  });

  test("is well-formed whatever the names are", () => {
    const hostile = `<script>alert("1")</script>&\u0000`;
    const svg = svgOf(timeline(lineageOf([{ source: hostile, type: 'a."b"' }])), idOf(0));
    expect(svg).not.toContain("<script");
    expect(svg).not.toContain("\u0000");
    expect(svg).toContain("&lt;script&gt;");
    expect(svg.split("<g").length).toBe(svg.split("</g>").length);
  });
});

describe("Mermaid text", () => {
  test("has every event and link", () => {
    const text = toMermaid(demoDay());
    expect(text.startsWith("flowchart TD\n")).toBe(true);
    expect(text.match(/ --> /g)).toHaveLength(9);
    expect(text.match(/\["/g)).toHaveLength(9);
    expect(text).toContain("class e7 focus");
    expect(text).toContain("class e8 failed");
  });

  test("escapes what Mermaid takes for its own", () => {
    const text = toMermaid(lineageOf([{ source: 'x"] --> y; <b>#quot;' }]));
    expect(text).toContain("x#34;#93; #45;#45;#62; y#59; #60;b#62;#35;quot#59;");
    const tricks = toMermaid(lineageOf([{ type: "llm.prompt", source: "note-taker fa:fa-car $$x$$ www.a.b" }]));
    expect(tricks).toContain("llm.prompt<br/>");
    expect(tricks).toContain("note-taker fa#58;#8203;fa-car #36;#8203;#36;x#36;#8203;#36; www#46;a.b");
  });

  test("marks what was never seen", () => {
    expect(toMermaid(lineageOf([{ known: false }, { parents: [0] }], 1))).toContain("class e0 missing");
  });
});

test("long texts are cut", () => {
  expect(cut("abcdefghij", 50, 10)).toBe("abcd…");
  expect(cut("abc", 50, 10)).toBe("abc");
});
