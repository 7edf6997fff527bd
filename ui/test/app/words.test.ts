import { expect, test } from "vitest";

import { addressOf } from "../../src/app/App";
import { pageOf } from "../../src/app/router";
import { linePath } from "../../src/app/Sparkline";
import { ago, bytes, count, idPrefix, isFailure, isId, listed, many, offset, rate, shortTime, span, summary } from "../../src/app/words";

const NOW = new Date("2026-11-28T15:59:30Z");
const before = (seconds: number) => new Date(NOW.getTime() - seconds * 1000);

test.each([
  [0, "now"], [0.9, "now"], [1.24, "1.2 s ago"], [42, "42 s ago"], [180, "3 min ago"], [3600, "1 h ago"], [7500, "2 h 5 min ago"],
  [86_400 * 5, "5 days ago"], [86_400, "1 day ago"], [-20, "in 20 s"],
])("%d seconds before now is %s", (seconds, words) => {
  expect(ago(before(seconds), NOW)).toBe(words);
});

test("a time of another day has the day", () => {
  expect(shortTime(NOW, NOW)).toMatch(/^\d\d:\d\d:\d\d$/);
  expect(shortTime(before(86_400 * 2), NOW)).toMatch(/^\d+ Nov \d\d:\d\d:\d\d$/);
  expect(shortTime(before(86_400 * 400), NOW)).toMatch(/^\d+ Oct 2025 /);
});

test("lengths, counts and sizes", () => {
  expect([span(0.25), span(9.96), span(3599), span(36_000)]).toEqual(["250 ms", "10 s", "60 min", "10 h"]);
  expect([offset(3.9), offset(75), offset(3723)]).toEqual(["0:03", "1:15", "1:02:03"]);
  expect([count(1234567), many(1, "event"), many(2, "event"), rate(0), rate(0.44), rate(1234.5)]).toEqual([
    "1,234,567", "1 event", "2 events", "0", "0.4", "1,235",
  ]);
  expect([bytes(0), bytes(999), bytes(1500), bytes(52_400_000)]).toEqual(["0 bytes", "999 bytes", "1.5 kB", "52 MB"]);
  expect([listed([]), listed(["a"]), listed(["a", "b", "c"])]).toEqual(["", "a", "a, b and c"]);
});

test("failures are told from types as the server tells them", () => {
  expect(["llm.error", "a.failed", "error"].every(isFailure)).toBe(true);
  expect(["llm.errors", "failed.a", "a.undefeated"].some(isFailure)).toBe(false);
});

test("a line for any payload", () => {
  expect(summary({ prompt: "Why?\n  Because." })).toBe("Why? Because.");
  expect(summary({ title: "T", error_message: "No answer" })).toBe("No answer");
  expect(summary({ error: { code: "timeout", message: "No answer within 30 s." } })).toBe("No answer within 30 s.");
  expect(summary({ amount: 3, paid: false, nested: {}, items: [] })).toBe("amount: 3, paid: false");
  expect(summary({})).toBe("");
  expect(summary({ text: "x".repeat(1000) })).toHaveLength(160);
});

test("ids and beginnings of ids", () => {
  const id = "01A20922-4493-7000-8000-000000000000";
  expect([isId(id), isId(id.slice(0, -1)), isId(`${id} `)]).toEqual([true, false, false]);
  expect([idPrefix(" 01a2-0922 "), idPrefix("01a"), idPrefix("xyz1"), idPrefix(id)]).toEqual([
    "01a20922", null, null, "01a20922449370008000000000000000",
  ]);
});

test("a search leads to the event, to its beginning, or to the text", () => {
  const id = "01A20922-4493-7000-8000-000000000000";
  expect(addressOf(id)).toBe(`/e/${id.toLowerCase()}`);
  expect(addressOf("01a20922-4493")).toBe("/find?id=01a209224493");
  expect(addressOf("decade face")).toBe("/find?text=decade+face");
  expect(addressOf("deed")).toBe("/find?text=deed");
  expect(addressOf("a&b=c")).toBe("/find?text=a%26b%3Dc");
});

test("pages of addresses", () => {
  expect(["/", "/find", "/state", "/e/x", "/e/", "/e/a/b", "/docs"].map((path) => pageOf(path).name)).toEqual([
    "live", "find", "state", "event", "unknown", "unknown", "unknown",
  ]);
  expect(pageOf("/e/%E0%A4%A")).toEqual({ name: "event", id: "%E0%A4%A" });
});

test("the sparkline keeps within its picture", () => {
  expect(linePath([0, 10, 5])).toBe("M0,39 L120,2 L240,20.5");
  expect(linePath([0, 0])).toBe("M0,39 L240,39");
});
