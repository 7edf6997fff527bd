/** The state of the bus in plain words. Pure. */

import type { GroupLag, Job, Readiness, Stats } from "../../api/types";
import { bytes, count, many, span } from "../../app/words";

export type Tone = "good" | "warn" | "bad";

export interface Verdict {
  tone: Tone;
  title: string;
  sentence: string;
}

/** Return whether events are accepted, and what is not as it should be. */
export function verdict(ready: Readiness): Verdict {
  if (ready.stopping) {
    return { tone: "bad", title: "The server is stopping.", sentence: "What is under way is finished; send new events to another server, or wait." };
  }
  if (!ready.ready) {
    const outbox = ready.outbox.on ? "and the outbox takes nothing more" : "and there is no outbox to keep them";
    return { tone: "bad", title: "Events cannot be accepted.", sentence: `The bus does not answer ${outbox}. Publishers are told to try again.` };
  }
  if (!ready.degraded) return { tone: "good", title: "The bus works.", sentence: "Events are accepted, kept and connected with their causes." };
  const parts: string[] = [];
  if (!ready.transport.ok) parts.push("The bus does not answer: events are kept on disk in the outbox, and forwarded when it is back.");
  if (!ready.store.ok) parts.push("The index of causes does not answer: causes are kept on disk, and questions about them have to wait.");
  if (!ready.outbox.ok) parts.push("The outbox cannot take more: while the bus is away, events would be refused.");
  return { tone: "warn", title: "Events are accepted, but not all is well.", sentence: parts.join(" ") };
}

/** Return what waits in the outbox. */
export function outboxSentence(outbox: Readiness["outbox"]): string {
  if (!outbox.on) return "There is none: this bus writes to its own disk, or the settings switched it off.";
  const parts = [
    outbox.waiting === 0
      ? "Nothing waits for the bus."
      : `${many(outbox.waiting, "event")} wait${outbox.waiting === 1 ? "s" : ""} for the bus${
          outbox.oldest_seconds === null ? "" : `, the first for ${span(outbox.oldest_seconds)}`
        }.`,
    outbox.set_aside === 0 ? "" : `${many(outbox.set_aside, "event was", "events were")} refused for good by the bus.`,
    `${bytes(outbox.used_bytes)} of ${bytes(outbox.limit_bytes)} are used.`,
  ];
  return parts.filter((part) => part !== "").join(" ");
}

/** Return what of the index is behind. Empty while nothing is. */
export function indexSentence(store: Readiness["store"]): string {
  const parts: string[] = [];
  if (store.journalled > 0) parts.push(`Causes of ${many(store.journalled, "event")} wait on disk until the index takes them.`);
  if (store.unjournalled_total > 0) {
    parts.push(`For ${many(store.unjournalled_total, "event")} there was no room; run bb reindex, which finds them in the log.`);
  }
  return parts.join(" ");
}

/** Return how far a group of consumers is. */
export function lagSentence(group: GroupLag): string {
  const parts: string[] = [];
  if (group.waiting > 0) parts.push(`${group.more ? "at least " : ""}${many(group.waiting, "event")} wait${group.waiting === 1 ? "s" : ""}`);
  if (group.delivered !== null && group.delivered > 0) parts.push(`${count(group.delivered)} being handled`);
  return parts.length > 0 ? parts.join(", ") : group.delivered === null ? "nothing waits" : "has handled everything";
}

/** Return how many dead letters there are. */
export function lettersSentence(stats: Stats): string {
  if (stats.dead_letters === null) return stats.dead_letters_detail ?? "How many there are cannot be said now.";
  return stats.dead_letters === 0 ? "None." : `Consumers gave up on ${many(stats.dead_letters, "event")}.`;
}

/** Return how far a job is, or its outcome. */
export function jobSentence(job: Job): string {
  const total = job.total === null ? "" : ` of ${count(job.total)}`;
  if (!job.finished) return `Retrying: ${count(job.done)}${total}…`;
  const skipped = job.skipped > 0 ? ` ${count(job.skipped)} ${job.skipped === 1 ? "was" : "were"} gone already.` : "";
  if (job.error !== null) return `It ended early after ${count(job.done)}${total}: ${job.error.detail}${skipped}`;
  return `Given to their consumers again: ${many(job.done, "event")}.${skipped}`;
}
