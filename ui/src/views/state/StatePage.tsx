/** How the bus is: what it needs, what waits, what consumers gave up on. */

import type { ComponentChildren, JSX } from "preact";

import { api } from "../../api/client";
import type { Readiness, Stats } from "../../api/types";
import { Sparkline } from "../../app/Sparkline";
import { Trouble, When, useLoad, type Loaded } from "../../app/parts";
import { rate } from "../../app/words";
import { DeadLetters } from "./DeadLetters";
import { SetAside } from "./SetAside";
import { indexSentence, lagSentence, lettersSentence, outboxSentence, verdict, type Tone } from "./words";
import "./state.css";

const EVERY_SECONDS = 3;

export function StatePage(): JSX.Element {
  const ready = useLoad("readiness", api.readiness, EVERY_SECONDS);
  const stats = useLoad("stats", api.stats, EVERY_SECONDS);
  return (
    <div class="page state">
      <h1>State of the bus</h1>
      {ready.error === null ? null : <Trouble error={ready.error} retry={ready.reload} title="The server does not say how it is." />}
      {ready.value === null ? (
        ready.error === null ? <p class="hint">Asking…</p> : null
      ) : (
        <>
          <Verdict ready={ready.value} isStale={ready.error !== null} />
          <Parts ready={ready.value} />
        </>
      )}
      <Flow stats={stats} />
      <section aria-labelledby="letters-title">
        <h2 id="letters-title">Dead letters</h2>
        <p>
          {stats.value === null ? "" : lettersSentence(stats.value)}{" "}
          <span class="hint">A dead letter is an event that a consumer could not handle in any of its attempts. It stays until it is retried, here or with <code>bb dlq retry</code>, or discarded with <code>bb dlq discard</code>.</span>
        </p>
        <DeadLetters />
      </section>
    </div>
  );
}

function Verdict({ ready, isStale }: { ready: Readiness; isStale: boolean }): JSX.Element {
  const { tone, title, sentence } = verdict(ready);
  return (
    <div class={`verdict verdict-${tone}`} role="status">
      <Mark tone={tone} />
      <p>
        <strong>{title}</strong> {sentence} {isStale ? "That was the last answer." : ""}
      </p>
    </div>
  );
}

function Parts({ ready }: { ready: Readiness }): JSX.Element {
  const index = indexSentence(ready.store);
  return (
    <section aria-labelledby="parts-title">
      <h2 id="parts-title" class="visually-hidden">
        What the bus needs
      </h2>
      <div class="cards">
        <Card title="Bus" tone={ready.transport.ok ? "good" : "bad"} what={ready.transport.what}>
          <p>{ready.transport.detail}</p>
        </Card>
        <Card title="Index of causes" tone={ready.store.ok ? (index === "" ? "good" : "warn") : "bad"} what={ready.store.what}>
          <p>
            {ready.store.detail} {index}
          </p>
        </Card>
        <Card
          title="Outbox"
          tone={ready.outbox.ok ? (ready.outbox.waiting + ready.outbox.set_aside > 0 ? "warn" : "good") : "bad"}
          word={ready.outbox.on ? undefined : "not used"}
        >
          <p>
            {ready.outbox.ok ? "" : `${ready.outbox.detail} `}
            {outboxSentence(ready.outbox)}
          </p>
          {ready.outbox.set_aside > 0 ? <SetAside /> : null}
        </Card>
      </div>
    </section>
  );
}

function Card({ title, tone, word, what, children }: { title: string; tone: Tone; word?: string | undefined; what?: string; children: ComponentChildren }): JSX.Element {
  return (
    <article class={`card card-${tone}`}>
      <h3>
        <Mark tone={tone} /> {title} <span class="card-word">{word ?? (tone === "good" ? "works" : tone === "warn" ? "look here" : "does not work")}</span>
      </h3>
      {what === undefined ? null : <p class="what">{what}</p>}
      {children}
    </article>
  );
}

/** A shape for each tone, so that it is not the colour alone. */
function Mark({ tone }: { tone: Tone }): JSX.Element {
  const path = { good: "M3.5 8.5 L6.8 11.5 L12.5 4.8", warn: "M8 3.5 L8 9 M8 11.6 L8 12.4", bad: "M4 4 L12 12 M12 4 L4 12" }[tone];
  return (
    <svg class={`mark mark-${tone}`} viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
      <circle cx="8" cy="8" r="8" />
      <path d={path} />
    </svg>
  );
}

function Flow({ stats }: { stats: Loaded<Stats> }): JSX.Element {
  if (stats.value === null) {
    return stats.error === null ? <></> : <Trouble error={stats.error} retry={stats.reload} title="Rates and groups are not known." />;
  }
  const { events_per_second: rates, per_second: counts, groups, since, trouble, groups_detail: unknown } = stats.value;
  const label = `${rate(rates.last_second)} events in the last second, ${rate(rates.last_minute)} a second in the last minute`;
  return (
    <>
      <section aria-labelledby="flow-title">
        <h2 id="flow-title">Events a second</h2>
        <div class="live-rate">
          <Sparkline counts={counts} label={label} />
          <dl>
            <div>
              <dt>last second</dt>
              <dd>{rate(rates.last_second)}</dd>
            </div>
            <div>
              <dt>a second, last minute</dt>
              <dd>{rate(rates.last_minute)}</dd>
            </div>
          </dl>
        </div>
        {trouble === null ? null : <p class="notice notice-bad">The log cannot be read now. {trouble.detail}</p>}
        {since === null ? null : (
          <p class="hint">
            Counted since <When time={since} />.
          </p>
        )}
      </section>
      <section aria-labelledby="groups-title">
        <h2 id="groups-title">Consumer groups</h2>
        {unknown !== null ? (
          <p>{unknown}</p>
        ) : groups.length === 0 ? (
          <p class="hint">None has subscribed. A consumer makes its group when it starts, as with <code>bb consume</code>.</p>
        ) : (
          <table class="groups">
            <thead>
              <tr>
                <th scope="col">group</th>
                <th scope="col">event types</th>
                <th scope="col">progress</th>
              </tr>
            </thead>
            <tbody>
              {groups.map((group) => (
                <tr key={group.group}>
                  <th scope="row">{group.group}</th>
                  <td>
                    <code>{group.patterns.join(", ")}</code>
                  </td>
                  <td class={group.waiting > 0 ? "waits" : undefined}>{lagSentence(group)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        )}
      </section>
    </>
  );
}
