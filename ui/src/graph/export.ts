/** The drawing as a file: SVG and PNG in the colours of the page, and the graph as Mermaid text. */

import { COLOURS, type Legend } from "./colour";
import type { Drawing, Lineage, PlacedBox } from "./types";
import { detailOf, shortId, titleOf } from "./words";

/** Colours of a drawing, as CSS colours. */
export interface Palette {
  background: string;
  box: string;
  line: string;
  text: string;
  muted: string;
  failed: string;
  accent: string;
  /** One for each of the legend's colours, the last for all others. */
  marks: string[];
}

const MARGIN = 24;
const LEGEND_HEIGHT = 34;
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
/** Browsers refuse larger canvases. */
const MOST_PIXELS = 8192;

/** Return an SVG document that needs nothing else. */
export function toSvg(drawing: Drawing, focus: string, legend: Legend, palette: Palette): string {
  const { width, height } = svgSize(drawing, legend);
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${FONT}">`,
    `<rect width="100%" height="100%" fill="${palette.background}"/>`,
    `<g transform="translate(${MARGIN} ${MARGIN})">`,
  ];
  for (const lane of drawing.lanes) {
    parts.push(
      `<path d="M0 ${lane.top}H${drawing.width}" stroke="${palette.line}" stroke-opacity="0.4"/>`,
      `<text x="0" y="${lane.top + 18}" font-size="12" font-weight="600" fill="${palette.muted}">${escape(cut(lane.name, 180, 7))}</text>`,
    );
  }
  for (const { x, label } of drawing.ticks) {
    parts.push(`<text x="${x}" y="16" font-size="11" fill="${palette.muted}">${escape(label)}</text>`);
  }
  for (const edge of drawing.edges) {
    const dash = edge.against ? ' stroke-dasharray="5 4"' : "";
    parts.push(`<path d="${edge.path}" fill="none" stroke="${palette.line}" stroke-width="1.5"${dash}/>`);
  }
  for (const box of drawing.nodes) parts.push(boxSvg(box, box.id === focus, legend.colourOf(box), palette));
  parts.push("</g>", legendSvg(legend, height - LEGEND_HEIGHT, palette), "</svg>");
  return parts.join("\n");
}

function svgSize(drawing: Drawing, legend: Legend): { width: number; height: number } {
  const legendWidth = legend.items.reduce((sum, { name }) => sum + legendStep(name), 2 * MARGIN);
  return {
    width: Math.ceil(Math.max(drawing.width + 2 * MARGIN, Math.min(legendWidth, 1600))),
    height: Math.ceil(drawing.height + 2 * MARGIN + LEGEND_HEIGHT),
  };
}

function legendStep(name: string): number {
  return 34 + name.length * 7;
}

function legendSvg(legend: Legend, top: number, palette: Palette): string {
  let x = MARGIN;
  return legend.items
    .map(({ name, colour }) => {
      const item =
        `<rect x="${x}" y="${top}" width="12" height="12" rx="3" fill="${palette.marks[colour]}"/>` +
        `<text x="${x + 18}" y="${top + 10.5}" font-size="12" fill="${palette.muted}">${escape(name)}</text>`;
      x += legendStep(name);
      return item;
    })
    .join("");
}

function boxSvg(box: PlacedBox, isFocus: boolean, colour: number, palette: Palette): string {
  const { width, height } = box;
  const stroke = box.failed ? palette.failed : isFocus ? palette.accent : palette.line;
  const rect = (x: number, y: number, more: string) =>
    `<rect x="${x}" y="${y}" width="${width}" height="${height}" rx="8" ${more}/>`;
  const parts = [`<g transform="translate(${box.x - width / 2} ${box.y - height / 2})">`];
  if (box.events.length > 1) parts.push(rect(5, 5, `fill="${palette.box}" stroke="${stroke}"`));
  const dash = box.known ? "" : ' stroke-dasharray="5 4"';
  parts.push(rect(0, 0, `fill="${palette.box}" stroke="${stroke}" stroke-width="${isFocus ? 3 : box.failed ? 2 : 1.25}"${dash}`));
  if (box.known) parts.push(`<path d="${BAR}" fill="${palette.marks[colour] ?? palette.marks[COLOURS]}"/>`);
  const room = width - 28 - (box.failed ? 20 : 0);
  parts.push(
    `<text x="16" y="21" font-size="13" font-weight="600" fill="${palette.text}">${escape(cut(titleOf(box), room, 7.3))}</text>`,
    `<text x="16" y="38" font-size="11" fill="${palette.muted}">${escape(cut(detailOf(box), width - 26, 6.1))}</text>`,
  );
  if (box.failed) parts.push(`<path d="${failedMark(width)}" fill="none" stroke="${palette.failed}" stroke-width="2.5" stroke-linecap="round"/>`);
  parts.push("</g>");
  return parts.join("");
}

