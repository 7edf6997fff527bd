import { describe, expect, test } from "vitest";

import { FrameReader, type Frame } from "../../src/api/sse";

const TEXT =
  ": heartbeat\n\n" +
  "event: hello\ndata: {\"resumed\": false}\n\n" +
  "id: A1\nevent: event\ndata: {\"a\": \"ü:\\n\"}\n\n" +
  "id: A2\nevent:event\ndata:first\ndata:  second\n\n" +
  "data\n\n" +
  "event: nothing\n\n" +
  "retry: 10\ndata: last\n\n";
const FRAMES: Frame[] = [
  { event: "hello", data: '{"resumed": false}', id: "" },
  { event: "event", data: '{"a": "ü:\\n"}', id: "A1" },
  { event: "event", data: "first\n second", id: "A2" },
  { event: "message", data: "", id: "A2" },
  { event: "message", data: "last", id: "A2" },
];

function read(pieces: string[]): Frame[] {
  const reader = new FrameReader();
  return pieces.flatMap((piece) => reader.push(piece));
}

describe("frames of a stream", () => {
  test("are read from one piece", () => {
    expect(read([TEXT])).toEqual(FRAMES);
  });

  test.each(["\n", "\r\n", "\r"])("are the same however it is cut, with lines ending in %j", (ending) => {
    // A line that ends in a lone carriage return is known to end when something follows.
    const text = TEXT.replaceAll("\n", ending) + (ending === "\r" ? ": end" : "");
    for (let at = 0; at <= text.length; at += 1) expect(read([text.slice(0, at), text.slice(at)])).toEqual(FRAMES);
    expect(read([...text])).toEqual(FRAMES);
  });

  test("wait until they are whole", () => {
    const reader = new FrameReader();
    expect(reader.push("data: half")).toEqual([]);
    expect(reader.push("\n")).toEqual([]);
    expect(reader.push("\n")).toEqual([{ event: "message", data: "half", id: "" }]);
  });

  test("an id with a null character is no id", () => {
    expect(read(["id: a\0b\ndata: x\n\n"])).toEqual([{ event: "message", data: "x", id: "" }]);
  });
});
