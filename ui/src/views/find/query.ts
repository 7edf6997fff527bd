/** What is looked for, as the form, the page's address and the server name it. Pure. */

export interface Asked {
  text: string;
  id: string;
  type: string;
  source: string;
  since: string;
  until: string;
}

export const FIELDS: readonly {
  name: keyof Asked;
  label: string;
  hint: string;
  isTime: boolean;
  wide: boolean;
}[] = [
  { name: "text", label: "Text in the event", hint: "any words of it", isTime: false, wide: true },
  { name: "id", label: "Id begins with", hint: "01a20922-4493", isTime: false, wide: false },
  { name: "type", label: "Type", hint: "llm.*, #.failed", isTime: false, wide: false },
  { name: "source", label: "Source", hint: "host or app", isTime: false, wide: false },
  { name: "since", label: "From", hint: "", isTime: true, wide: false },
  { name: "until", label: "Until", hint: "", isTime: true, wide: false },
];

/** Read what is looked for from the page's address. */
export function askedFor(query: URLSearchParams): Asked {
  return Object.fromEntries(FIELDS.map(({ name }) => [name, (query.get(name) ?? "").trim()])) as unknown as Asked;
}

/** Write it for the page's address, what is empty left out. */
export function pageQuery(asked: Asked): string {
  return new URLSearchParams(FIELDS.filter(({ name }) => asked[name] !== "").map(({ name }) => [name, asked[name]])).toString();
}

/** Write it for the server. Times in the form are those of this machine; the server wants their offset. */
export function serverQuery(asked: Asked): Record<string, string | null> {
  return {
    text: asked.text || null,
    id_prefix: asked.id || null,
    type: asked.type || null,
    source: asked.source || null,
    since: withOffset(asked.since),
    until: withOffset(asked.until),
  };
}

function withOffset(local: string): string | null {
  if (local === "") return null;
  const time = new Date(local);
  return Number.isNaN(time.getTime()) ? local : time.toISOString();
}
