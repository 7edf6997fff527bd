/** What came, counted; of the texts themselves only the newest are kept. Pure: the time now is passed in. */

export const MOST_ROWS = 200;
const SECONDS = 60;

export class Feed {
  /** Events since the page was opened. */
  received = 0;
  /** Events that were not taken yet. */
  waiting = 0;
  readonly #texts: string[] = [];
  readonly #capacity: number;
  readonly #perSecond = new Array<number>(SECONDS).fill(0);
  #second = 0;

  constructor(capacity = MOST_ROWS) {
    this.#capacity = capacity;
  }

  /** Take in events that came at a time, in milliseconds. */
  push(texts: string[], nowMs: number): void {
    this.received += texts.length;
    this.waiting += texts.length;
    this.#move(nowMs);
    const bucket = this.#second % SECONDS;
    this.#perSecond[bucket] = (this.#perSecond[bucket] ?? 0) + texts.length;
    const newest = texts.length > this.#capacity ? texts.slice(-this.#capacity) : texts;
    const surplus = this.#texts.length + newest.length - this.#capacity;
    if (surplus > 0) this.#texts.splice(0, surplus);
    this.#texts.push(...newest);
  }

  /** Return the newest of the events that wait, oldest first. No event waits any more. */
  take(): string[] {
    this.waiting = 0;
    return this.#texts.splice(0);
  }

  /** Return how many came in each of the last sixty seconds, oldest first; the last one is not over. */
  perSecond(nowMs: number): number[] {
    this.#move(nowMs);
    const first = (this.#second + 1) % SECONDS;
    return [...this.#perSecond.slice(first), ...this.#perSecond.slice(0, first)];
  }

  /** Count these before what comes: whole seconds of which somebody else knows, oldest first, the last is over. */
  remember(perSecond: number[], nowMs: number): void {
    this.#move(nowMs);
    perSecond.slice(1 - SECONDS).reverse().forEach((number, before) => {
      const bucket = (this.#second - before - 1 + SECONDS) % SECONDS;
      this.#perSecond[bucket] = Math.max(this.#perSecond[bucket] ?? 0, number);
    });
  }

  #move(nowMs: number): void {
    const second = Math.floor(nowMs / 1000);
    if (second > this.#second) {
      const passed = Math.min(second - this.#second, SECONDS);
      for (let ahead = 0; ahead < passed; ahead += 1) this.#perSecond[(second - ahead) % SECONDS] = 0;
      this.#second = second;
    }
  }
}
