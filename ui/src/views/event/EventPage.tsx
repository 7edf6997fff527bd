/** One event: what it is, what it led to, the graph around it, its payload, its causes and effects. */

import type { JSX } from "preact";
import { useEffect } from "preact/hooks";

import { ApiError, address, api, key, keyGiven } from "../../api/client";
import type { Envelope, Impact, Lineage, LineageNode } from "../../api/types";
import { Copy, EventLine, FailedMark, Trouble, When, useLoad, type Loaded } from "../../app/parts";
import { go, place } from "../../app/router";
import { idPrefix, isFailure, isId, many, shortId } from "../../app/words";
import { GraphView } from "../../graph";
import { Fields } from "./Json";
import { Payload } from "./Payload";
import { impactSentence } from "./impact";
import "./event.css";

const NEIGHBOURS = 200;
const MOST_LISTED = 50;
const REFRESH_SECONDS = 10;
const LONGEST_ERROR = 500;

export function EventPage({ id }: { id: string }): JSX.Element {
  const prefix = isId(id) ? null : idPrefix(id);
  useEffect(() => {
    // The terminal prints the beginning of an id; whoever pastes it here means that event.
    if (prefix !== null) go(`/find?id=${prefix}`, { replace: true });
  }, [prefix]);
  if (isId(id)) return <Known id={id.toLowerCase()} />;
  return (
    <div class="page">
      <h1>No event id</h1>
      <p>
        <code>{id.slice(0, 80)}</code> is no id of an event: those have 32 hex digits. <a href="/find">Find an event</a>
      </p>
    </div>
  );
}

function Known({ id }: { id: string }): JSX.Element {
  const event = useLoad(`event ${id}`, (signal) => api.event(id, signal));
  const around = useLoad(`around ${id}`, (signal) => api.lineage(id, "both", 1, NEIGHBOURS, signal), REFRESH_SECONDS);
  const impact = useLoad(`impact ${id}`, (signal) => api.impact(id, signal), REFRESH_SECONDS);
  const focus = around.value?.nodes.find((node) => node.id === id) ?? null;
  const type = event.value?.event_type ?? focus?.event_type ?? null;
  const isUnknown = isMissing(event.error) && isMissing(around.error);
  useEffect(() => {
    if (type !== null) document.title = `${type} ${shortId(id)} · Bloodbank`;
  }, [type, id]);
  if (isUnknown) return <Unknown id={id} />;
  return (
    <div class="page event">
      <Head id={id} type={type} envelope={event.value} focus={focus} impact={impact} />
      {event.error === null ? null : (
        <Trouble
          error={event.error}
          retry={event.reload}
          title={isMissing(event.error) ? "The log does not have the event's body; the graph still knows its place." : "The event cannot be shown."}
        />
      )}
      <div class="event-graph">
        <Graph key={`graph ${keyGiven.value}`} id={id} />
      </div>
      <div class="event-body">
        <section class="event-payload" aria-labelledby="payload-title">
          <h2 id="payload-title">Payload</h2>
          {event.value === null ? (
            event.error === null ? <p class="hint">Loading…</p> : <p class="hint">Not known.</p>
          ) : (
            <Payload key={id} envelope={event.value} around={around.value} />
          )}
          {event.value === null ? null : <Whole key={`whole ${id}`} envelope={event.value} />}
        </section>
        <Neighbours id={id} around={around} />
      </div>
    </div>
  );
}

function Head({
  id,
  type,
  envelope,
  focus,
  impact,
}: {
  id: string;
  type: string | null;
  envelope: Envelope | null;
  focus: LineageNode | null;
  impact: Loaded<Impact>;
}): JSX.Element {
  const time = envelope?.timestamp ?? focus?.timestamp ?? null;
  const failed = focus?.status === "failed" || (type !== null && isFailure(type));
  return (
    <header class="event-head">
      <h1 class={failed ? "failed" : undefined}>
        {type ?? shortId(id)} {failed ? <FailedMark type={type} /> : null}
      </h1>
      <p class="event-facts">
        {time === null ? null : (
          <span>
            <When time={time} form="long" /> (<When time={time} form="ago" />)
          </span>
        )}
        {envelope === null ? (focus?.source ?? null) === null ? null : <span>by {focus?.source}</span> : <span>{madeBy(envelope)}</span>}
        <code class="event-id">{id}</code>
      </p>
      <p class="event-actions">
        <Copy text={id} label="Copy id" />
        <Copy text={() => curlOf(location.origin, id, key() !== null)} label="Copy curl" />
        <Copy text={() => location.href} label="Copy link" />
      </p>
      {typeof envelope?.payload["error_message"] === "string" ? (
        <p class="event-error failed">{envelope.payload["error_message"].slice(0, LONGEST_ERROR)}</p>
      ) : null}
      <p class="event-impact" aria-live="polite">
        {impact.value !== null ? impactSentence(impact.value) : isMissing(impact.error) ? "" : (impact.error?.message ?? " ")}
      </p>
    </header>
  );
}

