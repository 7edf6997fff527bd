/** Events by what they say, by the beginning of an id, by type, source and time; newest first. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";

import { address, api, keyGiven } from "../../api/client";
import type { Envelope } from "../../api/types";
import { EventLine, Trouble } from "../../app/parts";
import { go, place } from "../../app/router";
import { count, maker, many, summary } from "../../app/words";
import { Relation } from "./Relation";
import { FIELDS, askedFor, pageQuery, serverQuery, type Asked } from "./query";
import "./find.css";

const PAGE = 50;
const MOST_CHOSEN = 16;

export function FindPage(): JSX.Element {
  const asked = askedFor(place.value.query);
  const query = pageQuery(asked);
  return (
    <div class="page find">
      <h1>Find</h1>
      <Form key={query} asked={asked} />
      <Results key={`${query} ${keyGiven.value}`} asked={asked} />
    </div>
  );
}

function Form({ asked }: { asked: Asked }): JSX.Element {
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const fields = (event.currentTarget as HTMLFormElement).elements;
    const value = (name: string) => (fields.namedItem(name) as HTMLInputElement).value.trim();
    const next = Object.fromEntries(FIELDS.map(({ name }) => [name, value(name)])) as unknown as Asked;
    go(address("/find", Object.fromEntries(new URLSearchParams(pageQuery(next)))));
  };
  return (
    <form class="find-form" onSubmit={submit}>
      {FIELDS.map(({ name, label, hint, isTime, wide }) => (
        <label key={name} class={wide ? "wide" : undefined}>
          {label}
          {isTime ? (
            <input name={name} type="datetime-local" step={1} defaultValue={asked[name]} />
          ) : (
            <input name={name} type="text" defaultValue={asked[name]} placeholder={hint} autocomplete="off" spellcheck={false} />
          )}
        </label>
      ))}
      <div class="buttons">
        <button type="submit" class="primary">
          Find
        </button>
        {pageQuery(asked) === "" ? null : <a href="/find">Clear</a>}
      </div>
    </form>
  );
}

interface Found {
  items: Envelope[];
  next: string | null;
  searched: number;
  counted: boolean;
  busy: boolean;
  error: Error | null;
}

const NOTHING: Found = { items: [], next: null, searched: 0, counted: false, busy: true, error: null };

function Results({ asked }: { asked: Asked }): JSX.Element {
  const [found, setFound] = useState<Found>(NOTHING);
  const [chosen, setChosen] = useState<string[]>([]);
  const [controller] = useState(() => new AbortController());
  const more = async (cursor: string | null) => {
    setFound((before) => ({ ...before, busy: true, error: null }));
    try {
      const page = await api.events({ ...serverQuery(asked), cursor, limit: PAGE }, controller.signal);
      setFound((before) => ({
        items: [...before.items, ...page.items],
        next: page.next,
        searched: before.searched + (page.searched ?? 0),
        counted: before.counted || page.searched !== undefined,
        busy: false,
        error: null,
      }));
    } catch (error) {
      if (controller.signal.aborted) return;
      setFound((before) => ({ ...before, busy: false, error: error instanceof Error ? error : new Error(String(error)) }));
    }
  };
  useEffect(() => {
    void more(null);
    return () => controller.abort();
  }, []);
  const choose = (id: string, wanted: boolean) =>
    setChosen((before) => (wanted ? [...before, id].slice(-MOST_CHOSEN) : before.filter((each) => each !== id)));
  return (
    <section aria-label="Results" aria-busy={found.busy}>
      <p role="status" class="found-status">
        {foundSentence(found.items.length, found.counted ? found.searched : null, found.next !== null, found.busy, pageQuery(asked) === "")}
      </p>
      {chosen.length >= 2 ? <Relation ids={chosen} onClear={() => setChosen([])} /> : null}
      {found.items.length >= 2 && chosen.length < 2 ? (
        <p class="hint">
          {chosen.length === 0 ? "Tick two or more events to see how they are related." : "Tick another one to see how they are related."}
        </p>
      ) : null}
      <ul class="event-list found">
        {found.items.map((envelope) => (
          <li key={envelope.event_id}>
            <input
              type="checkbox"
              aria-label={`Choose ${envelope.event_type} ${envelope.event_id.slice(0, 13)}, to ask how chosen events are related`}
              title="Choose two or more to ask how they are related"
              checked={chosen.includes(envelope.event_id)}
              onChange={(event) => choose(envelope.event_id, event.currentTarget.checked)}
            />
            <EventLine
              id={envelope.event_id}
              type={envelope.event_type}
              time={envelope.timestamp}
              source={maker(envelope)}
              note={summary(envelope.payload)}
            />
          </li>
        ))}
      </ul>
      {found.error === null ? null : <Trouble error={found.error} retry={() => void more(found.next)} />}
      {found.next === null ? null : (
        <p>
          <button type="button" disabled={found.busy} onClick={() => void more(found.next)}>
            {found.busy ? "Looking…" : "Look further back"}
          </button>
        </p>
      )}
    </section>
  );
}

/**
 * Return what was found in a sentence. `searched`: events looked at, null where the server does not count them.
 * `everything`: nothing was asked for, so that all events are listed. Pure.
 */
export function foundSentence(found: number, searched: number | null, hasMore: boolean, busy: boolean, everything = false): string {
  if (busy && found === 0) return searched ? `Looking further back; ${many(searched, "event")} so far…` : "Looking…";
  const among = searched === null ? "" : ` among ${many(searched, "event")}`;
  if (found === 0 && !hasMore && everything) return "There is no event yet.";
  if (found === 0) {
    return hasMore ? `Nothing yet${among === "" ? "" : among.replace(" among", " among the newest")}. There are older ones.` : `Nothing found${among}.`;
  }
  if (everything) return `${many(found, "event")}, newest first${hasMore ? "; there are older ones" : ""}.`;
  return `${count(found)} found${among}, newest first${hasMore ? "; there are older ones to look at" : ""}.`;
}
