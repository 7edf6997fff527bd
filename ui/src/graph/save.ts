/** Files of the graph: the colours of the page as they are now, and handing a file to the reader. */

import { COLOURS } from "./colour";
import type { Palette } from "./export";

/** Read the colours from an element's custom properties, which graph.css sets for the theme. */
export function paletteOf(element: Element): Palette {
  const styles = getComputedStyle(element);
  const read = (name: string) => styles.getPropertyValue(`--g-${name}`).trim();
  return {
    background: read("background"),
    box: read("box"),
    line: read("line"),
    text: read("text"),
    muted: read("muted"),
    failed: read("failed"),
    accent: read("accent"),
    marks: Array.from({ length: COLOURS + 1 }, (_, at) => read(`c${at}`)),
  };
}

/** Let the browser save a file. */
export function save(name: string, content: Blob): void {
  const url = URL.createObjectURL(content);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // The browser reads it after this task.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
