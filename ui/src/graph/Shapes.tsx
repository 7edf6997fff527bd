/** Boxes and lines as SVG elements. Their looks are in graph.css; nothing here has a `style`. */

import type { JSX } from "preact";

import type { Legend } from "./colour";
import { BAR, cut, failedMark } from "./export";
import type { Drawing, PlacedBox, PlacedEdge } from "./types";
import type { Part } from "./view";
import { boxIn, edgeIn } from "./view";
import type { Paths } from "./walk";
import { detailOf, labelOf, titleOf } from "./words";

export interface ShapesProps {
  drawing: Drawing;
  paths: Paths;
  focus: string;
  legend: Legend;
  /** The box that the Tab key comes to. */
  active: string | null;
  /** Only what lies in this part is drawn; null is all. */
  part: Part | null;
  withWords: boolean;
}

export function Shapes({ drawing, paths, focus, legend, active, part, withWords }: ShapesProps): JSX.Element {
  const edges = part ? drawing.edges.filter((edge) => edgeIn(edge, part)) : drawing.edges;
  const boxes = part ? drawing.nodes.filter((box) => box.id === active || boxIn(box, part)) : drawing.nodes;
  return (
    <>
      {boxes.filter(({ id }) => id === focus).map(halo)}
      <g class="g-lines">{edges.map(line)}</g>
      <g>
        {boxes.map((box) => (
          <g
            key={box.id}
            class={`g-box c${legend.colourOf(box)}`}
            transform={`translate(${box.x - box.width / 2} ${box.y - box.height / 2})`}
            role="button"
            tabindex={box.id === active ? 0 : -1}
            aria-label={boxLabel(box, paths, focus)}
            aria-current={box.id === focus ? "true" : undefined}
            data-id={box.id}
            data-type={box.type ?? ""}
            data-known={String(box.known)}
            data-status={box.known ? (box.failed ? "failed" : "ok") : "unknown"}
            data-count={box.events.length}
          >
            <BoxShape box={box} withWords={withWords} />
          </g>
        ))}
      </g>
      {withWords && <g aria-hidden="true">{boxes.map(badges)}</g>}
    </>
  );
}

export function boxLabel(box: PlacedBox, paths: Paths, focus: string): string {
  const { causes, effects } = paths.counts.get(box.id) ?? { causes: 0, effects: 0 };
  const label = labelOf(box, causes, effects);
  return box.id === focus ? `This event: ${label}` : label;
}

function line(edge: PlacedEdge): JSX.Element {
  return (
    <path
      key={`${edge.parent} ${edge.child}`}
      class={edge.against ? "g-line g-against" : "g-line"}
      d={edge.path}
      data-parent={edge.parent}
      data-child={edge.child}
    />
  );
}

/** Around the event in the middle. */
function halo({ id, x, y, width, height }: PlacedBox): JSX.Element {
  return <rect key={id} class="g-halo" x={x - width / 2 - 6} y={y - height / 2 - 6} width={width + 12} height={height + 12} rx="13" />;
}

function BoxShape({ box, withWords }: { box: PlacedBox; withWords: boolean }): JSX.Element {
  const { width, height } = box;
  return (
    <>
      {box.events.length > 1 && <rect class="g-frame" x="5" y="5" width={width} height={height} rx="8" />}
      <rect class="g-frame" width={width} height={height} rx="8" />
      {box.known && <path class="g-bar" d={BAR} />}
      {withWords && (
        <>
          {/* The space keeps the two lines apart as words, so that the label is seen to hold them. */}
          <text class="g-title" x="16" y="21">
            {cut(titleOf(box), width - 28 - (box.failed ? 20 : 0), 7.3)}
          </text>{" "}
          <text class="g-detail" x="16" y="38">
            {cut(detailOf(box), width - 26, 6.1)}
          </text>
        </>
      )}
      {box.failed && <path class="g-cross" d={failedMark(width)} />}
    </>
  );
}

/** `+N` at a box's upper edge for causes, at its lower for effects, that are not drawn. Keys do the same. */
function badges(box: PlacedBox): JSX.Element[] {
  const found = [];
  if (box.hiddenParents > 0) found.push(badge(box, "up", box.y - box.height / 2 - 4, box.hiddenParents));
  if (box.hiddenChildren > 0) found.push(badge(box, "down", box.y + box.height / 2 + 4, box.hiddenChildren));
  return found;
}

function badge(box: PlacedBox, way: "up" | "down", y: number, count: number): JSX.Element {
  const text = `+${count > 9999 ? "many" : count}`;
  const width = 16 + 7 * text.length;
  return (
    <g key={`${way} ${box.id}`} class="g-more" data-grow={way} data-box={box.id} transform={`translate(${box.x + box.width / 2 - width / 2 - 10} ${y})`}>
      <rect class="g-reach" x={-width / 2 - 3} y="-14" width={width + 6} height="28" />
      <rect x={-width / 2} y="-10" width={width} height="20" rx="10" />
      <text y="4">{text}</text>
    </g>
  );
}
