/** The drawing on the page: zoom, pan, keys, and the path of what is pointed at. */

import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

import { Shapes } from "./Shapes";
import { type CanvasProps, Stage } from "./stage";
import type { Drawing } from "./types";
import { holds, type Part, seen, WORDS_ZOOM } from "./view";
import { pathsOf } from "./walk";

/** Of more boxes only those that are seen are in the page. */
const MOST_DRAWN = 700;
export function Canvas(props: CanvasProps): JSX.Element {
  const { drawing, focus, legend, label } = props;
  const svg = useRef<SVGSVGElement>(null);
  const said = useRef<HTMLParagraphElement>(null);
  const [part, setPart] = useState<Part | null>(null);
  const [withWords, setWithWords] = useState(true);
  const paths = useMemo(() => pathsOf(drawing), [drawing]);
  const boxes = useMemo(() => new Map(drawing.nodes.map((box) => [box.id, box])), [drawing]);
  const isLarge = drawing.nodes.length > MOST_DRAWN;
  const stage = useStage();
  stage.update(props, boxes, paths, svg, said, (view, size) => {
    if (isLarge) setPart((had) => (had && holds(had, view, size) ? had : seen(view, size)));
    setWithWords(!isLarge || view.k >= WORDS_ZOOM);
  });

  useLayoutEffect(() => stage.drawn(), [drawing, part, withWords]);
  useEffect(() => stage.listen(), []);
  props.handle.current = stage;

  const shapes = useMemo(
    () => (
      <Shapes
        drawing={drawing}
        paths={paths}
        focus={focus}
        legend={legend}
        active={stage.active}
        part={isLarge ? (part ?? NOTHING) : null}
        withWords={withWords}
      />
    ),
    [drawing, focus, legend, part, withWords, isLarge],
  );

  return (
    <div class="graph-canvas">
      <svg
        ref={svg}
        class="graph-svg"
        role="group"
        aria-label={label}
        tabindex={-1}
        data-testid="graph"
        data-nodes={drawing.nodes.length}
        data-edges={drawing.edges.length}
        data-events={drawing.nodes.reduce((sum, { events }) => sum + events.length, 0)}
      >
        <g data-world>
          <g class="g-lanes">
            {drawing.lanes.map(({ name, top, height }, at) => (
              <rect key={name} class={at % 2 ? "g-odd" : "g-even"} x="-100000" width="200000" y={top} height={height} />
            ))}
          </g>
          {shapes}
        </g>
        {drawing.lanes.length > 0 && <Axes drawing={drawing} />}
      </svg>
      <p ref={said} class="graph-said" aria-hidden="true" />
    </div>
  );
}

const NOTHING: Part = { left: 0, right: -1, top: 0, bottom: -1 };

/** Names of lanes stay at the left edge and times at the upper one, whatever is seen. */
function Axes({ drawing }: { drawing: Drawing }): JSX.Element {
  return (
    <>
      <g data-names class="g-names">
        {drawing.lanes.map(({ name, top }) => (
          <text key={name} data-y={top} x="10">
            {name.length > 22 ? `${name.slice(0, 21)}…` : name}
          </text>
        ))}
      </g>
      <g data-ticks class="g-ticks">
        <rect class="g-axis" x="-100000" width="200000" y="0" height="26" />
        {drawing.ticks.map(({ x, label }) => (
          <text key={x} data-x={x} y="17">
            {label}
          </text>
        ))}
      </g>
    </>
  );
}

function useStage(): Stage {
  const stage = useRef<Stage | null>(null);
  stage.current ??= new Stage();
  return stage.current;
}
