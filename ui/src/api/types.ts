/** The JSON of the HTTP API, as docs/http.md and /openapi.json describe it. */

export type Direction = "ancestors" | "descendants" | "both";
export type Status = "ok" | "failed";

export interface Source {
  host: string;
  type: string;
  app?: string | null;
  meta?: Record<string, unknown> | null;
}

/** An event: envelope 2.0.0. */
export interface Envelope {
  event_id: string;
  event_type: string;
  timestamp: string;
  version: string;
  source: Source;
  correlation_ids: string[];
  agent_context?: Record<string, unknown> | null;
  payload: Record<string, unknown>;
}

/** Events, newest first. `searched`: how many the server looked at, where it searched. */
export interface EventPage {
  items: Envelope[];
  next: string | null;
  searched?: number;
}

/** An event in a graph. What is not known of it is null. */
export interface LineageNode {
  id: string;
  /** Hops from the focus, negative towards ancestors. */
  depth: number;
  event_type: string | null;
  timestamp: string | null;
  source: string | null;
  status: Status | null;
  /** False for a cause that was named and never seen. */
  known: boolean;
  parents_total: number;
  children_total: number;
}

export interface Edge {
  parent: string;
  child: string;
}

export interface Truncated {
  depth: boolean;
  limit: boolean;
  frontier: string[];
}

/** The graph around an event, parents before children. */
export interface Lineage {
  focus: string;
  direction: Direction;
  nodes: LineageNode[];
  edges: Edge[];
  roots: string[];
  missing: string[];
  cycle: boolean;
  truncated: Truncated;
}

/** What an event led to, counted. */
export interface Impact {
  event_id: string;
  descendants: number;
  by_type: Record<string, number>;
  by_source: Record<string, number>;
  by_status: { ok: number; failed: number; unknown: number };
  first: string | null;
  last: string | null;
  truncated: Truncated;
}

export interface TypeCount {
  event_type: string;
  last_minute: number;
  total: number;
  last_seen: string;
}

/** How far a group of consumers is. `more`: at least so many wait. */
export interface GroupLag {
  group: string;
  patterns: string[];
  waiting: number;
  more: boolean;
  delivered: number | null;
}

/**
 * How much happens. `per_second`: sixty counts, oldest first. `since` is null before the log could be read. Each
 * `…_detail` says why something is not known.
 */
export interface Stats {
  now: string;
  since: string | null;
  events_per_second: { last_second: number; last_minute: number };
  per_second: number[];
  types: TypeCount[];
  trouble: { code: string; detail: string } | null;
  groups: GroupLag[];
  groups_detail: string | null;
  outbox: { waiting: number; set_aside: number; oldest_seconds: number | null } | null;
  outbox_detail: string | null;
  dead_letters: number | null;
  dead_letters_detail: string | null;
}

export interface Dependency {
  ok: boolean;
  detail: string;
  what: string;
}

/** Whether events can be accepted now. */
export interface Readiness {
  ready: boolean;
  degraded: boolean;
  stopping: boolean;
  transport: Dependency;
  store: Dependency & {
    deferred_total: number;
    journalled: number;
    unjournalled_total: number;
    unjournalled_since: string | null;
  };
  outbox: {
    on: boolean;
    ok: boolean;
    detail: string;
    waiting: number;
    waiting_bytes: number;
    used_bytes: number;
    limit_bytes: number;
    set_aside: number;
    oldest_seconds: number | null;
  };
}

/** An event that a consumer gave up. */
export interface DeadLetter {
  number: number;
  group: string | null;
  event_id: string;
  event_type: string;
  error: string;
  reason: string;
  traceback: string;
  consumer: string;
  attempts: number;
  first_at: string | null;
  dead_at: string;
}

/** Dead letters of one consumer and one error. */
export interface DeadLetterGroup {
  key: string;
  consumer: string;
  group: string | null;
  error: string;
  count: number;
  first_at: string;
  last_at: string;
  sample: DeadLetter;
}

export interface Page<Item> {
  items: Item[];
  next: string | null;
}

/** How far a job is, or its outcome. */
export interface Job {
  job: string;
  kind: string;
  total: number | null;
  done: number;
  skipped: number;
  failed: number;
  finished: boolean;
  error: { code: string; detail: string } | null;
}

/** The demo was played. `focus`: the event worth looking at. */
export interface DemoPlayed {
  events: number;
  focus: string;
}

/** What went wrong (RFC 9457). */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: string;
}

/** The shortest way between two events, causes first. `found` is null where a limit ended the search. */
export interface PathFound {
  from: string;
  to: string;
  found: boolean | null;
  direction: "descendants" | "ancestors" | null;
  path: LineageNode[];
  edges: Edge[];
  truncated: Truncated;
}

/** The nearest causes that several events have in common. */
export interface CommonCauses {
  ids: string[];
  causes: LineageNode[];
  complete: boolean;
  truncated: Truncated;
}

/** An event in the outbox. */
export interface OutboxItem {
  event_id: string;
  event_type: string;
  accepted_at: string;
  size_bytes: number;
  attempts: number;
  set_aside: boolean;
  reason: string | null;
}
