/** Any JSON as a list of names and values, for reading. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { many } from "../../app/words";

const LONG_TEXT = 600;
const MANY_ITEMS = 30;
const DEEP = 6;

export function Fields({ of, depth = 0 }: { of: Record<string, unknown>; depth?: number }): JSX.Element {
  const entries = Object.entries(of);
  if (entries.length === 0) return <p class="hint">empty</p>;
  return (
    <dl class="fields">
      {entries.map(([name, value]) => (
        <div key={name} class={isLarge(value) ? "field field-large" : "field"}>
          <dt>{name}</dt>
          <dd>
            <Value of={value} depth={depth} />
          </dd>
        </div>
      ))}
    </dl>
  );
}

function Value({ of, depth }: { of: unknown; depth: number }): JSX.Element {
  if (of === null || of === undefined) return <span class="hint">none</span>;
  if (typeof of === "string") return <Text of={of} />;
  if (typeof of === "number" || typeof of === "boolean") return <code>{String(of)}</code>;
  if (depth >= DEEP) return <pre>{JSON.stringify(of, null, 2)}</pre>;
  if (Array.isArray(of)) return <Items of={of} depth={depth} />;
  return <Fields of={of as Record<string, unknown>} depth={depth + 1} />;
}

function Items({ of, depth }: { of: unknown[]; depth: number }): JSX.Element {
  const [isWhole, setWhole] = useState(false);
  if (of.length === 0) return <span class="hint">none</span>;
  if (of.every((item) => typeof item === "string" && item.length < 60) && of.length <= MANY_ITEMS) {
    return <span>{of.join(", ")}</span>;
  }
  const shown = isWhole ? of : of.slice(0, MANY_ITEMS);
  return (
    <>
      <ol class="items">
        {shown.map((item, index) => (
          <li key={index}>
            <Value of={item} depth={depth + 1} />
          </li>
        ))}
      </ol>
      {shown.length < of.length ? (
        <button type="button" onClick={() => setWhole(true)}>
          Show all {many(of.length, "item")}
        </button>
      ) : null}
    </>
  );
}

/** A text as it was written, lines kept; a long one is cut until somebody wants it whole. */
export function Text({ of }: { of: string }): JSX.Element {
  const [isWhole, setWhole] = useState(false);
  if (of === "") return <span class="hint">empty</span>;
  const link = safeLink(of);
  if (link !== null) return <ExternalLink href={link} />;
  const isCut = !isWhole && of.length > LONG_TEXT * 1.2;
  return (
    <span class="text">
      {isCut ? `${of.slice(0, LONG_TEXT)}…` : of}
      {isCut ? (
        <>
          {" "}
          <button type="button" class="quiet" onClick={() => setWhole(true)}>
            Show all {many(of.length, "character")}
          </button>
        </>
      ) : null}
    </span>
  );
}

export function ExternalLink({ href }: { href: string }): JSX.Element {
  return (
    <a href={href} target="_blank" rel="noopener noreferrer">
      {href}
    </a>
  );
}

/** Return a text if it is an address that may be followed. Payloads are written by anybody: no `javascript:`. */
export function safeLink(text: string): string | null {
  if (!/^https?:\/\/\S+$/i.test(text) || text.length > 2000) return null;
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? text : null;
  } catch {
    return null;
  }
}

function isLarge(value: unknown): boolean {
  return (typeof value === "object" && value !== null && !isShortList(value)) || (typeof value === "string" && value.length > 90);
}

function isShortList(value: object): boolean {
  return Array.isArray(value) && value.length <= 3 && value.every((item) => typeof item === "string" && item.length < 30);
}
