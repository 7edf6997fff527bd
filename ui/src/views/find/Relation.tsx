/** How some chosen events are related: the way from one to the other, and what all of them have as a cause. */

import type { JSX } from "preact";

import { api } from "../../api/client";
import type { CommonCauses, LineageNode, PathFound } from "../../api/types";
import { EventLine, Trouble, useLoad } from "../../app/parts";
import { many } from "../../app/words";

export function Relation({ ids, onClear }: { ids: string[]; onClear(): void }): JSX.Element {
  const [first, second] = ids;
  const common = useLoad(`common ${ids.join()}`, (signal) => api.common(ids, signal));
  return (
    <section class="relation" aria-labelledby="relation-title">
      <h2 id="relation-title">
        How these {ids.length} are related{" "}
        <button type="button" class="quiet" onClick={onClear}>
          Choose none
        </button>
      </h2>
      {ids.length === 2 && first !== undefined && second !== undefined ? <Way from={first} to={second} /> : null}
      {common.error !== null ? <Trouble error={common.error} retry={common.reload} /> : null}
      {common.value === null ? null : (
        <>
          <p>{commonSentence(common.value)}</p>
          <Steps nodes={common.value.causes} />
        </>
      )}
    </section>
  );
}

function Way({ from, to }: { from: string; to: string }): JSX.Element {
  const way = useLoad(`way ${from} ${to}`, (signal) => api.path(from, to, signal));
  if (way.error !== null) return <Trouble error={way.error} retry={way.reload} />;
  if (way.value === null) return <p class="hint">Looking for a way…</p>;
  return (
    <>
      <p>{waySentence(way.value)}</p>
      <Steps nodes={way.value.path} />
    </>
  );
}

function Steps({ nodes }: { nodes: LineageNode[] }): JSX.Element {
  return (
    <ol class="event-list">
      {nodes.map((node) => (
        <li key={node.id}>
          <EventLine id={node.id} type={node.event_type} time={node.timestamp} source={node.source} failed={node.status === "failed"} />
        </li>
      ))}
    </ol>
  );
}

/** Return what is known of the way between two events; `found` null means that a limit ended the search. Pure. */
export function waySentence(way: PathFound): string {
  if (way.found === null) return "Whether one led to the other is not known: the graph is larger than the limits.";
  if (!way.found) return "Neither of the two led to the other.";
  const steps = way.path.length - 1;
  if (steps === 0) return "They are the same event.";
  return `One led to the other, in ${many(steps, "step")}:`;
}

/** Return what is known of common causes, in a sentence. Pure. */
export function commonSentence(common: CommonCauses): string {
  const found = common.causes.length;
  const unsure = common.complete ? "" : " There may be others: the graph is larger than the limits.";
  if (found === 0) return common.complete ? "They have no cause in common." : `No common cause was found.${unsure}`;
  return `${found === 1 ? "The nearest cause that they have in common:" : "The nearest causes that they have in common:"}${unsure}`;
}
