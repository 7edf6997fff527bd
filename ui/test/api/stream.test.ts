import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { keyWanted, useKey } from "../../src/api/client";
import { readStream, stateOf, type StreamState } from "../../src/api/stream";

interface Asked {
  url: string;
  headers: Headers;
}

/** Answers of a server, one a connection; after the last one the reader is stopped. */
function serve(answers: (Response | Error)[]): { asked: Asked[]; run(pattern?: string): Promise<{ texts: string[]; states: StreamState[] }> } {
  const asked: Asked[] = [];
  const stopping = new AbortController();
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    asked.push({ url, headers: new Headers(init.headers) });
    const answer = answers.shift();
    if (answer === undefined) {
      stopping.abort();
      throw new TypeError("no more");
    }
    if (answer instanceof Error) throw answer;
    return answer;
  });
  return {
    asked,
    async run(pattern = "#") {
      const texts: string[] = [];
      const states: StreamState[] = [];
      const done = readStream(
        pattern,
        { onEvents: (some) => texts.push(...some), onState: (state) => states.push(state) },
        stopping.signal,
      );
      await vi.runAllTimersAsync();
      await done;
      return { texts, states };
    },
  };
}

function stream(...pieces: string[]): Response {
  const encoder = new TextEncoder();
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(encoder.encode(piece));
      controller.close();
    },
  });
  return new Response(body, { status: 200, headers: { "Content-Type": "text/event-stream" } });
}

function problem(status: number, code: string, detail: string, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify({ code, detail, status }), { status, headers });
}

const HELLO = 'event: hello\ndata: {"resumed": false, "cursor": "C0"}\n\n';
const event = (cursor: string, text: string) => `id: ${cursor}\nevent: event\ndata: ${text}\n\n`;

