/**
 * Server-sent events, read from text in pieces: https://html.spec.whatwg.org/multipage/server-sent-events.html
 *
 * The browser's own EventSource sends no headers, so no key.
 */

export interface Frame {
  /** `message` where the frame does not say. */
  event: string;
  data: string;
  /** The last id that was sent, with this frame or before. */
  id: string;
}

export class FrameReader {
  #rest = "";
  #id = "";

  /** The last id that was sent, also by what was no frame; empty while none was. */
  get id(): string {
    return this.#id;
  }

  /** Return the frames that are complete now. A frame without data is none; comments are left out. */
  push(text: string): Frame[] {
    const frames: Frame[] = [];
    let buffer = this.#rest + text;
    if (buffer.includes("\r")) {
      // A line may end with the next piece: what looks like a lone carriage return waits.
      const held = buffer.endsWith("\r") ? "\r" : "";
      buffer = buffer.slice(0, buffer.length - held.length).replace(/\r\n?/g, "\n") + held;
    }
    let start = 0;
    for (;;) {
      const end = buffer.indexOf("\n\n", start);
      if (end < 0) break;
      const frame = this.#read(buffer, start, end);
      if (frame !== null) frames.push(frame);
      start = end + 2;
    }
    this.#rest = buffer.slice(start);
    return frames;
  }

  #read(buffer: string, start: number, end: number): Frame | null {
    let event = "message";
    let data: string | null = null;
    let at = start;
    while (at < end) {
      let stop = buffer.indexOf("\n", at);
      if (stop < 0 || stop > end) stop = end;
      let colon = buffer.indexOf(":", at);
      if (colon < 0 || colon > stop) colon = stop;
      const field = buffer.slice(at, colon);
      const value = buffer.slice(buffer[colon + 1] === " " ? Math.min(colon + 2, stop) : Math.min(colon + 1, stop), stop);
      if (field === "data") data = data === null ? value : `${data}\n${value}`;
      else if (field === "event") event = value;
      else if (field === "id" && !value.includes("\0")) this.#id = value;
      at = stop + 1;
    }
    return data === null ? null : { event, data, id: this.#id };
  }
}
