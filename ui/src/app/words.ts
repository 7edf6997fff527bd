/** Times, counts, ids and events, as people read them. Pure: the time now is passed in. */

import type { Envelope } from "../api/types";

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"] as const;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Return the first 13 characters of an id: for ids in order of time, the millisecond. */
export function shortId(id: string): string {
  return id.slice(0, 13);
}

/** Say whether a text is a whole event id. */
export function isId(text: string): boolean {
  return UUID.test(text);
}

/** Return a text as the beginning of an id, 4 to 32 hex digits without dashes, or null where it is none. */
export function idPrefix(text: string): string | null {
  const digits = text.trim().replaceAll("-", "").toLowerCase();
  return /^[0-9a-f]{4,32}$/.test(digits) ? digits : null;
}

/** Say whether a type tells of a failure: its last word is `failed` or `error`, as on the server. */
export function isFailure(eventType: string): boolean {
  return /(^|\.)(failed|error)$/.test(eventType);
}

/** Return `15:59:30`, in the time of this machine. */
export function clock(time: Date): string {
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** Return the time of day, with the day in front where that is not today. */
export function shortTime(time: Date, now: Date): string {
  if (time.toDateString() === now.toDateString()) return clock(time);
  const year = time.getFullYear() === now.getFullYear() ? "" : ` ${time.getFullYear()}`;
  return `${time.getDate()} ${MONTHS[time.getMonth()]}${year} ${clock(time)}`;
}

/** Return `28 Nov 2026 15:59:30.123`. */
export function longTime(time: Date): string {
  const milliseconds = String(time.getMilliseconds()).padStart(3, "0");
  return `${time.getDate()} ${MONTHS[time.getMonth()]} ${time.getFullYear()} ${clock(time)}.${milliseconds}`;
}

/** Return how long ago something was: `now`, `12 s ago`, `3 min ago`, `2 h ago`, `5 days ago`. */
export function ago(time: Date, now: Date): string {
  const seconds = (now.getTime() - time.getTime()) / 1000;
  if (seconds < -1) return `in ${span(-seconds)}`;
  return seconds < 1 ? "now" : `${span(seconds)} ago`;
}

/** Return a length of time in one unit, two for the first hours: `300 ms`, `12 s`, `3 min`, `2 h 5 min`, `5 days`. */
export function span(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < MINUTE) return `${seconds < 10 ? trimmed(seconds, 1) : Math.round(seconds)} s`;
  if (seconds < HOUR) return `${Math.round(seconds / MINUTE)} min`;
  if (seconds < DAY) {
    const minutes = Math.round(seconds / MINUTE);
    const rest = minutes % 60;
    return `${Math.floor(minutes / 60)} h${rest > 0 && minutes < 10 * 60 ? ` ${rest} min` : ""}`;
  }
  const days = Math.round(seconds / DAY);
  return `${days} ${days === 1 ? "day" : "days"}`;
}

/** Return seconds of a recording as `1:02:03` or `2:03`. */
export function offset(seconds: number): string {
  const whole = Math.floor(seconds);
  const hours = Math.floor(whole / HOUR);
  const minutes = Math.floor((whole % HOUR) / MINUTE);
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % MINUTE)}` : `${minutes}:${two(whole % MINUTE)}`;
}

/** Return a count with separators: `12,345`. */
export function count(number: number): string {
  return Math.round(number).toLocaleString("en");
}

/** Return `1 event`, `2 events`. */
export function many(number: number, one: string, several = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : several}`;
}

/** Return a rate: `0`, `0.4`, `12`, `1,234`. */
export function rate(perSecond: number): string {
  return perSecond > 0 && perSecond < 10 ? trimmed(perSecond, 1) : count(perSecond);
}

/** Return bytes as `12 kB`, `3.4 MB`. */
export function bytes(number: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let value = number;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit > 0 && value < 10 ? trimmed(value, 1) : Math.round(value)} ${units[unit]}`;
}

/** Return `a`, `a and b`, `a, b and c`. */
export function listed(words: string[]): string {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** Return who made an event: the app, else the host. */
export function maker(envelope: Envelope): string {
  return envelope.source.app ?? envelope.source.host;
}

/** What tells most about a payload, the first that is there. */
const TELLING = ["error_message", "prompt", "response", "title", "text", "summary", "name", "message", "uri", "media_file"];

/** Return a line that tells an event from others of its type; empty where the payload says nothing. */
export function summary(payload: Record<string, unknown>): string {
  for (const name of TELLING) {
    const value = payload[name];
    if (typeof value === "string" && value !== "") return line(value);
  }
  const { error } = payload;
  if (typeof error === "object" && error !== null && "message" in error && typeof error.message === "string") return line(error.message);
  const parts: string[] = [];
  for (const [name, value] of Object.entries(payload)) {
    if (parts.length === 3) break;
    if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") parts.push(`${name}: ${value}`);
  }
  return line(parts.join(", "));
}

/** Return a text on one line, cut to what a row can show. */
function line(text: string): string {
  const start = text.slice(0, 400).replace(/\s+/g, " ").trim();
  return start.length > 160 ? `${start.slice(0, 159)}…` : start;
}

function two(number: number): string {
  return number < 10 ? `0${number}` : String(number);
}

function trimmed(number: number, digits: number): string {
  return String(Number(number.toFixed(digits)));
}
