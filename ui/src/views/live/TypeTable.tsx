/** What happens most, and when it happened last. */

import type { JSX } from "preact";

import type { Stats } from "../../api/types";
import { Trouble, When } from "../../app/parts";
import { count, isFailure, many } from "../../app/words";

const MOST_TYPES = 40;

export function TypeTable({ stats, error, pattern }: { stats: Stats | null; error: Error | null; pattern: string }): JSX.Element {
  if (stats === null) return error === null ? <p class="hint">Counting…</p> : <Trouble error={error} />;
  const types = stats.types.slice(0, MOST_TYPES);
  return (
    <>
      {stats.dead_letters !== null && stats.dead_letters > 0 ? (
        <p class="notice notice-warn">
          Consumers gave up on {many(stats.dead_letters, "event")}. <a href="/state">See which</a>
        </p>
      ) : null}
      <table class="types">
        <caption>
          Types {stats.since === null ? null : <span class="hint">counted since {<When time={stats.since} />}</span>}
        </caption>
        <thead>
          <tr>
            <th scope="col">type</th>
            <th scope="col" class="number">
              last min
            </th>
            <th scope="col" class="number">
              in all
            </th>
          </tr>
        </thead>
        <tbody>
          {types.map((type) => (
            <tr key={type.event_type} class={isFailure(type.event_type) ? "failed" : undefined}>
              <th scope="row">
                <a
                  href={pattern === type.event_type ? "/" : `/?type=${encodeURIComponent(type.event_type)}`}
                  aria-current={pattern === type.event_type ? "true" : undefined}
                  title={`Show only ${type.event_type}`}
                >
                  {type.event_type}
                </a>
              </th>
              <td class="number">{count(type.last_minute)}</td>
              <td class="number">{count(type.total)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {types.length === 0 ? <p class="hint">No event came since counting began.</p> : null}
      {stats.types.length > MOST_TYPES ? <p class="hint">And {many(stats.types.length - MOST_TYPES, "more type")}.</p> : null}
    </>
  );
}
