import type { JSX } from "preact";

/** One event and the two that it led to. */
export function Logo(): JSX.Element {
  return (
    <svg class="logo" viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <rect width="32" height="32" rx="7" />
      <path d="M16 9.5 L9.5 22.5 M16 9.5 L22.5 22.5" />
      <circle cx="16" cy="9.5" r="3.6" />
      <circle cx="9.5" cy="22.5" r="3.6" />
      <circle cx="22.5" cy="22.5" r="3.6" />
    </svg>
  );
}
