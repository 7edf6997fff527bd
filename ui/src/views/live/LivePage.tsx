/**
 * Events as they come.
 *
 * The stream is read as text and counted; what is shown of it is parsed once a frame, and at high rates less often. No
 * event by itself changes the page.
 */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { api, keyGiven } from "../../api/client";
import { readStream, type StreamState } from "../../api/stream";
import type { Envelope, Stats } from "../../api/types";
import { Sparkline } from "../../app/Sparkline";
import { useLoad } from "../../app/parts";
import { go, place } from "../../app/router";
import { count, many, rate } from "../../app/words";
import { EmptyBus } from "./EmptyBus";
import { TypeTable } from "./TypeTable";
import { Feed, MOST_ROWS } from "./feed";
import { Rows } from "./rows";

const STATS_SECONDS = 2;
/** Above this rate rows change too quickly to be read one by one: the page is written less often. */
const CALM_EVENTS_A_SECOND = 50;
const CALM_PAUSE_MS = 150;
/** How many rows there are, at such a rate, below those that are seen: enough to scroll down, which holds the list. */
const SPARE_ROWS = 8;
const ROW_PX = 31;
/** How long an event that was in the log already may take to come by the stream too. */
const TWICE_WITHIN_MS = 10_000;
/** Above this rate a row would move away from under the pointer. */
const POINTABLE_EVENTS_A_SECOND = 3;
const TOLD_EVERY_MS = 10_000;

/** What the page says of the stream; written at most four times a second. */
interface Told {
  received: number;
  waiting: number;
  perSecond: number[];
  hold: Hold;
}

type Hold = "none" | "paused" | "scrolled" | "pointer" | "focus";

const WHY_HELD: Record<Hold, string> = {
  none: "",
  paused: "Paused.",
  scrolled: "Held while you are further down.",
  pointer: "Held while you point at it.",
  focus: "Held while you walk through it.",
};

export function LivePage(): JSX.Element {
  const pattern = place.value.query.get("type") || "#";
  const stats = useLoad("stats", api.stats, STATS_SECONDS);
  return (
    <div class="live">
      <h1 class="visually-hidden">Live events</h1>
      <Stream key={`${pattern} ${keyGiven.value}`} pattern={pattern} stats={stats.value} />
      <aside class="live-side" aria-label="Event types">
        <TypeTable stats={stats.value} error={stats.error} pattern={pattern} />
      </aside>
    </div>
  );
}

function Stream({ pattern, stats }: { pattern: string; stats: Stats | null }): JSX.Element {
  const list = useRef<HTMLOListElement>(null);
  const screen = useRef<Screen>(undefined);
  const [state, setState] = useState<StreamState>({ kind: "connecting", sentence: "Connecting…" });
  const [told, setTold] = useState<Told>({ received: 0, waiting: 0, perSecond: [], hold: "none" });
  const [isPaused, setPaused] = useState(false);
  const [news, setNews] = useState("");
  const [isEmpty, setEmpty] = useState(false);
  useEffect(() => {
    if (list.current === null) return;
    const running = new Screen(list.current, pattern, { setState, setTold, setNews, setEmpty });
    screen.current = running;
    return () => running.close();
  }, [pattern]);
  const wholeBus = pattern === "#";
  const seeded = useRef(false);
  useEffect(() => {
    if (stats === null || seeded.current || !wholeBus) return;
    seeded.current = true;
    screen.current?.remember(stats.per_second);
  }, [stats, wholeBus]);
  const pause = (wanted: boolean) => {
    setPaused(wanted);
    screen.current?.pause(wanted);
  };
  const whole = told.perSecond.slice(0, -1);
  const lastSecond = whole.at(-1) ?? 0;
  const lastMinute = whole.reduce((sum, number) => sum + number, 0) / 60;
  const label = `${rate(lastSecond)} events in the last second, ${rate(lastMinute)} a second in the last minute`;
  return (
    <section class="live-main" aria-label="Events as they come">
      <div class="live-bar">
        <Pattern pattern={pattern} types={stats?.types.map((type) => type.event_type) ?? []} />
        <button type="button" class="pause" aria-pressed={isPaused} onClick={() => pause(!isPaused)}>
          {isPaused ? "Go on" : "Pause"}
        </button>
        <p class={`stream-state stream-${state.kind}`} role="status">
          {state.sentence}
        </p>
      </div>
      <div class="live-rate">
        <Sparkline counts={whole.length > 0 ? whole : new Array<number>(59).fill(0)} label={label} />
        <dl>
          <div>
            <dt>last second</dt>
            <dd>{rate(lastSecond)}</dd>
          </div>
          <div>
            <dt>a second, last minute</dt>
            <dd>{rate(lastMinute)}</dd>
          </div>
          <div>
            <dt>received here</dt>
            <dd>{count(told.received)}</dd>
          </div>
        </dl>
      </div>
      <Held told={told} onShow={() => (pause(false), screen.current?.toTop())} />
      {isEmpty ? wholeBus ? <EmptyBus /> : <NoneOfPattern pattern={pattern} /> : null}
      <ol
        ref={list}
        class={isEmpty ? "rows rows-empty" : "rows"}
        aria-label="Events, newest first"
        data-received="0"
        onKeyDown={(event) => {
          if (screen.current?.key(event)) event.preventDefault();
        }}
      />
      <p class="visually-hidden" aria-live="polite">
        {news}
      </p>
    </section>
  );
}

