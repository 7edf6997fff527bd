/** Where the page is: the address, and moving from one to another without loading it anew. */

import { computed, signal } from "@preact/signals";

export interface Place {
  path: string;
  query: URLSearchParams;
}

const here = signal(read());

/** The address that the page shows. */
export const place = computed(() => here.value);

/** The page of an address, and what names its subject. */
export type Page = { name: "live" } | { name: "event"; id: string } | { name: "find" } | { name: "state" } | { name: "unknown" };

/** Return the page that a path shows. */
export function pageOf(path: string): Page {
  if (path === "/") return { name: "live" };
  if (path === "/find") return { name: "find" };
  if (path === "/state") return { name: "state" };
  const event = /^\/e\/([^/]+)$/.exec(path);
  if (event?.[1] !== undefined) return { name: "event", id: decoded(event[1]) };
  return { name: "unknown" };
}

/** Go to an address of the explorer. `replace`: without a step to go back to. */
export function go(url: string, { replace = false } = {}): void {
  if (replace) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  here.value = read();
}

/** Follow the browser's back and forward, and links within the explorer. */
export function startRouter(): void {
  addEventListener("popstate", () => {
    here.value = read();
  });
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
    if (!(link instanceof HTMLAnchorElement) || link.target !== "" || link.hasAttribute("download")) return;
    if (link.origin !== location.origin || pageOf(link.pathname).name === "unknown") return;
    event.preventDefault();
    go(link.pathname + link.search);
    scrollTo(0, 0);
  });
}

function read(): Place {
  return { path: location.pathname, query: new URLSearchParams(location.search) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
