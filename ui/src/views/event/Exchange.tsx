/** A prompt and what came of it, side by side, whichever of the two the event is. */

import type { JSX } from "preact";

import { api } from "../../api/client";
import type { Envelope, Lineage, LineageNode } from "../../api/types";
import { Trouble, useLoad } from "../../app/parts";
import { count, many, maker, span } from "../../app/words";
import { Fields, Text } from "./Json";

const ANSWERS = ["llm.response", "llm.error"];

export function Exchange({ envelope, around }: { envelope: Envelope; around: Lineage | null }): JSX.Element {
  const isPrompt = envelope.event_type === "llm.prompt";
  const others = around === null ? [] : counterparts(around, isPrompt);
  const other = others[0];
  return (
    <>
      <div class="exchange">
        {isPrompt ? <Side envelope={envelope} isHere /> : <Other node={other} missing="The prompt is not known: no cause of this event is one." around={around} />}
        {isPrompt ? <Other node={other} missing="No answer has come yet." around={around} /> : <Side envelope={envelope} isHere />}
      </div>
      {others.length > 1 ? (
        <p class="hint">
          {isPrompt ? `${many(others.length - 1, "more answer")}: ` : `${many(others.length - 1, "more prompt")}: `}
          {others.slice(1, 9).map((node, index) => (
            <span key={node.id}>
              {index > 0 ? ", " : ""}
              <a href={`/e/${node.id}`}>{node.source ?? node.id.slice(0, 13)}</a>
            </span>
          ))}
        </p>
      ) : null}
    </>
  );
}

/** Return the answers of a prompt, or the prompts of an answer, nearest in the graph; pure. */
export function counterparts(around: Lineage, isPrompt: boolean): LineageNode[] {
  const wanted = isPrompt ? ANSWERS : ["llm.prompt"];
  const neighbours = new Set(
    around.edges
      .filter((edge) => (isPrompt ? edge.parent : edge.child) === around.focus)
      .map((edge) => (isPrompt ? edge.child : edge.parent)),
  );
  return around.nodes.filter((node) => neighbours.has(node.id) && node.event_type !== null && wanted.includes(node.event_type));
}

function Other({ node, missing, around }: { node: LineageNode | undefined; missing: string; around: Lineage | null }): JSX.Element {
  if (node === undefined) return <div class="side side-missing">{around === null ? "" : missing}</div>;
  return <Fetched id={node.id} />;
}

function Fetched({ id }: { id: string }): JSX.Element {
  const loaded = useLoad(id, (signal) => api.event(id, signal));
  if (loaded.error !== null) return <Trouble error={loaded.error} retry={loaded.reload} />;
  return loaded.value === null ? <div class="side side-missing">Loading…</div> : <Side envelope={loaded.value} isHere={false} />;
}

function Side({ envelope, isHere }: { envelope: Envelope; isHere: boolean }): JSX.Element {
  const isPrompt = envelope.event_type === "llm.prompt";
  const { prompt, response, error_message: error, provider, model, tokens_used: tokens, duration_ms: duration, ...rest } = envelope.payload;
  const said = isPrompt ? prompt : (response ?? error);
  const facts = [
    typeof model === "string" ? model : typeof provider === "string" ? provider : "",
    typeof tokens === "number" ? `${count(tokens)} tokens` : "",
    typeof duration === "number" ? span(duration / 1000) : "",
  ].filter((fact) => fact !== "");
  const more = Object.fromEntries(
    Object.entries(rest).filter(([, value]) => value !== null && !(typeof value === "object" && Object.keys(value).length === 0)),
  );
  return (
    <section class={isHere ? "side" : "side side-other"}>
      <h3>
        {isPrompt ? "Prompt" : envelope.event_type === "llm.error" ? "Error" : "Response"}
        <span class="hint">
          {[maker(envelope), ...facts].join(" · ")}
        </span>
      </h3>
      {typeof said === "string" ? (
        <div class={envelope.event_type === "llm.error" ? "said failed" : "said"}>
          <Text of={said} />
        </div>
      ) : null}
      {isHere ? (
        Object.keys(more).length > 0 ? (
          <Fields of={more} />
        ) : null
      ) : (
        <p>
          <a href={`/e/${envelope.event_id}`}>Open this event</a>
        </p>
      )}
    </section>
  );
}
