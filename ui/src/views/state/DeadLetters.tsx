/** What consumers gave up on, by consumer and error; one of them or a whole group is retried. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { api } from "../../api/client";
import type { DeadLetter, DeadLetterGroup } from "../../api/types";
import { Trouble, When, useLoad } from "../../app/parts";
import { count, many, shortId } from "../../app/words";
import { jobSentence } from "./words";

const EVERY_SECONDS = 5;
const JOB_EVERY_MS = 500;

export function DeadLetters(): JSX.Element {
  const groups = useLoad("dead letters", api.deadLetterGroups, EVERY_SECONDS);
  // Kept here: a group that was retried is no longer in the list.
  const [said, setSaid] = useState("");
  if (groups.value === null) return groups.error === null ? <p class="hint">Asking…</p> : <Trouble error={groups.error} retry={groups.reload} />;
  return (
    <>
      {groups.error === null ? null : <Trouble error={groups.error} retry={groups.reload} />}
      <p role="status" class="letter-said">
        {said}
      </p>
      <ul class="letter-groups">
        {groups.value.items.map((group) => (
          <Group key={group.key} group={group} onSay={setSaid} onChange={groups.reload} />
        ))}
      </ul>
      {groups.value.next === null ? null : <p class="hint">There are more groups than these; bb dlq groups lists all.</p>}
    </>
  );
}

function Group({ group, onSay, onChange }: { group: DeadLetterGroup; onSay(sentence: string): void; onChange(): void }): JSX.Element {
  const [error, setError] = useState<Error | null>(null);
  const [isBusy, setBusy] = useState(false);
  const [isOpen, setOpen] = useState(false);
  const stopping = useRef(new AbortController());
  useEffect(() => () => stopping.current.abort(), []);
  const retry = async () => {
    setBusy(true);
    setError(null);
    try {
      let job = await api.retryGroup(group.key);
      for (;;) {
        onSay(jobSentence(job));
        if (job.finished || stopping.current.signal.aborted) break;
        await new Promise((done) => setTimeout(done, JOB_EVERY_MS));
        job = await api.job(job.job, stopping.current.signal);
      }
      onChange();
    } catch (failure) {
      if (!stopping.current.signal.aborted) setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
    setBusy(false);
  };
  const who = group.consumer === "" ? (group.group ?? "a subscription without a group") : group.consumer;
  return (
    <li class="letter-group">
      <div class="letter-head">
        <p>
          <strong>{many(group.count, "event")}</strong> failed in <code>{who}</code> with <span class="failed">{group.error}</span>
          <span class="hint">
            {" "}
            {group.count > 1 ? (
              <>
                from <When time={group.first_at} /> to <When time={group.last_at} />
              </>
            ) : (
              <When time={group.last_at} />
            )}
          </span>
        </p>
        <button type="button" disabled={isBusy || group.group === null} onClick={() => void retry()}>
          {group.count === 1 ? "Retry" : `Retry all ${count(group.count)}`}
        </button>
      </div>
      <p class="letter-reason">{group.sample.reason}</p>
      {error === null ? null : <Trouble error={error} />}
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>{group.count === 1 ? "Show it" : "Show them"}</summary>
        {isOpen ? <Letters group={group} onSay={onSay} onChange={onChange} /> : null}
      </details>
    </li>
  );
}

function Letters({ group, onSay, onChange }: { group: DeadLetterGroup; onSay(sentence: string): void; onChange(): void }): JSX.Element {
  const [cursors, setCursors] = useState<(string | null)[]>([null]);
  const cursor = cursors.at(-1) ?? null;
  const page = useLoad(`letters ${group.key} ${cursor}`, (signal) => api.deadLetters(group.key, cursor, signal));
  const changed = (letter: DeadLetter) => {
    onSay(`${letter.event_type} ${shortId(letter.event_id)} was given to its consumers again.`);
    page.reload();
    onChange();
  };
  if (page.value === null) return page.error === null ? <p class="hint">Asking…</p> : <Trouble error={page.error} retry={page.reload} />;
  const { items, next } = page.value;
  return (
    <>
      <ul class="letters">
        {items.map((letter) => (
          <Letter key={letter.number} letter={letter} onChange={() => changed(letter)} />
        ))}
      </ul>
      {items.length === 0 ? <p class="hint">None on this page.</p> : null}
      <p class="buttons">
        {cursors.length > 1 ? (
          <button type="button" onClick={() => setCursors((before) => before.slice(0, -1))}>
            Back
          </button>
        ) : null}
        {next === null ? null : (
          <button type="button" onClick={() => setCursors((before) => [...before, next])}>
            More
          </button>
        )}
      </p>
    </>
  );
}

function Letter({ letter, onChange }: { letter: DeadLetter; onChange(): void }): JSX.Element {
  const [error, setError] = useState<Error | null>(null);
  const [isBusy, setBusy] = useState(false);
  const retry = async () => {
    setBusy(true);
    setError(null);
    try {
      await api.retryLetter(letter.number);
      onChange();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
    setBusy(false);
  };
  return (
    <li>
      <div class="letter-head">
        <p>
          <a href={`/e/${letter.event_id}`}>
            {letter.event_type} <code>{shortId(letter.event_id)}</code>
          </a>{" "}
          <span class="hint">
            {many(letter.attempts, "attempt")}, given up <When time={letter.dead_at} form="ago" />
          </span>
        </p>
        <button type="button" disabled={isBusy || letter.group === null} onClick={() => void retry()} aria-label={`Retry ${letter.event_type} ${shortId(letter.event_id)}`}>
          Retry
        </button>
      </div>
      <p class="letter-reason">{letter.reason}</p>
      {letter.traceback === "" ? null : (
        <details>
          <summary>Where it failed</summary>
          <pre tabIndex={0}>{letter.traceback}</pre>
        </details>
      )}
      {error === null ? null : <Trouble error={error} />}
    </li>
  );
}