beforeEach(() => {
  vi.useFakeTimers();
  sessionStorage.clear();
  keyWanted.value = null;
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("a connection that ends is followed by one that goes on after the last event", async () => {
  const server = serve([
    stream(HELLO, event("C1", "one"), event("C2", "two")),
    stream('event: hello\ndata: {"resumed": true, "cursor": "C2"}\n\n', event("C3", "three")),
  ]);
  const { texts, states } = await server.run();
  expect(texts).toEqual(["one", "two", "three"]);
  expect(server.asked.map(({ headers }) => headers.get("Last-Event-ID"))).toEqual([null, "C2", "C3"]);
  expect(states.map(({ kind }) => kind)).toEqual(["connecting", "open", "lost", "resumed", "lost"]);
});

test("a connection without an event goes on from the position that the server named", async () => {
  const server = serve([stream(HELLO), stream()]);
  await server.run();
  expect(server.asked.map(({ headers }) => headers.get("Last-Event-ID"))).toEqual([null, "C0", "C0"]);
});

test("after a gap it goes on from where the server says, also when no event came", async () => {
  const gap = 'id: C9\nevent: gap\ndata: {"after": "C1", "detail": "Another log."}\n\n';
  const server = serve([stream(HELLO, event("C1", "one")), stream(gap), stream()]);
  await server.run();
  expect(server.asked.map(({ headers }) => headers.get("Last-Event-ID"))).toEqual([null, "C1", "C9", "C9"]);
});

test("what does not fit is not read again: an id without an event moves on", async () => {
  const server = serve([stream(HELLO, event("C1", "one"), ": heartbeat\nid: C7\n\n"), stream()]);
  await server.run();
  expect(server.asked.map(({ headers }) => headers.get("Last-Event-ID"))).toEqual([null, "C7", "C7"]);
});

test("when the log answers again, the page no longer says that it does not", async () => {
  const trouble = 'event: trouble\ndata: {"code": "transport_unavailable", "detail": "Away."}\n\n';
  const again = 'event: hello\ndata: {"resumed": true, "cursor": "C1"}\n\n';
  const { states } = await serve([stream(HELLO, trouble, again)]).run();
  expect(states.map(({ kind }) => kind)).toEqual(["connecting", "open", "trouble", "resumed", "lost"]);
});

test.each([
  [1, 46],
  [60, 181],
])("with a heartbeat every %d s a silent connection is lost after %d s", async (heartbeat, seconds) => {
  const stopping = new AbortController();
  const states: string[] = [];
  vi.stubGlobal("fetch", async (_url: string, init: RequestInit) => {
    const body = new ReadableStream({
      start(controller) {
        controller.enqueue(new TextEncoder().encode(HELLO.replace("}", `, "heartbeat_seconds": ${heartbeat}}`)));
        init.signal!.addEventListener("abort", () => controller.error(new DOMException("Aborted.", "AbortError")));
      },
    });
    return new Response(body);
  });
  const done = readStream("#", { onEvents: () => undefined, onState: ({ kind }) => states.push(kind) }, stopping.signal);
  await vi.advanceTimersByTimeAsync((seconds - 2) * 1000);
  expect(states).toEqual(["connecting", "open"]);
  await vi.advanceTimersByTimeAsync(2000);
  expect(states[2]).toBe("lost");
  stopping.abort();
  await vi.runAllTimersAsync();
  await done;
});

test("a server that does not answer is asked again, and the page says so", async () => {
  const server = serve([new TypeError("refused"), stream(HELLO, event("C1", "one"))]);
  const { texts, states } = await server.run();
  expect(texts).toEqual(["one"]);
  expect(states[1]?.sentence).toContain("The server does not answer");
});

test("too many readers: the server's own words, and its own wait", async () => {
  const waited = vi.spyOn(globalThis, "setTimeout");
  const server = serve([problem(503, "too_many_streams", "64 streams are open.", { "Retry-After": "30" })]);
  const { states } = await server.run();
  expect(states[1]?.sentence).toContain("64 streams are open.");
  expect(waited.mock.calls.some(([, ms]) => ms === 30_000)).toBe(true);
});

test("a missing key is asked for, and the stream stops asking", async () => {
  const server = serve([problem(401, "key_required", "This server asks for an API key.")]);
  const { states } = await server.run();
  expect(server.asked).toHaveLength(1);
  expect(states.at(-1)).toEqual({ kind: "refused", sentence: "This server asks for an API key." });
  expect(keyWanted.value).toContain("Enter one that may read");
});

test("a wrong key is refused in the server's words", async () => {
  useKey("a-wrong-key");
  await serve([problem(401, "key_required", "The API key is wrong.")]).run();
  expect(keyWanted.value).toBe("The API key is wrong.");
});

test("the key of this tab is sent", async () => {
  useKey("a-key");
  const server = serve([stream(HELLO)]);
  await server.run();
  expect(server.asked[0]?.headers.get("Authorization")).toBe("Bearer a-key");
});

test("a key that no header can hold is refused in words, and another one is asked for", async () => {
  useKey("schlüssel-€");
  const server = serve([stream(HELLO)]);
  const { states } = await server.run();
  expect(server.asked).toHaveLength(0);
  expect(states.at(-1)?.kind).toBe("refused");
  expect(keyWanted.value).toContain("characters");
});

test("the pattern is sent, and all types are none", async () => {
  const some = serve([stream(HELLO)]);
  await some.run("llm.*");
  expect(some.asked[0]?.url).toBe("/events/stream?type=llm.*");
  const all = serve([stream(HELLO)]);
  await all.run("#");
  expect(all.asked[0]?.url).toBe("/events/stream");
});

test("letters that are cut between two pieces are whole again", async () => {
  const bytes = new TextEncoder().encode(event("C1", "Zürich"));
  const cut = bytes.indexOf(0xc3) + 1;
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(bytes.slice(0, cut));
      controller.enqueue(bytes.slice(cut));
      controller.close();
    },
  });
  const { texts } = await serve([new Response(body)]).run();
  expect(texts).toEqual(["Zürich"]);
});

test.each([
  ["behind", { missed_from: "C1", reason: "Read slowly." }, "behind", "Read slowly."],
  ["gap", { after: "C1", detail: "They are past the retention." }, "gap", "no longer in the log"],
  ["trouble", { code: "transport_unavailable", detail: "The broker is away." }, "trouble", "The broker is away."],
])("%s is told in words", (name, said, kind, part) => {
  const state = stateOf(name, said);
  expect(state.kind).toBe(kind);
  expect(state.sentence).toContain(part);
});
