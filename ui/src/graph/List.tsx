/** The graph as a list: the same in text, for screen readers and for searching in the page. */

import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";

import { topological } from "./dag";
import { neighbours } from "./lineage";
import type { Lineage, LineageNode } from "./types";
import { counted, shortId, timeOfDay } from "./words";

const STEP = 100;
const MOST_LINKS = 8;

export interface ListProps {
  lineage: Lineage;
  onNavigate(id: string): void;
}

export function List({ lineage, onNavigate }: ListProps): JSX.Element {
  const [isOpen, setOpen] = useState(false);
  const [most, setMost] = useState(STEP);
  const near = useMemo(() => neighbours(lineage), [lineage]);
  const nodes = useMemo(() => new Map(lineage.nodes.map((node) => [node.id, node])), [lineage]);
  const ordered = useMemo(() => inOrder(lineage), [lineage]);
  const link = (id: string, text: string) => (
    <a
      href={`/e/${id}`}
      onClick={(event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
        event.preventDefault();
        onNavigate(id);
      }}
    >
      {text}
    </a>
  );
  const links = (ids: string[]) => (
    <>
      {ids.slice(0, MOST_LINKS).map((id, at) => (
        <>
          {at > 0 && ", "}
          {link(id, `${nodes.get(id)?.event_type ?? "unknown event"} ${shortId(id)}`)}
        </>
      ))}
      {ids.length > MOST_LINKS && ` and ${counted(ids.length - MOST_LINKS, "other")}`}
    </>
  );
  return (
    <details class="graph-list" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>As a list</summary>
      {isOpen && (
        <>
          <ol>
            {ordered.slice(0, most).map((node) => (
              <li key={node.id} aria-current={node.id === lineage.focus ? "true" : undefined}>
                {link(node.id, node.event_type ?? "unknown event")} <span class="graph-quiet">{factsOf(node)}</span>
                {node.status === "failed" && <strong class="graph-failed"> failed</strong>}
                {node.id === lineage.focus && <strong> this event</strong>}
                {near.parents.has(node.id) && <div class="graph-quiet">caused by {links(near.parents.get(node.id)!)}</div>}
                {near.children.has(node.id) && <div class="graph-quiet">led to {links(near.children.get(node.id)!)}</div>}
              </li>
            ))}
          </ol>
          {ordered.length > most && (
            <button type="button" onClick={() => setMost(most + STEP)}>
              Show {Math.min(STEP, ordered.length - most)} more of {ordered.length.toLocaleString("en")}
            </button>
          )}
        </>
      )}
    </details>
  );
}

function factsOf(node: LineageNode): string {
  if (!node.known) return `${shortId(node.id)}, never seen, or no longer kept`;
  return [shortId(node.id), timeOfDay(node.timestamp), node.source].filter(Boolean).join(", ");
}

/** Causes before effects, and by time where that leaves a choice. */
function inOrder({ nodes, edges }: Lineage): LineageNode[] {
  const byTime = nodes.slice().sort((a, b) => (a.timestamp ?? "").localeCompare(b.timestamp ?? "") || a.id.localeCompare(b.id));
  const numbers = new Map(byTime.map(({ id }, number) => [id, number]));
  const from = Int32Array.from(edges, ({ parent }) => numbers.get(parent)!);
  const to = Int32Array.from(edges, ({ child }) => numbers.get(child)!);
  return Array.from(topological(byTime.length, from, to), (number) => byTime[number]!);
}
