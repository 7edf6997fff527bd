/** The bus has no event yet: how to send one, or have the demo play. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { ApiError, api, key } from "../../api/client";
import { Copy, Trouble, useLoad } from "../../app/parts";
import { go } from "../../app/router";

export function EmptyBus(): JSX.Element {
  return (
    <div class="empty">
      <h2>No event yet</h2>
      <p>Send one, and it appears here:</p>
      <div class="command">
        <pre>
          <code>{firstEvent(location.origin, key() !== null)}</code>
        </pre>
        <Copy text={() => firstEvent(location.origin, key() !== null)} label="Copy" />
      </div>
      <Demo />
    </div>
  );
}

/** Return the command that publishes a first event. */
export function firstEvent(origin: string, withKey: boolean): string {
  return [
    `curl ${origin}/events/llm/prompt \\`,
    ...(withKey ? [`  -H "Authorization: Bearer $BLOODBANK_API_KEY" \\`] : []),
    `  -H 'Content-Type: application/json' \\`,
    `  -d '{"provider": "anthropic", "prompt": "Summarise the call."}'`,
  ].join("\n");
}

/** Plays the demo day, where the server does that: on the embedded bus alone. */
function Demo(): JSX.Element | null {
  const [state, setState] = useState<"idle" | "playing" | "refused">("idle");
  const [error, setError] = useState<Error | null>(null);
  const readiness = useLoad("readiness", api.readiness);
  // The first words of what the settings chose; the server has the last word, when it is asked to play.
  const ready = readiness.value;
  const isEmbedded = ready !== null && ready.transport.what.startsWith("embedded") && ready.store.what.startsWith("SQLite");
  if (state === "refused" || !isEmbedded) return null;
  const play = async () => {
    setState("playing");
    setError(null);
    try {
      const from = location.href;
      const played = await api.playDemo();
      // Whoever went elsewhere meanwhile stays there.
      if (location.href === from) go(`/e/${played.focus}`);
    } catch (failure) {
      if (failure instanceof ApiError && (failure.status === 409 || failure.status === 404)) {
        setState("refused");
        return;
      }
      setState("idle");
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
  };
  return (
    <>
      <p>Or let a day of an agent pipeline be played onto this bus: a call, two agents, one document.</p>
      <p>
        <button type="button" class="primary" disabled={state === "playing"} onClick={() => void play()}>
          {state === "playing" ? "Playing…" : "Play the demo"}
        </button>
      </p>
      {error === null ? null : <Trouble error={error} />}
    </>
  );
}