function Graph({ id }: { id: string }): JSX.Element {
  const { query } = place.value;
  return (
    <GraphView
      id={id}
      depth={numberOf(query.get("depth"))}
      up={numberOf(query.get("up"))}
      mode={query.get("view") === "timeline" ? "timeline" : "graph"}
      colour={query.get("colour") === "source" ? "source" : "domain"}
      onNavigate={(to) => go(address(`/e/${to}`, { view: query.get("view"), colour: query.get("colour") }))}
      onOptions={(patch) => go(optionsAddress(`/e/${id}`, place.value.query, patch), { replace: true })}
      load={(of, direction, depth, limit) => api.lineage(of, direction, depth, limit)}
    />
  );
}

function Neighbours({ id, around }: { id: string; around: Loaded<Lineage> }): JSX.Element {
  if (around.value === null) {
    return (
      <aside class="event-side">{around.error === null ? <p class="hint">Loading…</p> : <Trouble error={around.error} retry={around.reload} />}</aside>
    );
  }
  const { nodes, edges, truncated } = around.value;
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const of = (ids: string[]) => ids.map((each) => byId.get(each)).filter((node) => node !== undefined);
  const causes = of(edges.filter((edge) => edge.child === id).map((edge) => edge.parent));
  const effects = of(edges.filter((edge) => edge.parent === id).map((edge) => edge.child));
  const focus = byId.get(id);
  return (
    <aside class="event-side">
      <Listed title="Causes" nodes={causes} total={focus?.parents_total ?? causes.length} none="Nothing caused it that anybody named: it is where something began." />
      <Listed title="Effects" nodes={effects} total={focus?.children_total ?? effects.length} none="Nothing names it as a cause so far." />
      {truncated.limit ? <p class="hint">There are more events around it than are asked for at once; the graph grows where you want it to.</p> : null}
    </aside>
  );
}

function Listed({ title, nodes, total, none }: { title: string; nodes: LineageNode[]; total: number; none: string }): JSX.Element {
  const shown = nodes.slice(0, MOST_LISTED);
  return (
    <section>
      <h2>
        {title} <span class="hint">{total}</span>
      </h2>
      {total === 0 ? <p class="hint">{none}</p> : null}
      <ul class="event-list">
        {shown.map((node) => (
          <li key={node.id}>
            <EventLine
              id={node.id}
              type={node.event_type}
              time={node.timestamp}
              source={node.source}
              failed={node.status === "failed"}
              note={node.known ? undefined : "named as a cause, never seen"}
            />
          </li>
        ))}
      </ul>
      {shown.length < total ? <p class="hint">And {many(total - shown.length, "more", "more")}; the graph shows them.</p> : null}
    </section>
  );
}

function Whole({ envelope }: { envelope: Envelope }): JSX.Element {
  const text = JSON.stringify(envelope, null, 2);
  const { agent_context: agent, source } = envelope;
  return (
    <>
      {agent === null || agent === undefined ? null : (
        <details>
          <summary>Agent context</summary>
          <Fields of={withoutNothing(agent)} />
        </details>
      )}
      <details>
        <summary>Envelope</summary>
        <Fields
          of={{
            event_id: envelope.event_id,
            event_type: envelope.event_type,
            timestamp: envelope.timestamp,
            version: envelope.version,
            source: withoutNothing({ ...source }),
            correlation_ids: envelope.correlation_ids,
          }}
        />
      </details>
      <details class="raw">
        <summary>Raw JSON</summary>
        <div class="command">
          <pre tabIndex={0}>
            <code>{text}</code>
          </pre>
          <Copy text={text} label="Copy JSON" />
        </div>
      </details>
    </>
  );
}

function Unknown({ id }: { id: string }): JSX.Element {
  return (
    <div class="page">
      <h1>Nobody has heard of this event</h1>
      <p>
        <code>{id}</code> is neither in the log nor in the index. It may have been published to another bus, or be older than
        both keep events.
      </p>
      <p>
        <a href="/find">Find an event</a> or go to the <a href="/">live events</a>.
      </p>
    </div>
  );
}

/** Return the command that reads an event. */
export function curlOf(origin: string, id: string, withKey: boolean): string {
  return `curl -s ${origin}/events/${id}${withKey ? ` -H "Authorization: Bearer $BLOODBANK_API_KEY"` : ""}`;
}

/** Return the address of an event's page with some options of the graph changed; what is the default is left out. */
export function optionsAddress(path: string, query: URLSearchParams, patch: Record<string, unknown>): string {
  const names: Record<string, string> = { mode: "view" };
  const defaults: Record<string, string> = { view: "graph", colour: "domain" };
  const next: Record<string, string> = Object.fromEntries(query);
  for (const [option, value] of Object.entries(patch)) {
    const name = names[option] ?? option;
    if (value === null || value === undefined || String(value) === defaults[name]) delete next[name];
    else next[name] = String(value);
  }
  return address(path, next);
}

function numberOf(text: string | null): number | null {
  return text !== null && /^\d{1,5}$/.test(text) ? Number(text) : null;
}

function isMissing(error: Error | null): boolean {
  return error instanceof ApiError && error.status === 404;
}

function madeBy(envelope: Envelope): string {
  const { app, host, type } = envelope.source;
  const who = typeof app === "string" ? `${app} on ${host}` : host;
  const how: Record<string, string> = { manual: "by hand", agent: "an agent", scheduled: "on schedule", file_watch: "a file watch", hook: "a hook" };
  return `by ${who}, ${how[type] ?? type}`;
}

function withoutNothing(of: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(of).filter(([, value]) => value !== null));
}
