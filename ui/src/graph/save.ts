/** Files of the graph: the colours of the page as they are now, and handing a file to the reader. */

import { COLOURS } from "./colour";
import type { Palette } from "./export";

/** Read the colours that graph.css gives an element now: custom properties, resolved for the theme. */
export function paletteOf(element: Element): Palette {
  const probe = element.appendChild(document.createElement("span"));
  const read = (name: string) => {
    probe.style.color = `var(--g-${name})`;
    return getComputedStyle(probe).color;
  };
  const palette = {
    background: read("background"),
    box: read("box"),
    line: read("line"),
    text: read("text"),
    muted: read("muted"),
    failed: read("failed"),
    accent: read("accent"),
    marks: Array.from({ length: COLOURS + 1 }, (_, at) => read(`c${at}`)),
  };
  probe.remove();
  return palette;
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