/** The coloured bar at the left edge of a box. */
export const BAR = "M4 9a3 3 0 0 1 6 0V41a3 3 0 0 1 -6 0Z";

/** The cross that says failed, at the right upper corner of a box. */
export function failedMark(width: number): string {
  return `M${width - 22} 11l10 10m0 -10l-10 10`;
}

/** Cut a text that is wider than its room; `each` is the width of a character, in pixels. */
export function cut(text: string, room: number, each: number): string {
  const most = Math.floor(room / each);
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;
}

/** Escape a text for XML; characters that XML does not know are left out. */
function escape(text: string): string {
  const known = text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "");
  return known.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}

/**
 * Return a PNG of an SVG document, twice as large where the browser's canvas allows it.
 *
 * Rejects with an Error when the browser cannot draw it.
 */
export async function toPng(svg: string): Promise<Blob> {
  const url = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const scale = Math.min(2, MOST_PIXELS / image.width, MOST_PIXELS / image.height);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(image.width * scale));
    canvas.height = Math.max(1, Math.floor(image.height * scale));
    canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
    if (blob === null) throw new Error("The browser could not make a PNG of this graph.");
    return blob;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Return a lineage as a Mermaid flowchart, causes above effects. */
export function toMermaid(lineage: Lineage): string {
  const names = new Map(lineage.nodes.map(({ id }, at) => [id, `e${at}`]));
  const lines = ["flowchart TD"];
  for (const node of lineage.nodes) {
    const detail = node.known ? shortId(node.id) : `${shortId(node.id)} never seen`;
    const marks = [];
    if (!node.known) marks.push("missing");
    else if (node.status === "failed") marks.push("failed");
    if (node.id === lineage.focus) marks.push("focus");
    const label = [node.event_type ?? "unknown event", detail, node.source].filter(Boolean).map((part) => mermaidText(part!));
    lines.push(`  ${names.get(node.id)}["${label.join("<br/>")}"]`);
    for (const mark of marks) lines.push(`  class ${names.get(node.id)} ${mark}`);
  }
  for (const { parent, child } of lineage.edges) {
    if (names.has(parent) && names.has(child)) lines.push(`  ${names.get(parent)} --> ${names.get(child)}`);
  }
  lines.push(
    "  classDef missing stroke-dasharray:5 4",
    "  classDef failed stroke:#b42318,stroke-width:2px",
    "  classDef focus stroke-width:4px",
  );
  return `${lines.join("\n")}\n`;
}

/**
 * Write what Mermaid or HTML may take for their own as entities, by the character's number: all but letters, digits,
 * spaces and what joins words. Names of icons (fa:fa-car) and formulas Mermaid looks for after it has read the entities;
 * a space of no width keeps them apart. The server does the same.
 */
function mermaidText(text: string): string {
  return text.replace(/[^\p{L}\p{N} ]/gu, (character, at: number) => {
    const [before, after] = [text.slice(0, at), text.slice(at + character.length)];
    const joins = /^[._-]$/.test(character) && /[\p{L}\p{N}]$/u.test(before) && /^[\p{L}\p{N}]/u.test(after);
    // www. begins a link.
    if (joins && !/www$/i.test(before)) return character;
    return `#${character.codePointAt(0)};${/^(:fa-|\$\$)/.test(character + after) ? "#8203;" : ""}`;
  });
}
