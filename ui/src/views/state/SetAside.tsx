/** What the bus refused for good, and sending it again. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { api } from "../../api/client";
import { Trouble, useLoad } from "../../app/parts";
import { many } from "../../app/words";

const MOST_LISTED = 5;

export function SetAside(): JSX.Element {
  const page = useLoad("set aside", api.setAside, 10);
  const [said, setSaid] = useState("");
  const [error, setError] = useState<Error | null>(null);
  const retry = async () => {
    setError(null);
    try {
      setSaid(`${many((await api.retryOutbox()).retried, "event")} will be sent again.`);
      page.reload();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
  };
  if (page.value === null) return page.error === null ? <p class="hint">Asking which…</p> : <Trouble error={page.error} retry={page.reload} />;
  return (
    <>
      <ul class="set-aside">
        {page.value.items.slice(0, MOST_LISTED).map((item) => (
          <li key={item.event_id}>
            <code>{item.event_type}</code> {item.reason ?? ""}
          </li>
        ))}
      </ul>
      <p>
        <button type="button" onClick={() => void retry()}>
          Send all of them again
        </button>{" "}
        <span role="status">{said}</span>
      </p>
      {error === null ? null : <Trouble error={error} />}
    </>
  );
}
