/**
 * The rows of the live list. They are made once and written anew: at a thousand events a second, elements that come and
 * go would keep the browser busy collecting them.
 */

import type { Envelope } from "../../api/types";
import { clock, isFailure, maker, shortId, summary } from "../../app/words";
import { MOST_ROWS } from "./feed";

interface Row {
  item: HTMLLIElement;
  link: HTMLAnchorElement;
  time: Text;
  type: Text;
  mark: Text;
  summary: Text;
  source: Text;
  causes: Text;
  id: Text;
}

export class Rows {
  readonly #list: HTMLElement;
  /** Newest first, as they stand in the page. */
  readonly #rows: Row[] = [];

  constructor(list: HTMLElement) {
    this.#list = list;
  }

  get length(): number {
    return this.#rows.length;
  }

  /** Put events on top, oldest first; what is more than `limit` rows falls off below. Return how many of them failed. */
  add(envelopes: Envelope[], limit = MOST_ROWS): number {
    const newest = envelopes.slice(-limit);
    const fresh: Row[] = [];
    const fragment = document.createDocumentFragment();
    const focused = document.activeElement;
    let failed = 0;
    for (const envelope of newest.reverse()) {
      let row: Row;
      const last = this.#rows.length + fresh.length < limit ? undefined : this.#rows.pop();
      // A row that has the focus is left to fall off: written anew, it would be another event under somebody's finger.
      if (last === undefined || last.link === focused) {
        last?.item.remove();
        row = makeRow();
      } else {
        row = last;
      }
      if (write(row, envelope)) failed += 1;
      fresh.push(row);
      fragment.append(row.item);
    }
    while (this.#rows.length + fresh.length > limit) this.#rows.pop()?.item.remove();
    this.#rows.unshift(...fresh);
    this.#list.prepend(fragment);
    this.#rove();
    return failed;
  }

  /** Put older events below, newest first, as far as there is room. */
  addOlder(envelopes: Envelope[]): void {
    for (const envelope of envelopes.slice(0, MOST_ROWS - this.#rows.length)) {
      const row = makeRow();
      write(row, envelope);
      this.#rows.push(row);
      this.#list.append(row.item);
    }
    this.#rove();
  }

  clear(): void {
    this.#rows.length = 0;
    this.#list.replaceChildren();
  }

  /** Move the focus by some rows; the list is one stop for the tabulator. Return whether it moved. */
  move(from: Element | null, by: number): boolean {
    const at = this.#rows.findIndex((row) => row.link === from);
    const to = this.#rows[Math.min(this.#rows.length - 1, Math.max(0, at + by))];
    if (at < 0 || to === undefined || to.link === from) return false;
    for (const row of this.#rows) row.link.tabIndex = -1;
    to.link.tabIndex = 0;
    to.link.focus();
    return true;
  }

  #rove(): void {
    const inside = this.#rows.find((row) => row.link === document.activeElement) ?? this.#rows[0];
    for (const row of this.#rows) {
      const wanted = row === inside ? 0 : -1;
      if (row.link.tabIndex !== wanted) row.link.tabIndex = wanted;
    }
  }
}

function makeRow(): Row {
  const item = document.createElement("li");
  const link = document.createElement("a");
  item.append(link);
  const cell = (name: string) => {
    const text = document.createTextNode("");
    const span = document.createElement("span");
    span.className = name;
    span.append(text);
    // Spaces keep the words of a row apart for who hears or copies it.
    link.append(span, " ");
    return text;
  };
  return {
    item,
    link,
    time: cell("row-time"),
    type: cell("row-type"),
    mark: cell("row-mark"),
    summary: cell("row-summary"),
    source: cell("row-source"),
    causes: cell("row-causes"),
    id: cell("row-id"),
  };
}

function write(row: Row, envelope: Envelope): boolean {
  const failed = isFailure(envelope.event_type);
  const causes = envelope.correlation_ids.length;
  row.link.href = `/e/${envelope.event_id}`;
  row.item.className = failed ? "failed" : "";
  row.time.data = clock(new Date(envelope.timestamp));
  row.type.data = envelope.event_type;
  row.mark.data = failed ? "failed" : "";
  row.summary.data = summary(envelope.payload);
  row.source.data = maker(envelope);
  row.causes.data = causes === 0 ? "" : causes === 1 ? "1 cause" : `${causes} causes`;
  row.id.data = shortId(envelope.event_id);
  return failed;
}
