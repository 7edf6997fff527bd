/** Asks the HTTP API. A key, where the server wants one, is kept in this tab alone. */

import { signal } from "@preact/signals";

import { keptIn } from "../app/storage";
import type {
  CommonCauses,
  DeadLetter,
  DeadLetterGroup,
  DemoPlayed,
  Direction,
  Envelope,
  EventPage,
  Impact,
  Job,
  Lineage,
  OutboxItem,
  Page,
  PathFound,
  Problem,
  Readiness,
  Stats,
} from "./types";

const KEY = "bloodbank.key";
const tab = keptIn(() => sessionStorage);
/** What a header can hold. */
const SENDABLE = /^[\x20-\x7e\xa0-\xff]+$/;
const ENTER_ONE = "Enter one that may read, to look at the bus.";

/** Counts the keys that were given: what depends on a key asks again when it moves. */
export const keyGiven = signal(0);
/** Why a key is asked for: a sentence, or null while none is. */
export const keyWanted = signal<string | null>(null);

/** An answer that is none: what the server said, in its words. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly retryAfterSeconds: number | null;

  constructor(status: number, code: string, detail: string, retryAfterSeconds: number | null = null) {
    super(detail);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** Return the key of this tab, or null. */
export function key(): string | null {
  return tab.get(KEY);
}

/** Keep a key, or forget it, and let everything be asked again. */
export function useKey(value: string | null): void {
  tab.set(KEY, value);
  keyWanted.value = null;
  keyGiven.value += 1;
}

/** Return an address with those parameters that have a value. */
export function address(path: string, parameters: Record<string, string | number | null | undefined> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
  }
  const text = query.toString();
  return text === "" ? path : `${path}?${text}`;
}

/**
 * Ask, and return the response if it is 2xx. Throws ApiError; where a key is missing or wrong, one is asked for too.
 * `accepted`: statuses that are answers as well.
 */
export async function request(url: string, init: RequestInit = {}, accepted: readonly number[] = []): Promise<Response> {
  const headers = new Headers(init.headers);
  const sent = key();
  if (sent !== null && !SENDABLE.test(sent)) {
    const why = "The key has characters that no request can carry, so it cannot be one of this server's.";
    keyWanted.value = why;
    throw new ApiError(401, "key_required", why);
  }
  if (sent !== null) headers.set("Authorization", `Bearer ${sent}`);
  let response: Response;
  try {
    response = await fetch(url, { ...init, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The server does not answer. It may be stopped, or the network is away.");
  }
  if (response.ok || accepted.includes(response.status)) return response;
  const problem = await problemOf(response);
  // A key that was replaced while this was on its way says nothing of the new one.
  if (response.status === 401 && sent === key()) keyWanted.value = sent === null ? ENTER_ONE : problem.message;
  // How programs send a key is of no use to who looks at a page.
  if (response.status === 401 && sent === null) throw new ApiError(401, problem.code, "This server asks for an API key.", null);
  throw problem;
}

async function problemOf(response: Response): Promise<ApiError> {
  const retryAfter = Number(response.headers.get("Retry-After") ?? Number.NaN);
  let problem: Partial<Problem> = {};
  try {
    problem = (await response.json()) as Partial<Problem>;
  } catch {
    // What stands between us and the server, such as a proxy, answers in words of its own.
  }
  const detail = problem.detail ?? `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  return new ApiError(response.status, problem.code ?? "unknown", detail, Number.isFinite(retryAfter) ? retryAfter : null);
}

async function json<Answer>(url: string, init: RequestInit = {}, accepted: readonly number[] = []): Promise<Answer> {
  return (await (await request(url, init, accepted)).json()) as Answer;
}

const POST = { method: "POST" } as const;

/** The questions that the explorer asks, one a route. */
export const api = {
  event: (id: string, signal?: AbortSignal) => json<Envelope>(`/events/${encodeURIComponent(id)}`, init(signal)),
  events: (parameters: Record<string, string | number | null | undefined>, signal?: AbortSignal) =>
    json<EventPage>(address("/events", parameters), init(signal)),
  lineage: (id: string, direction: Direction, depth: number | null, limit: number | null, signal?: AbortSignal) =>
    json<Lineage>(
      address(`/events/${encodeURIComponent(id)}/lineage`, { direction, max_depth: depth, limit }),
      init(signal),
    ),
  impact: (id: string, signal?: AbortSignal) => json<Impact>(`/events/${encodeURIComponent(id)}/impact`, init(signal)),
  path: (from: string, to: string, signal?: AbortSignal) =>
    json<PathFound>(address("/lineage/path", { from, to }), init(signal)),
  common: (ids: string[], signal?: AbortSignal) =>
    json<CommonCauses>(address("/lineage/common", { ids: ids.join(",") }), init(signal)),
  stats: (signal?: AbortSignal) => json<Stats>("/stats", init(signal)),
  /** 503 is an answer too: it says what is away. */
  readiness: (signal?: AbortSignal) => json<Readiness>("/readyz", init(signal), [503]),
  deadLetterGroups: (signal?: AbortSignal) => json<Page<DeadLetterGroup>>("/dlq/groups", init(signal)),
  deadLetters: (key: string, cursor: string | null, signal?: AbortSignal) =>
    json<Page<DeadLetter>>(address("/dlq", { key, cursor, limit: 50 }), init(signal)),
  retryLetter: (number: number) => json<{ retried: number }>(`/dlq/${number}/retry`, POST),
  retryGroup: (key: string) => json<Job>(`/dlq/groups/${key}/retry`, POST),
  job: (id: string, signal?: AbortSignal) => json<Job>(`/jobs/${id}`, init(signal)),
  setAside: (signal?: AbortSignal) => json<Page<OutboxItem>>(address("/outbox", { set_aside: "true" }), init(signal)),
  retryOutbox: () => json<{ retried: number }>("/outbox/retry", POST),
  playDemo: () => json<DemoPlayed>("/demo", POST),
};

function init(signal: AbortSignal | undefined): RequestInit {
  return signal === undefined ? {} : { signal };
}
