import { expect, test } from "vitest";

import type { Impact, Job, Lineage, LineageNode, Readiness, Stats } from "../../src/api/types";
import { curlOf, optionsAddress } from "../../src/views/event/EventPage";
import { counterparts } from "../../src/views/event/Exchange";
import { safeLink } from "../../src/views/event/Json";
import { impactSentence } from "../../src/views/event/impact";
import { foundSentence } from "../../src/views/find/FindPage";
import { commonSentence, waySentence } from "../../src/views/find/Relation";
import { askedFor, pageQuery, serverQuery } from "../../src/views/find/query";
import { firstEvent } from "../../src/views/live/EmptyBus";
import { indexSentence, jobSentence, lagSentence, lettersSentence, outboxSentence, verdict } from "../../src/views/state/words";

const WHOLE = { depth: false, limit: false, frontier: [] };
const CUT = { depth: false, limit: true, frontier: ["x"] };

const impact = (patch: Partial<Impact>): Impact => ({
  event_id: "x",
  descendants: 0,
  by_type: {},
  by_source: {},
  by_status: { ok: 0, failed: 0, unknown: 0 },
  first: null,
  last: null,
  truncated: WHOLE,
  ...patch,
});

test("impact in a sentence", () => {
  expect(impactSentence(impact({}))).toBe("It has led to nothing so far.");
  expect(impactSentence(impact({ truncated: CUT }))).toContain("could not be counted");
  const some = impact({
    descendants: 38,
    by_type: { "a.b": 2, "llm.response": 20, "llm.prompt": 15, "c.d": 1 },
    by_source: { scribe: 20, planner: 18 },
    by_status: { ok: 36, failed: 2, unknown: 0 },
    first: "2026-11-28T10:00:00Z",
    last: "2026-11-28T10:04:00Z",
  });
  expect(impactSentence(some)).toBe(
    "It led to 38 events by 2 sources within 4 min: 20 llm.response, 15 llm.prompt, 2 a.b and 1 other. 2 of them failed.",
  );
  expect(impactSentence({ ...some, truncated: CUT })).toMatch(/^It led to at least 38 events.* so there may be more\.$/);
  const one = impact({ descendants: 1, by_type: { "a.failed": 1 }, by_status: { ok: 0, failed: 1, unknown: 0 } });
  const two = { ...one, descendants: 2, by_type: { "a.failed": 2 }, by_status: { ok: 0, failed: 2, unknown: 0 } };
  expect(impactSentence(two)).toBe("It led to 2 events: 2 a.failed. Both failed.");
  expect(impactSentence({ ...two, descendants: 3, by_status: { ok: 0, failed: 3, unknown: 0 } })).toContain("All of them failed.");
  expect(impactSentence(one)).toBe("It led to 1 event: a.failed. That one failed.");
});

const ready = (patch: Partial<Readiness> = {}): Readiness => ({
  ready: true,
  degraded: false,
  stopping: false,
  transport: { ok: true, detail: "It answers.", what: "RabbitMQ" },
  store: { ok: true, detail: "It answers.", what: "Redis", deferred_total: 0, journalled: 0, unjournalled_total: 0, unjournalled_since: null },
  outbox: {
    on: true, ok: true, detail: "", waiting: 0, waiting_bytes: 0, used_bytes: 4096, limit_bytes: 1_000_000_000, set_aside: 0, oldest_seconds: null,
  },
  ...patch,
});

test("the state in a word", () => {
  expect(verdict(ready()).tone).toBe("good");
  const away = { ok: false, detail: "No answer within 2 s.", what: "RabbitMQ" };
  const degraded = verdict(ready({ degraded: true, transport: away }));
  expect([degraded.tone, degraded.sentence]).toEqual(["warn", expect.stringContaining("kept on disk in the outbox")]);
  expect(verdict(ready({ ready: false, degraded: true, transport: away })).title).toBe("Events cannot be accepted.");
  expect(verdict(ready({ ready: false, stopping: true })).title).toBe("The server is stopping.");
});

test("outbox, index and groups in words", () => {
  const { outbox, store } = ready();
  expect(outboxSentence({ ...outbox, on: false })).toContain("There is none");
  expect(outboxSentence(outbox)).toBe("Nothing waits for the bus. 4.1 kB of 1 GB are used.");
  expect(outboxSentence({ ...outbox, waiting: 1200, oldest_seconds: 90, set_aside: 1 })).toBe(
    "1,200 events wait for the bus, the first for 2 min. 1 event was refused for good by the bus. 4.1 kB of 1 GB are used.",
  );
  expect(indexSentence(store)).toBe("");
  expect(indexSentence({ ...store, journalled: 3, unjournalled_total: 2 })).toContain("bb reindex");
  const group = { group: "g", patterns: ["#"], waiting: 0, more: false, delivered: 0 };
  expect(lagSentence(group)).toBe("has handled everything");
  expect(lagSentence({ ...group, delivered: null })).toBe("nothing waits");
  expect(lagSentence({ ...group, waiting: 1 })).toBe("1 event waits");
  expect(lagSentence({ ...group, waiting: 1000, more: true, delivered: 12 })).toBe("at least 1,000 events wait, 12 being handled");
});

