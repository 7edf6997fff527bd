/** Events as they come: the list, what is said of it, and the types beside it. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { api, keyGiven } from "../../api/client";
import type { StreamState } from "../../api/stream";
import type { Stats } from "../../api/types";
import { Sparkline } from "../../app/Sparkline";
import { useLoad } from "../../app/parts";
import { go, place } from "../../app/router";
import { count, many, rate } from "../../app/words";
import { EmptyBus } from "./EmptyBus";
import { TypeTable } from "./TypeTable";
import { MOST_ROWS } from "./feed";
import { Screen, type Hold, type Told } from "./screen";
import "./live.css";

const STATS_SECONDS = 2;

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
            <dt>since this page opened</dt>
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
  const apply = (text: string) => {
    if ((text || "#") !== (place.value.query.get("type") || "#")) go(text === "" || text === "#" ? "/" : `/?${new URLSearchParams({ type: text })}`);
  };
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
          onChange={(event) => {
            // Enter changes the field before it submits the form, which must still be there then.
            const text = event.currentTarget.value.trim();
            setTimeout(() => apply(text));
          }}
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
