/** Asks for an API key when the server wants one. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { key, keyWanted, useKey } from "../api/client";

export function KeyPrompt(): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const isOurs = useRef(false);
  const why = keyWanted.value;
  useEffect(() => {
    const box = dialog.current;
    if (box === null) return;
    if (why !== null && !box.open) box.showModal();
    if (why === null && box.open) {
      isOurs.current = true;
      box.close();
    }
  }, [why]);
  // Escape closes it as well. The event comes later than what closed it: a wrong key may be asked for again by then.
  const closed = () => {
    if (!isOurs.current) keyWanted.value = null;
    isOurs.current = false;
  };
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const field = (event.currentTarget as HTMLFormElement).elements.namedItem("key") as HTMLInputElement;
    const given = field.value.trim();
    if (given === "") return;
    field.value = "";
    useKey(given);
  };
  return (
    <dialog ref={dialog} class="key-prompt" aria-labelledby="key-title" onClose={closed}>
      <form onSubmit={submit}>
        <h2 id="key-title">This server asks for a key</h2>
        <p role="alert">{why}</p>
        <label>
          API key
          <input name="key" type="password" autocomplete="off" spellcheck={false} required />
        </label>
        <p class="hint">
          It is kept in this tab until you close it, and sent to this server alone. Reading needs the scope <code>read</code>
          , playing the demo <code>publish</code>, dead letters <code>admin</code>.
        </p>
        <div class="buttons">
          <button type="submit" class="primary">
            Use this key
          </button>
          {key() === null ? null : (
            <button type="button" onClick={() => useKey(null)}>
              Forget the key of this tab
            </button>
          )}
          <button type="button" onClick={() => (keyWanted.value = null)}>
            Not now
          </button>
        </div>
      </form>
    </dialog>
  );
}