test("dead letters and their jobs in words", () => {
  const stats = (patch: Partial<Stats>) => ({ dead_letters: 0, ...patch }) as Stats;
  expect(lettersSentence(stats({ dead_letters: null, dead_letters_detail: "The broker is away." }))).toBe("The broker is away.");
  expect(lettersSentence(stats({ dead_letters: 3 }))).toBe("Consumers gave up on 3 events.");
  const job: Job = { job: "j", kind: "retry", total: 12, done: 5, skipped: 0, failed: 0, finished: false, error: null };
  expect(jobSentence(job)).toBe("Retrying: 5 of 12…");
  expect(jobSentence({ ...job, done: 11, skipped: 1, finished: true })).toBe("Given to their consumers again: 11 events. 1 was gone already.");
  expect(jobSentence({ ...job, finished: true, failed: 7, error: { code: "x", detail: "The broker is away." } })).toBe(
    "It ended early after 5 of 12: The broker is away.",
  );
});

test("what was looked for is in the address, and times have an offset for the server", () => {
  const asked = askedFor(new URLSearchParams("text=a%26b&id=01a2&since=2026-11-28T10:00:00"));
  expect(asked).toEqual({ text: "a&b", id: "01a2", type: "", source: "", since: "2026-11-28T10:00:00", until: "" });
  expect(pageQuery(asked)).toBe("text=a%26b&id=01a2&since=2026-11-28T10%3A00%3A00");
  expect(serverQuery(asked)).toEqual({
    text: "a&b", id_prefix: "01a2", type: null, source: null, since: new Date("2026-11-28T10:00:00").toISOString(), until: null,
  });
  expect(serverQuery({ ...asked, since: "yesterday" })["since"]).toBe("yesterday");
});

test("what was found, in a sentence that does not promise too much", () => {
  expect(foundSentence(0, null, false, true)).toBe("Looking…");
  expect(foundSentence(0, 120, false, false)).toBe("Nothing found among 120 events.");
  expect(foundSentence(0, null, false, false, true)).toBe("There is no event yet.");
  expect(foundSentence(50, null, true, false, true)).toBe("50 events, newest first; there are older ones.");
  expect(foundSentence(2, null, false, false, true)).toBe("2 events, newest first.");
  expect(foundSentence(0, 10_000, true, false)).toBe("Nothing yet among the newest 10,000 events. There are older ones.");
  expect(foundSentence(3, 10_000, true, false)).toBe("3 found among 10,000 events, newest first; there are older ones to look at.");
});

test("no way and no common cause are said only when all was looked at", () => {
  const way = { from: "a", to: "b", direction: null, path: [], edges: [], truncated: WHOLE };
  expect(waySentence({ ...way, found: false })).toBe("Neither of the two led to the other.");
  expect(waySentence({ ...way, found: null, truncated: CUT })).toContain("not known");
  expect(waySentence({ ...way, found: true, direction: "descendants", path: [{}, {}, {}] as LineageNode[] })).toContain("2 steps");
  expect(commonSentence({ ids: [], causes: [], complete: true, truncated: WHOLE })).toBe("They have no cause in common.");
  expect(commonSentence({ ids: [], causes: [], complete: false, truncated: CUT })).toContain("There may be others");
});

test("the other half of a talk with a model is found next to the event", () => {
  const node = (id: string, event_type: string) => ({ id, event_type }) as LineageNode;
  const around = {
    focus: "p",
    nodes: [node("t", "fireflies.transcript.ready"), node("p", "llm.prompt"), node("r", "llm.response"), node("e", "llm.error"), node("x", "llm.response")],
    edges: [{ parent: "t", child: "p" }, { parent: "p", child: "r" }, { parent: "p", child: "e" }, { parent: "r", child: "x" }],
  } as Lineage;
  expect(counterparts(around, true).map(({ id }) => id)).toEqual(["r", "e"]);
  expect(counterparts({ ...around, focus: "r" }, false).map(({ id }) => id)).toEqual(["p"]);
});

test("only addresses of the web are links: payloads are written by anybody", () => {
  expect(safeLink("https://example.org/a?b=c")).toBe("https://example.org/a?b=c");
  for (const text of ["javascript:alert(1)", "data:text/html,x", "notes/a.md", "https://", "see https://example.org", "https://a b"]) {
    expect(safeLink(text)).toBeNull();
  }
});

test("options of the graph stand in the address, defaults do not", () => {
  const query = new URLSearchParams("depth=3&view=timeline");
  expect(optionsAddress("/e/x", query, { depth: 4 })).toBe("/e/x?depth=4&view=timeline");
  expect(optionsAddress("/e/x", query, { depth: null, mode: "graph", colour: "source" })).toBe("/e/x?colour=source");
});

test("commands to copy name no key, but where it is", () => {
  expect(curlOf("http://localhost:8682", "x", false)).toBe("curl -s http://localhost:8682/events/x");
  expect(curlOf("http://localhost:8682", "x", true)).toContain('"Authorization: Bearer $BLOODBANK_API_KEY"');
  expect(firstEvent("http://localhost:8682", false)).not.toContain("Authorization");
});
