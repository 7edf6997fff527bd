/** The frame around every page: where one is, where one can go, and what to look for. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { EventPage } from "../views/event/EventPage";
import { FindPage } from "../views/find/FindPage";
import { LivePage } from "../views/live/LivePage";
import { StatePage } from "../views/state/StatePage";
import { KeyPrompt } from "./KeyPrompt";
import { Logo } from "./Logo";
import { go, pageOf, place, type Page } from "./router";
import { THEMES, chooseTheme, theme, type Theme } from "./theme";
import { idPrefix, isId, shortId } from "./words";

const PAGES = [
  { path: "/", name: "live", label: "Live" },
  { path: "/find", name: "find", label: "Find" },
  { path: "/state", name: "state", label: "State" },
] as const;

export function App(): JSX.Element {
  const { path } = place.value;
  const page = pageOf(path);
  const main = useRef<HTMLElement>(null);
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = titleOf(page);
    // Whoever follows a link by keyboard or hears the page goes on in what is new. The graph keeps its own focus.
    const isInGraph = document.activeElement?.closest(".graph") != null;
    if (!isFirst.current && !isInGraph) main.current?.focus({ preventScroll: true });
    isFirst.current = false;
  }, [path]);
  return (
    <div class={`frame frame-${page.name}`}>
      <a class="skip" href="#main" onClick={(event) => skip(event, main.current)}>
        Skip to the content
      </a>
      <header class="top">
        <a class="home" href="/" aria-label="Bloodbank, live events">
          <Logo />
          <span>Bloodbank</span>
        </a>
        <nav aria-label="Pages">
          {PAGES.map(({ path: to, name, label }) => (
            <a key={to} href={to} aria-current={page.name === name ? "page" : undefined}>
              {label}
            </a>
          ))}
        </nav>
        <Search />
        <ThemeChoice />
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        <Body page={page} />
      </main>
      <KeyPrompt />
    </div>
  );
}

function Body({ page }: { page: Page }): JSX.Element {
  switch (page.name) {
    case "live":
      return <LivePage />;
    case "event":
      return <EventPage id={page.id} />;
    case "find":
      return <FindPage />;
    case "state":
      return <StatePage />;
    case "unknown":
      return (
        <div class="page">
          <h1>No such page</h1>
          <p>
            The explorer has <a href="/">live events</a>, <a href="/find">a search</a> and <a href="/state">the state of the bus</a>.
          </p>
        </div>
      );
  }
}

function Search(): JSX.Element {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const focus = (event: KeyboardEvent) => {
      if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
      event.preventDefault();
      field.current?.focus();
      field.current?.select();
    };
    addEventListener("keydown", focus);
    return () => removeEventListener("keydown", focus);
  }, []);
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const text = field.current?.value.trim() ?? "";
    if (text === "" || field.current === null) return;
    go(addressOf(text));
    field.current.value = "";
  };
  return (
    <form role="search" class="search" onSubmit={submit}>
      <input
        ref={field}
        type="search"
        aria-label="Find an event by id or text"
        aria-keyshortcuts="Control+K Meta+K"
        placeholder="Find id or text   Ctrl K"
        autocomplete="off"
        spellcheck={false}
      />
    </form>
  );
}

/** Return where a search leads: to the event itself, to those whose id begins so, or to those with the text. */
export function addressOf(text: string): string {
  if (isId(text)) return `/e/${text.toLowerCase()}`;
  const prefix = idPrefix(text);
  // Words such as `dead` and `face` are hex digits as well; ids have a digit among the first eight nearly always.
  if (prefix !== null && /\d/.test(prefix)) return `/find?id=${prefix}`;
  return `/find?${new URLSearchParams({ text }).toString()}`;
}

function ThemeChoice(): JSX.Element {
  return (
    <select
      class="theme"
      aria-label="Theme"
      value={theme.value}
      onChange={(event) => chooseTheme(event.currentTarget.value as Theme)}
    >
      {THEMES.map((name) => (
        <option key={name} value={name}>
          {name === "auto" ? "System theme" : name === "light" ? "Light theme" : "Dark theme"}
        </option>
      ))}
    </select>
  );
}

function titleOf(page: Page): string {
  switch (page.name) {
    case "live":
      return "Live · Bloodbank";
    case "event":
      return `${shortId(page.id)} · Bloodbank`;
    case "find":
      return "Find · Bloodbank";
    case "state":
      return "State · Bloodbank";
    case "unknown":
      return "Bloodbank";
  }
}

function skip(event: MouseEvent, main: HTMLElement | null): void {
  event.preventDefault();
  main?.focus();
}