function Held({ told, onShow }: { told: Told; onShow(): void }): JSX.Element | null {
  if (told.hold === "none" || (told.waiting === 0 && told.hold !== "paused")) return null;
  return (
    <p class="held">
      <span>{WHY_HELD[told.hold]}</span>{" "}
      <span class="held-count">{told.waiting === 0 ? "Nothing new waits." : `${many(told.waiting, "new event")} wait${told.waiting === 1 ? "s" : ""}.`}</span>{" "}
      {told.waiting > MOST_ROWS ? (
        <span>
          The newest {MOST_ROWS} will be shown; <a href="/find">Find</a> has the rest.
        </span>
      ) : null}
      <button type="button" onClick={onShow}>
        Show
      </button>
    </p>
  );
}

function NoneOfPattern({ pattern }: { pattern: string }): JSX.Element {
  return (
    <div class="empty">
      <h2>
        No event of <code>{pattern}</code> yet
      </h2>
      <p>
        The page shows them as they come. In a pattern <code>*</code> stands for one word and <code>#</code> for any
        number: <code>llm.*</code>, <code>#.failed</code>. <a href="/">Show all types</a>
      </p>
    </div>
  );
}

function Pattern({ pattern, types }: { pattern: string; types: string[] }): JSX.Element {
  const apply = (text: string) => go(text === "" || text === "#" ? "/" : `/?${new URLSearchParams({ type: text })}`);
  return (
    <form
      class="pattern"
      onSubmit={(event) => {
        event.preventDefault();
        const field = (event.currentTarget as HTMLFormElement).elements.namedItem("type") as HTMLInputElement;
        apply(field.value.trim());
      }}
    >
      <label>
        Types{" "}
        <input
          name="type"
          type="search"
          list="types"
          defaultValue={pattern === "#" ? "" : pattern}
          placeholder="all, or a pattern: llm.*"
          autocomplete="off"
          spellcheck={false}
          onChange={(event) => apply(event.currentTarget.value.trim())}
        />
      </label>
      <datalist id="types">
        <option value="#.failed" />
        {types.map((type) => (
          <option key={type} value={type} />
        ))}
      </datalist>
    </form>
  );
}

interface Hearing {
  setState(state: StreamState): void;
  setTold(told: Told): void;
  setNews(sentence: string): void;
  setEmpty(isEmpty: boolean): void;
}

/** The list in the page, and the stream that fills it. It lives as long as the pattern stays. */
class Screen {
  readonly #list: HTMLElement;
  readonly #rows: Rows;
  readonly #feed = new Feed();
  readonly #hearing: Hearing;
  readonly #stopping = new AbortController();
  readonly #known = new Set<string>();
  /** What the rows show or would show, oldest first; parsed when it is written into a row. */
  readonly #kept: (string | Envelope)[] = [];
  #isPaused = false;
  #isPointed = false;
  #isAsking = false;
  #isFilled = false;
  #isScheduled = false;
  #writtenAt = 0;
  #newsFailed = 0;
  #newsReceived = 0;

