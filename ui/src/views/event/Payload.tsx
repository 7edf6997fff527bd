/** A payload the way one reads it: a talk with a model, a transcript, an artifact, a failure, or names and values. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";

import type { Envelope, Lineage } from "../../api/types";
import { isFailure, many, offset, span } from "../../app/words";
import { Exchange } from "./Exchange";
import { ExternalLink, Fields, Text, safeLink } from "./Json";

const MANY_SENTENCES = 200;

export function Payload({ envelope, around }: { envelope: Envelope; around: Lineage | null }): JSX.Element {
  const { event_type: type, payload } = envelope;
  if (typeof payload["error_message"] === "string") return <Failure envelope={envelope} around={around} />;
  if (type === "llm.prompt" || type === "llm.response") return <Exchange envelope={envelope} around={around} />;
  if (type.startsWith("fireflies.transcript.") && Array.isArray(payload["sentences"])) return <Transcript payload={payload} />;
  if (type.startsWith("artifact.") && typeof payload["uri"] === "string") return <Artifact payload={payload} uri={payload["uri"]} />;
  return <Fields of={payload} />;
}

function Failure({ envelope, around }: { envelope: Envelope; around: Lineage | null }): JSX.Element {
  const { error_message: message, error_code: code, retry_count: retries, is_retryable: retryable, ...rest } = envelope.payload;
  const told = [
    typeof code === "string" ? `Code ${code}.` : "",
    typeof retries === "number" && retries > 0 ? `Tried again ${many(retries, "time")}.` : "",
    retryable === true ? "Trying again may help." : retryable === false ? "Trying again will not help." : "",
  ].filter((sentence) => sentence !== "");
  return (
    <>
      <div class="failure">
        <h3>{isFailure(envelope.event_type) ? "What went wrong" : "It tells of an error"}</h3>
        <p class="failure-message">
          <Text of={String(message)} />
        </p>
        {told.length > 0 ? <p>{told.join(" ")}</p> : null}
      </div>
      {envelope.event_type === "llm.error" ? <Exchange envelope={{ ...envelope, payload: rest }} around={around} /> : <Fields of={rest} />}
    </>
  );
}

function Artifact({ payload, uri }: { payload: Record<string, unknown>; uri: string }): JSX.Element {
  const { title, content, kind, uri: _uri, action: _action, ...rest } = payload;
  const link = safeLink(uri);
  return (
    <>
      <p class="artifact">
        {typeof title === "string" ? <strong>{title}</strong> : null}
        {typeof kind === "string" ? <span class="hint">{kind}</span> : null}
        {link === null ? <code class="uri">{uri}</code> : <ExternalLink href={link} />}
      </p>
      {typeof content === "string" ? (
        <div class="paper">
          <Text of={content} />
        </div>
      ) : null}
      {hasSomething(rest) ? <Fields of={rest} /> : null}
    </>
  );
}

function Transcript({ payload }: { payload: Record<string, unknown> }): JSX.Element {
  const { sentences, title, summary, duration, participants, ...rest } = payload;
  const all = (sentences as unknown[]).filter(isSentence);
  const [isWhole, setWhole] = useState(false);
  const shown = isWhole ? all : all.slice(0, MANY_SENTENCES);
  const people = Array.isArray(participants) ? participants.map(nameOf).filter((name) => name !== null) : [];
  return (
    <>
      {typeof title === "string" ? <h3 class="transcript-title">{title}</h3> : null}
      <p class="hint">
        {[
          typeof duration === "number" ? span(duration * 60) : "",
          many(all.length, "sentence"),
          people.length > 0 ? `with ${people.join(", ")}` : "",
        ]
          .filter((part) => part !== "")
          .join(" · ")}
      </p>
      {typeof summary === "string" ? (
        <p>
          <Text of={summary} />
        </p>
      ) : null}
      <ol class="transcript" aria-label="Sentences">
        {shown.map((sentence, index) => (
          <li key={index}>
            <span class="transcript-time">{typeof sentence.start_time === "number" ? offset(sentence.start_time) : ""}</span>
            <span class="transcript-speaker">
              {sentence.speaker_name === shown[index - 1]?.speaker_name ? (
                <span class="visually-hidden">{sentence.speaker_name ?? ""}</span>
              ) : (
                (sentence.speaker_name ?? "somebody")
              )}
            </span>
            <span class="transcript-text">{sentence.text}</span>
          </li>
        ))}
      </ol>
      {shown.length < all.length ? (
        <button type="button" onClick={() => setWhole(true)}>
          Show all {many(all.length, "sentence")}
        </button>
      ) : null}
      <details>
        <summary>What else the transcript says</summary>
        <Fields of={rest} />
      </details>
    </>
  );
}

interface Sentence {
  text: string;
  speaker_name?: string | null;
  start_time?: number;
}

function isSentence(value: unknown): value is Sentence {
  return typeof value === "object" && value !== null && typeof (value as Sentence).text === "string";
}

function nameOf(value: unknown): string | null {
  if (typeof value === "string") return value;
  const name = typeof value === "object" && value !== null ? (value as { name?: unknown }).name : null;
  return typeof name === "string" ? name : null;
}

/** Say whether a payload has a value that is neither missing nor empty. */
function hasSomething(of: Record<string, unknown>): boolean {
  return Object.values(of).some(
    (value) => value !== null && !(typeof value === "object" && value !== null && Object.keys(value).length === 0),
  );
}
