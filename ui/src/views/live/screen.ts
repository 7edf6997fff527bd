/**
 * The list in the page, and the stream that fills it.
 *
 * The stream is read as text and counted; what is shown of it is parsed once a frame, and at high rates less often. No
 * event by itself changes the page.
 */

import { api } from "../../api/client";
import { readStream, type StreamState } from "../../api/stream";
import type { Envelope } from "../../api/types";
import { many } from "../../app/words";
import { Feed, MOST_ROWS } from "./feed";
import { Rows } from "./rows";

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
export interface Told {
  received: number;
  waiting: number;
  perSecond: number[];
  hold: Hold;
}

/** Why the list does not move. */
export type Hold = "none" | "paused" | "scrolled" | "pointer" | "focus";

/** Who is told what changes. */
export interface Hearing {
  setState(state: StreamState): void;
  setTold(told: Told): void;
  setNews(sentence: string): void;
  setEmpty(isEmpty: boolean): void;
}

/** It lives as long as the pattern stays. */
export class Screen {
  readonly #list: HTMLElement;
  readonly #rows: Rows;
  readonly #feed = new Feed();
  readonly #hearing: Hearing;
  readonly #stopping = new AbortController();
  readonly #known = new Set<string>();
  #knownUntil = 0;
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
          if ((state.kind === "open" || state.kind === "resumed") && !this.#isAsking && !this.#isFilled) void this.#fill(pattern);
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
      const here = new Set(this.#kept.map((event) => parsed(event).event_id));
      const older = page.items.filter((envelope) => !here.has(envelope.event_id)).slice(0, MOST_ROWS - this.#kept.length);
      // The log may tell of an event before the stream does.
      for (const envelope of older) this.#known.add(envelope.event_id);
      this.#knownUntil = Date.now() + TWICE_WITHIN_MS;
      this.#kept.unshift(...older.reverse());
      this.#isFilled = true;
      this.#fillBelow();
    } catch (error) {
      if (this.#stopping.signal.aborted) return;
      const why = error instanceof Error ? error.message : String(error);
      this.#hearing.setState({ kind: "trouble", sentence: `Connected. What was before cannot be shown: ${why}` });
    } finally {
      this.#isAsking = false;
    }
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
    // Not by a clock of its own: what is held back now may have come in time.
    if (Date.now() >= this.#knownUntil) this.#known.clear();
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
