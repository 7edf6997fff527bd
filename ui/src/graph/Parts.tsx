/** Small parts around the drawing. */

import type { JSX } from "preact";

export function Problem({ text, onRetry }: { text: string; onRetry(): void }): JSX.Element {
  return (
    <p class="graph-problem" role="alert">
      {text}{" "}
      <button type="button" onClick={onRetry}>
        Try again
      </button>
    </p>
  );
}

const KEYS: [string, string][] = [
  ["↑ ↓", "to a cause, to an effect"],
  ["← →", "to a sibling"],
  ["n p", "to the next event, to the one before"],
  ["Home", "back to this event"],
  ["Enter", "open the event, or take events out of a group"],
  ["+ −", "show what is not drawn, fold it again"],
  ["z x", "zoom in, zoom out; so does the wheel once the graph has been clicked, and Ctrl with the wheel"],
  ["0", "show everything"],
  ["Shift with arrows", "move the drawing; so does dragging"],
];

export function Keys(): JSX.Element {
  return (
    <details class="graph-keys">
      <summary>Keys</summary>
      <dl>
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt>{keys}</dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}
