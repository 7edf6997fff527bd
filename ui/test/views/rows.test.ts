import { beforeEach, expect, test } from "vitest";

import type { Envelope } from "../../src/api/types";
import { MOST_ROWS } from "../../src/views/live/feed";
import { Rows } from "../../src/views/live/rows";

let list: HTMLOListElement;
let rows: Rows;

beforeEach(() => {
  document.body.replaceChildren((list = document.createElement("ol")));
  rows = new Rows(list);
});

function event(number: number, type = "memo.filed", causes = 0): Envelope {
  return {
    event_id: `01a20922-4493-7000-8000-${String(number).padStart(12, "0")}`,
    event_type: type,
    timestamp: "2026-11-28T10:00:00Z",
    version: "2.0.0",
    source: { host: "laptop", type: "agent", app: "scribe" },
    correlation_ids: Array.from({ length: causes }, (_, index) => `01a20922-4493-7000-8000-${String(index).padStart(12, "0")}`),
    payload: { text: `event ${number}` },
  };
}

const events = (first: number, count: number) => Array.from({ length: count }, (_, index) => event(first + index));
const shown = () => [...list.querySelectorAll(".row-summary")].map((cell) => Number(cell.textContent?.slice(6)));
const down = (from: number, count: number) => Array.from({ length: count }, (_, index) => from - index);

test("the newest event is on top", () => {
  rows.add(events(0, 3));
  rows.add(events(3, 2));
  expect(shown()).toEqual([4, 3, 2, 1, 0]);
  expect(list.querySelector("a")?.getAttribute("href")).toBe(`/e/${event(4).event_id}`);
});

test("there are never more rows than the most, however many come at once", () => {
  for (let first = 0; first < 3000; first += 150) rows.add(events(first, 150));
  expect(shown()).toEqual(down(2999, MOST_ROWS));
  rows.add(events(3000, 1000));
  expect(shown()).toEqual(down(3999, MOST_ROWS));
});

test("rows are written anew, not made", () => {
  rows.add(events(0, MOST_ROWS));
  const items = new Set(list.children);
  rows.add(events(1000, 150));
  expect([...list.children].every((item) => items.has(item))).toBe(true);
});

test("a lower limit takes rows away, and older ones are put below again", () => {
  rows.add(events(0, MOST_ROWS));
  rows.add(events(200, 10), 30);
  expect(shown()).toEqual(down(209, 30));
  rows.addOlder(events(0, 180).reverse());
  expect(shown()).toEqual(down(209, MOST_ROWS));
});

test("a failure has a word as well, and is counted", () => {
  expect(rows.add([event(0), event(1, "memo.failed"), event(2, "llm.error")])).toBe(2);
  expect([...list.querySelectorAll(".failed .row-mark")].map((cell) => cell.textContent)).toEqual(["failed", "failed"]);
  rows.add(events(3, MOST_ROWS));
  expect(list.querySelectorAll(".failed")).toHaveLength(0);
});

test("causes are counted in words", () => {
  rows.add([event(0), event(1, "a.b", 1), event(2, "a.b", 2)]);
  expect([...list.querySelectorAll(".row-causes")].map((cell) => cell.textContent)).toEqual(["2 causes", "1 cause", ""]);
});

test("the list is one stop for the tabulator, and arrows walk through it", () => {
  rows.add(events(0, 5));
  const links = [...list.querySelectorAll("a")];
  expect(links.map((link) => link.tabIndex)).toEqual([0, -1, -1, -1, -1]);
  links[0]?.focus();
  expect(rows.move(document.activeElement, 1)).toBe(true);
  expect(document.activeElement).toBe(links[1]);
  expect(rows.move(document.activeElement, 100)).toBe(true);
  expect(document.activeElement).toBe(links[4]);
  expect(rows.move(document.activeElement, 1)).toBe(false);
  expect(links.map((link) => link.tabIndex)).toEqual([-1, -1, -1, -1, 0]);
});

test("a row that has the focus never becomes another event", () => {
  rows.add(events(0, MOST_ROWS));
  const last = [...list.querySelectorAll("a")].at(-1);
  last?.focus();
  const address = last?.href;
  rows.add(events(1000, 150));
  expect(last?.href).toBe(address);
});