  constructor(list: HTMLElement, pattern: string, hearing: Hearing) {
    this.#list = list;
    this.#hearing = hearing;
    this.#rows = new Rows(list);
    this.#rows.clear();
    const signal = this.#stopping.signal;
    list.addEventListener("pointerenter", (event) => (this.#isPointed = event.pointerType === "mouse"), { signal });
    list.addEventListener("pointerleave", () => ((this.#isPointed = false), this.#schedule()), { signal });
    list.addEventListener("scroll", () => this.#schedule(), { signal, passive: true });
    list.addEventListener("focusout", () => this.#schedule(), { signal });
    const telling = setInterval(() => this.#tell(), 500);
    const news = setInterval(() => this.#announce(), TOLD_EVERY_MS);
    signal.addEventListener("abort", () => (clearInterval(telling), clearInterval(news)));
    void readStream(
      pattern,
      {
        onEvents: (texts) => {
          this.#feed.push(texts, Date.now());
          this.#schedule();
        },
        onState: (state) => {
          hearing.setState(state);
          // From here on nothing is missed: what was before is asked for once.
          if (state.kind === "open" && !this.#isAsking) void this.#fill(pattern);
        },
      },
      signal,
    );
  }

  close(): void {
    this.#stopping.abort();
  }

  pause(wanted: boolean): void {
    this.#isPaused = wanted;
    this.#schedule();
    this.#tell();
  }

  toTop(): void {
    this.#list.scrollTop = 0;
    if (document.activeElement instanceof HTMLElement && this.#list.contains(document.activeElement)) document.activeElement.blur();
    this.#isPointed = false;
    this.#schedule();
  }

  remember(perSecond: number[]): void {
    this.#feed.remember(perSecond, Date.now());
    this.#tell();
  }

  key(event: KeyboardEvent): boolean {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -MOST_ROWS, End: MOST_ROWS }[event.key];
    if (event.key === "Escape") {
      this.toTop();
      return true;
    }
    return by !== undefined && this.#rows.move(document.activeElement, by);
  }

  /** Show what was before the stream began, below what has come since. */
  async #fill(pattern: string): Promise<void> {
    this.#isAsking = true;
    try {
      const page = await api.events({ type: pattern === "#" ? null : pattern, limit: 50 }, this.#stopping.signal);
      this.#write();
      const older = page.items.filter((envelope) => !this.#rows.has(envelope.event_id)).slice(0, MOST_ROWS - this.#kept.length);
      // The log may tell of an event before the stream does.
      for (const envelope of older) this.#known.add(envelope.event_id);
      setTimeout(() => this.#known.clear(), TWICE_WITHIN_MS);
      this.#kept.unshift(...older.reverse());
      this.#fillBelow();
    } catch (error) {
      if (this.#stopping.signal.aborted) return;
      const why = error instanceof Error ? error.message : String(error);
      this.#hearing.setState({ kind: "trouble", sentence: `Connected. What was before cannot be shown: ${why}` });
    }
    this.#isFilled = true;
    this.#tell();
  }

  get #hold(): Hold {
    if (this.#isPaused) return "paused";
    if (this.#list.scrollTop > 4) return "scrolled";
    if (this.#list.contains(document.activeElement)) return "focus";
    if (this.#isPointed && this.#perSecond() > POINTABLE_EVENTS_A_SECOND) return "pointer";
    return "none";
  }

  get #isBusy(): boolean {
    return this.#perSecond() > CALM_EVENTS_A_SECOND;
  }

  #perSecond(): number {
    const [before = 0, now = 0] = this.#feed.perSecond(Date.now()).slice(-2);
    return Math.max(before, now);
  }

  #schedule(): void {
    if (this.#isScheduled || this.#stopping.signal.aborted) return;
    this.#isScheduled = true;
    const since = performance.now() - this.#writtenAt;
    const calm = this.#isBusy && since < CALM_PAUSE_MS;
    const frame = () => requestAnimationFrame(() => this.#frame());
    if (calm) setTimeout(frame, CALM_PAUSE_MS - since);
    else frame();
  }

  #frame(): void {
    this.#isScheduled = false;
    if (this.#stopping.signal.aborted) return;
    this.#list.dataset["received"] = String(this.#feed.received);
    if (this.#hold !== "none") this.#fillBelow();
    else if (this.#feed.waiting > 0) this.#write();
  }

  #write(): void {
    let fresh: (string | Envelope)[] = this.#feed.take();
    if (this.#known.size > 0) fresh = fresh.map(parsed).filter(({ event_id: id }) => !this.#known.delete(id));
    if (fresh.length === 0) return;
    this.#kept.push(...fresh);
    this.#kept.splice(0, this.#kept.length - MOST_ROWS);
    const limit = this.#isBusy ? Math.min(MOST_ROWS, Math.ceil(this.#list.clientHeight / ROW_PX) + SPARE_ROWS) : MOST_ROWS;
    const shown = fresh.slice(-limit).map(parsed);
    const wasEmpty = this.#rows.length === 0;
    this.#newsFailed += this.#rows.add(shown, limit);
    this.#writtenAt = performance.now();
    if (wasEmpty) this.#tell();
  }

  /** Write the rows below those that are there: what was left out at a high rate, and what was before. */
  #fillBelow(): void {
    const missing = this.#kept.length - this.#rows.length;
    if (missing > 0) this.#rows.addOlder(this.#kept.slice(0, missing).reverse().map(parsed));
  }

  #tell(): void {
    if (document.visibilityState === "hidden") return;
    if (!this.#isBusy || this.#hold !== "none") this.#fillBelow();
    this.#list.dataset["received"] = String(this.#feed.received);
    this.#hearing.setEmpty(this.#isFilled && this.#rows.length === 0 && this.#feed.waiting === 0);
    this.#hearing.setTold({
      received: this.#feed.received,
      waiting: this.#feed.waiting,
      perSecond: this.#feed.perSecond(Date.now()),
      hold: this.#hold,
    });
  }

  #announce(): void {
    const fresh = this.#feed.received - this.#newsReceived;
    this.#newsReceived = this.#feed.received;
    const failed = this.#newsFailed === 0 ? "" : `, ${many(this.#newsFailed, "failure")} among those shown`;
    this.#newsFailed = 0;
    this.#hearing.setNews(fresh === 0 ? "" : `${many(fresh, "new event")} in ten seconds${failed}.`);
  }
}

function parsed(event: string | Envelope): Envelope {
  return typeof event === "string" ? (JSON.parse(event) as Envelope) : event;
}
