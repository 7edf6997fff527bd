/** The stream of events: one connection after another, each going on where the one before it ended. */

import { ApiError, address, request } from "./client";
import { FrameReader, type Frame } from "./sse";

/** How the connection is, in a word for the page and a sentence for people. */
export interface StreamState {
  kind: "connecting" | "open" | "resumed" | "behind" | "gap" | "trouble" | "lost" | "refused";
  sentence: string;
}

export interface StreamListener {
  /** Envelopes as JSON text, in the order of the log; not parsed, since most are never looked at. */
  onEvents(texts: string[]): void;
  onState(state: StreamState): void;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
/** Until the server has said how often it speaks: three heartbeats of the default. */
const SILENCE_MS = 45_000;
/** A connection that says nothing for so many heartbeats is taken for dead. */
const SILENT_HEARTBEATS = 3;

/** Read until the signal aborts, connecting again whenever a connection ends. Never rejects. */
export async function readStream(pattern: string, listener: StreamListener, signal: AbortSignal): Promise<void> {
  const position = { cursor: null as string | null };
  let failures = 0;
  listener.onState({ kind: "connecting", sentence: "Connecting…" });
  while (!signal.aborted) {
    let waitMs = 0;
    try {
      await readConnection(pattern, position, listener, signal, () => (failures = 0));
      if (signal.aborted) return;
      listener.onState({ kind: "lost", sentence: "The server ended the connection. Connecting again…" });
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && (error.status === 401 || error.status === 403 || error.status === 400)) {
        // A new key or another pattern begins anew.
        listener.onState({ kind: "refused", sentence: error.message });
        return;
      }
      if (error instanceof ApiError && error.retryAfterSeconds !== null) waitMs = error.retryAfterSeconds * 1000;
      const why = error instanceof ApiError ? error.message : "The connection was lost.";
      listener.onState({ kind: "lost", sentence: `${why} Trying again; nothing is missed that the log keeps.` });
    }
    // Several pages that lost the same server do not come back at the same moment.
    waitMs = Math.max(waitMs, Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** failures) * (0.75 + Math.random() / 2));
    failures += 1;
    await pause(waitMs, signal);
  }
}

async function readConnection(
  pattern: string,
  position: { cursor: string | null },
  listener: StreamListener,
  signal: AbortSignal,
  onOpen: () => void,
): Promise<void> {
  const connection = new AbortController();
  const stop = () => connection.abort();
  signal.addEventListener("abort", stop);
  let silenceMs = SILENCE_MS;
  let watchdog = setTimeout(stop, silenceMs);
  const onHello = (heartbeatSeconds: unknown) => {
    onOpen();
    if (typeof heartbeatSeconds === "number") silenceMs = Math.max(SILENCE_MS, SILENT_HEARTBEATS * 1000 * heartbeatSeconds);
  };
  try {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (position.cursor !== null) headers["Last-Event-ID"] = position.cursor;
    const type = pattern === "#" ? null : pattern;
    const response = await request(address("/events/stream", { type }), { headers, signal: connection.signal });
    if (response.body === null) throw new ApiError(0, "no_body", "The server answered without a stream.");
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const frames = new FrameReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      handle(frames.push(decoder.decode(value, { stream: true })), position, listener, onHello);
      // A gap, and a heartbeat behind what does not fit, move on as well as events do.
      if (frames.id !== "") position.cursor = frames.id;
      clearTimeout(watchdog);
      watchdog = setTimeout(stop, silenceMs);
    }
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", stop);
    connection.abort();
  }
}

function handle(
  frames: Frame[],
  position: { cursor: string | null },
  listener: StreamListener,
  onHello: (heartbeatSeconds: unknown) => void,
): void {
  let texts: string[] = [];
  const hand = () => {
    if (texts.length > 0) listener.onEvents(texts);
    texts = [];
  };
  for (const frame of frames) {
    if (frame.event === "event") {
      texts.push(frame.data);
      position.cursor = frame.id;
      continue;
    }
    hand();
    const said = JSON.parse(frame.data) as Record<string, unknown>;
    if (frame.event === "hello") {
      onHello(said["heartbeat_seconds"]);
      const resumed = said["resumed"] === true;
      if (position.cursor === null && typeof said["cursor"] === "string") position.cursor = said["cursor"];
      listener.onState(
        resumed
          ? { kind: "resumed", sentence: "Connected again; it goes on where it stopped." }
          : { kind: "open", sentence: "Connected." },
      );
    } else {
      listener.onState(stateOf(frame.event, said));
    }
  }
  hand();
}

/** Return what a frame that is no event says of the stream. */
export function stateOf(event: string, said: Record<string, unknown>): StreamState {
  const detail = [said["reason"], said["detail"]].find((text) => typeof text === "string");
  switch (event) {
    case "behind":
      return { kind: "behind", sentence: `Behind: this page reads slower than events come. It catches up from the log.${tail(detail)}` };
    case "gap":
      return { kind: "gap", sentence: `Gap: some events are no longer in the log, so they are missing here.${tail(detail)}` };
    case "trouble":
      return { kind: "trouble", sentence: `The server cannot read the log now; it goes on when it can.${tail(detail)}` };
    default:
      return { kind: "open", sentence: "Connected." };
  }
}

function tail(detail: unknown): string {
  return typeof detail === "string" && detail !== "" ? ` ${detail}` : "";
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}
