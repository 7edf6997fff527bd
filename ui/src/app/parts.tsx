/** Small pieces that several pages are made of. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { ApiError, key, keyGiven, keyWanted } from "../api/client";
import { ago, isFailure, longTime, shortId, shortTime } from "./words";

export interface Loaded<Value> {
  value: Value | null;
  error: Error | null;
  /** Whether an answer is on its way. */
  busy: boolean;
  reload(): void;
}

/**
 * Ask when the page appears, when `subject` changes, when an API key was given, and each `everySeconds` while the page
 * is seen. The last answer stays until there is another; a new `subject` forgets it.
 */
export function useLoad<Value>(
  subject: string,
  load: (signal: AbortSignal) => Promise<Value>,
  everySeconds: number | null = null,
): Loaded<Value> {
  const [state, setState] = useState<{ subject: string; value: Value | null; error: Error | null; busy: boolean }>({
    subject,
    value: null,
    error: null,
    busy: true,
  });
  const [round, setRound] = useState(0);
  const given = keyGiven.value;
  useEffect(() => {
    const controller = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const ask = async () => {
      setState((before) => ({ ...before, busy: true, ...(before.subject === subject ? {} : { subject, value: null, error: null }) }));
      try {
        const value = await load(controller.signal);
        if (!controller.signal.aborted) setState({ subject, value, error: null, busy: false });
      } catch (error) {
        if (controller.signal.aborted) return;
        const told = error instanceof Error ? error : new Error(String(error));
        setState((before) => ({ ...before, subject, error: told, busy: false }));
        // A key that is missing does not come by asking again.
        if (told instanceof ApiError && (told.status === 401 || told.status === 403)) return;
      }
      if (everySeconds !== null && !controller.signal.aborted) timer = setTimeout(again, everySeconds * 1000);
    };
    // A page that nobody sees asks nothing.
    const again = () => {
      if (document.visibilityState === "visible") void ask();
      else document.addEventListener("visibilitychange", again, { once: true, signal: controller.signal });
    };
    void ask();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [subject, given, round, everySeconds]);
  const current = state.subject === subject;
  return {
    value: current ? state.value : null,
    error: current ? state.error : null,
    busy: !current || state.busy,
    reload: () => setRound((number) => number + 1),
  };
}

/** A failure in the server's words, and what one can do about it. */
export function Trouble({ error, retry, title }: { error: Error; retry?: (() => void) | undefined; title?: string }): JSX.Element {
  const wantsKey = error instanceof ApiError && (error.status === 401 || error.code === "insufficient_scope");
  return (
    <div class="notice notice-bad" role="alert">
      {title === undefined ? null : <strong>{title} </strong>}
      <span>{error.message}</span>
      <span class="notice-actions">
        {wantsKey ? (
          <button type="button" onClick={() => (keyWanted.value = key() === null ? "Enter one that may do this." : error.message)}>
            {key() === null ? "Enter a key" : "Use another key"}
          </button>
        ) : retry === undefined ? null : (
          <button type="button" onClick={retry}>
            Try again
          </button>
        )}
      </span>
    </div>
  );
}

/** A time: of day, with how long ago, or in full. */
export function When({ time, form = "short" }: { time: string; form?: "short" | "ago" | "long" }): JSX.Element {
  const date = new Date(time);
  const now = new Date();
  const text = form === "ago" ? ago(date, now) : form === "long" ? longTime(date) : shortTime(date, now);
  return (
    <time dateTime={time} title={`${longTime(date)}, ${ago(date, now)}`}>
      {text}
    </time>
  );
}

/** A button that copies a text and says that it did. */
export function Copy({ text, label }: { text: string | (() => string); label: string }): JSX.Element {
  const [said, setSaid] = useState<string | null>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    setSaid((await toClipboard(typeof text === "string" ? text : text())) ? "Copied" : "Not allowed");
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setSaid(null), 2000);
  };
  return (
    <button type="button" class="quiet" onClick={() => void copy()}>
      <span aria-live="polite">{said ?? label}</span>
    </button>
  );
}

async function toClipboard(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, on another machine than this one, browsers keep the clipboard away; this older way is still open.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** What an event is, on one line: type, time, who made it. A failure has the word, not the colour alone. */
export function EventLine({
  id,
  type,
  time,
  source,
  failed,
  note,
}: {
  id: string;
  type: string | null;
  time: string | null;
  source: string | null;
  failed?: boolean;
  note?: ComponentChildren;
}): JSX.Element {
  const isFailed = failed ?? (type !== null && isFailure(type));
  return (
    <a class={isFailed ? "event-line failed" : "event-line"} href={`/e/${id}`}>
      <span class="event-type">{type ?? "unknown event"}</span>
      {isFailed ? <FailedMark type={type} /> : null}
      {note === undefined ? null : <span class="event-note">{note}</span>}
      <span class="event-meta">
        {source === null ? null : <span>{source}</span>}
        {time === null ? null : <When time={time} />}
        <code>{shortId(id)}</code>
      </span>
    </a>
  );
}

/** The word for a failure, where the type does not end in it. */
export function FailedMark({ type }: { type: string | null }): JSX.Element {
  return <span class="mark-failed">{type?.endsWith("error") ? "error" : "failed"}</span>;
}
