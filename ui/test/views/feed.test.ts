import { expect, test } from "vitest";

import { Feed } from "../../src/views/live/feed";

const texts = (first: number, count: number) => Array.from({ length: count }, (_, index) => String(first + index));

test("every event is counted, the newest are kept in order", () => {
  const feed = new Feed(5);
  feed.push(texts(0, 3), 1000);
  feed.push(texts(3, 4), 1001);
  expect([feed.received, feed.waiting]).toEqual([7, 7]);
  expect(feed.take()).toEqual(["2", "3", "4", "5", "6"]);
  expect([feed.received, feed.waiting]).toEqual([7, 0]);
  feed.push(texts(7, 12), 1002);
  expect(feed.waiting).toBe(12);
  expect(feed.take()).toEqual(["14", "15", "16", "17", "18"]);
  expect(feed.take()).toEqual([]);
});

test("seconds are counted apart, for a minute", () => {
  const feed = new Feed();
  feed.push(texts(0, 2), 100_000);
  feed.push(texts(0, 3), 100_999);
  feed.push(texts(0, 1), 101_000);
  feed.push(texts(0, 7), 103_500);
  expect(feed.perSecond(103_900).slice(-4)).toEqual([5, 1, 0, 7]);
  expect(feed.perSecond(103_900)).toHaveLength(60);
  expect(feed.perSecond(162_999)[0]).toBe(7);
  expect(feed.perSecond(162_999).slice(1).every((count) => count === 0)).toBe(true);
  expect(feed.perSecond(170_000).every((count) => count === 0)).toBe(true);
});

test("a clock that is set back counts on in the second that it knows", () => {
  const feed = new Feed();
  feed.push(texts(0, 2), 100_000);
  feed.push(texts(0, 3), 90_000);
  expect(feed.perSecond(100_000).at(-1)).toBe(5);
});

test("what the server counted before the page came is remembered, and not counted twice", () => {
  const feed = new Feed();
  feed.push(texts(0, 4), 100_500);
  // The server tells whole seconds only, so the last one is the second before this one.
  feed.remember([...new Array<number>(57).fill(0), 9, 8, 3], 100_600);
  expect(feed.perSecond(100_700).slice(-4)).toEqual([9, 8, 3, 4]);
  feed.push(texts(4, 2), 100_800);
  expect(feed.perSecond(101_100).slice(-3)).toEqual([3, 6, 0]);
  expect(feed.received).toBe(6);
});
