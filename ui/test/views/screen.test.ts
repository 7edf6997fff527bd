import { afterEach, beforeEach, expect, test, vi } from "vitest";

import type { Envelope } from "../../src/api/types";
import { Screen } from "../../src/views/live/screen";

const HELLO = 'event: hello\ndata: {"resumed": false, "cursor": "C0"}\n\n';

/** The server: a stream that is written by hand, and the page of what was before. */
let write: (text: string) => void;
let answer: (items: Envelope[]) => void;
let list: HTMLOListElement;
let screen: Screen;

function envelope(number: number): Envelope {
  return {
    event_id: `01a20922-4493-7000-8000-${String(number).padStart(12, "0")}`,
    event_type: "memo.filed",
    timestamp: "2026-03-02T09:00:00Z",
    version: "2.0.0",
    source: { host: "h", type: "manual" },
    correlation_ids: [],
    payload: {},
  };
}

const frame = (number: number) => `id: C${number}\nevent: event\ndata: ${JSON.stringify(envelope(number))}\n\n`;
const newestFirst = (...numbers: number[]) => numbers.map(envelope);
const shown = () => Array.from(list.querySelectorAll("a")).map((link) => Number(link.getAttribute("href")!.slice(-12)));

async function settled(): Promise<void> {
  await vi.advanceTimersByTimeAsync(600);
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("fetch", (url: string) => {
    if (!url.startsWith("/events/stream")) {
      return new Promise((resolve) => {
        answer = (items) => resolve(new Response(JSON.stringify({ items, next: null })));
      });
    }
    const body = new ReadableStream({
      start(controller) {
        write = (text) => controller.enqueue(new TextEncoder().encode(text));
        write(HELLO);
      },
    });
    return Promise.resolve(new Response(body));
  });
  list = document.createElement("ol");
  document.body.append(list);
  const quiet = () => undefined;
  screen = new Screen(list, "#", { setState: quiet, setTold: quiet, setNews: quiet, setEmpty: quiet });
});

afterEach(() => {
  screen.close();
  list.remove();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("an event that the log told of before the stream is shown once, however long the page was paused", async () => {
  await settled();
  answer(newestFirst(2, 1));
  await settled();
  screen.pause(true);
  write(frame(2) + frame(3));
  await vi.advanceTimersByTimeAsync(60_000);
  screen.pause(false);
  await settled();
  expect(shown()).toEqual([3, 2, 1]);
});

test("what came by the stream and was too much to be written at once is not shown again from the log", async () => {
  await settled();
  const numbers = Array.from({ length: 100 }, (_, index) => index + 1);
  write(numbers.map(frame).join(""));
  await vi.advanceTimersByTimeAsync(50);
  answer(newestFirst(...numbers.slice(-50).reverse()));
  await vi.advanceTimersByTimeAsync(5000);
  expect(shown()).toEqual(numbers.reverse());
});

test("what was before is asked for again when the first answer failed and the server says that all is well", async () => {
  await settled();
  answer(null as unknown as Envelope[]);
  await settled();
  write(HELLO);
  await settled();
  answer(newestFirst(2, 1));
  await settled();
  expect(shown()).toEqual([2, 1]);
});
