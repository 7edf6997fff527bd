/** Lineages to draw: made by rule, or by a generator with a seed. */

import { neighbours, reach } from "../../src/graph/lineage";
import type { Lineage, LineageNode } from "../../src/graph/types";

export interface Made {
  type?: string;
  source?: string;
  known?: boolean;
  at?: number;
  parents?: number[];
}

/** An id in the form of a UUID. */
export function idOf(number: number): string {
  return `${number.toString(16).padStart(8, "0")}-0000-7000-8000-000000000000`;
}

/** Make a lineage of events that name their parents by number. */
export function lineageOf(made: Made[], focus = 0): Lineage {
  const edges = made.flatMap(({ parents = [] }, child) => parents.map((parent) => ({ parent: idOf(parent), child: idOf(child) })));
  const { parents, children } = neighbours({ edges });
  const below = reach(idOf(focus), children, null);
  const above = reach(idOf(focus), parents, null);
  const nodes = made.map(({ type = "demo.event", source = "test", known = true, at }, number): LineageNode => {
    const id = idOf(number);
    const status = /\.(failed|error)$/.test(type) ? "failed" : "ok";
    return {
      id,
      depth: below.get(id) ?? -(above.get(id) ?? 0),
      event_type: known ? type : null,
      timestamp: known ? new Date(Date.UTC(2026, 2, 2, 9) + (at ?? number * 40)).toISOString() : null,
      source: known ? source : null,
      status: known ? status : null,
      known,
      parents_total: parents.get(id)?.length ?? 0,
      children_total: children.get(id)?.length ?? 0,
    };
  });
  return {
    focus: idOf(focus),
    direction: "both",
    nodes,
    edges,
    roots: nodes.filter(({ id }) => !parents.has(id)).map(({ id }) => id),
    missing: nodes.filter(({ known }) => !known).map(({ id }) => id),
    cycle: false,
    truncated: { depth: false, limit: false, frontier: [] },
  };
}

export function chain(count: number, focus = 0): Lineage {
  return lineageOf(Array.from({ length: count }, (_, at) => ({ parents: at > 0 ? [at - 1] : [] })), focus);
}

/** One cause with many effects. */
export function star(count: number, type = "llm.response"): Lineage {
  return lineageOf([{ type: "llm.prompt" }, ...Array.from({ length: count - 1 }, () => ({ type, parents: [0] }))]);
}

/** The demo's day: a transcript, two agents, one document, a failure. */
export function demoDay(): Lineage {
  return lineageOf(
    [
      { type: "fireflies.transcript.upload", source: "recorder", at: 0 },
      { type: "fireflies.meeting.transcribed", source: "http-api", parents: [0], at: 42 },
      { type: "fireflies.transcript.ready", source: "fetcher", parents: [1], at: 61 },
      { type: "llm.prompt", source: "scribe", parents: [2], at: 70 },
      { type: "llm.prompt", source: "planner", parents: [2], at: 75 },
      { type: "llm.response", source: "scribe", parents: [3], at: 1910 },
      { type: "llm.response", source: "planner", parents: [4], at: 2500 },
      { type: "artifact.created", source: "writer", parents: [5, 6], at: 2530 },
      { type: "artifact.ingestion.failed", source: "indexer", parents: [7], at: 2600 },
    ],
    7,
  );
}

/** Numbers from 0 to 1 that are the same in each run (mulberry32). */
export function numbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

const TYPES = ["llm.prompt", "llm.response", "artifact.created", "fireflies.transcript.ready", "billing.charge.failed", "mail.sent"];
const SOURCES = ["scribe", "planner", "writer", "fetcher"];

/** Events with one to three causes among those shortly before them. */
export function random(count: number, seed: number, options: { back?: number; forward?: number } = {}): Lineage {
  const next = numbers(seed);
  const pick = <T>(items: T[]): T => items[Math.floor(next() * items.length)]!;
  const made = Array.from({ length: count }, (_, at): Made => {
    const parents = new Set<number>();
    const most = at === 0 ? 0 : next() < 0.7 ? 1 : 3;
    for (let tries = 0; tries < most; tries++) {
      parents.add(Math.max(0, at - 1 - Math.floor(next() * next() * (options.back ?? 30))));
    }
    if (next() < (options.forward ?? 0) && at + 3 < count) parents.add(at + 2);
    return { type: pick(TYPES), source: pick(SOURCES), parents: Array.from(parents), known: at === 0 || next() > 0.03 };
  });
  // What was never seen has no causes that are known.
  for (const event of made) if (event.known === false) event.parents = [];
  return lineageOf(made, Math.floor(count / 2));
}
