/** The graph of an event: what caused it and what it led to, drawn, said in words, and as a list. */

import type { JSX } from "preact";
import { useMemo, useRef } from "preact/hooks";

import { Canvas } from "./Canvas";
import { type ColourBy, type Legend, legendOf } from "./colour";
import { toMermaid, toPng, toSvg } from "./export";
import { type Holding, messageOf, useGathered } from "./gathered";
import { group, isGroup } from "./group";
import "./graph.css";
import { arrange } from "./layout";
import { DEFAULT_DOWN, shownPart } from "./lineage";
import { List } from "./List";
import { type Opened, type Opening, useOpened } from "./opened";
import { Keys, Problem } from "./Parts";
import { paletteOf, save } from "./save";
import type { CanvasHandle } from "./stage";
import { arrangeTimeline } from "./timeline";
import { type FileKind, LegendView, type Options, Tools } from "./Tools";
import type { Box, Drawing, Lineage, Load } from "./types";
import { counted, leftOut, shortId, summary } from "./words";

export interface GraphViewProps {
  /** The event in the middle. */
  id: string;
  /** Generations of effects; null is two. */
  depth: number | null;
  /** Generations of causes; null is all. */
  up: number | null;
  mode: "graph" | "timeline";
  colour: ColourBy;
  /** Open another event. */
  onNavigate(id: string): void;
  /** The reader chose how to look at it; the caller keeps it, in the page's address. */
  onOptions(patch: Partial<Options>): void;
  load: Load;
}

export function GraphView(props: GraphViewProps): JSX.Element {
  const { id, depth, up, load } = props;
  const root = useRef<HTMLElement>(null);
  const holding = useGathered(load, id, up, depth ?? DEFAULT_DOWN);
  // Until another event's graph is there, the one before stays.
  const focus = holding.gathered?.lineage.focus ?? id;
  const opening = useOpened(focus, load, holding);
  const picture = usePicture(props, holding, opening.opened);
  const { problem, isLoading, reload } = holding;
  return (
    <section class="graph" ref={root} aria-label="Graph" aria-busy={isLoading}>
      {problem !== null && <Problem text={problem} onRetry={reload} />}
      {picture !== null && <Drawn {...{ props, holding, opening, picture, root }} />}
      {picture === null && problem === null && <p class="graph-quiet">Loading the graph…</p>}
    </section>
  );
}

/** What is drawn of a graph. */
interface Picture {
  shown: Lineage;
  boxes: Box[];
  drawing: Drawing;
  legend: Legend;
}

function usePicture({ depth, up, mode, colour }: GraphViewProps, { gathered }: Holding, opened: Opened): Picture | null {
  const shown = useMemo(
    () => gathered && shownPart(gathered.lineage, { up, down: depth ?? DEFAULT_DOWN, grownUp: opened.up, grownDown: opened.down }),
    [gathered, up, depth, opened],
  );
  const drawn = useMemo(() => {
    if (!shown) return null;
    const grouped = group(shown, { expanded: opened.groups, bySource: mode === "timeline" });
    return { shown, boxes: grouped.boxes, drawing: mode === "timeline" ? arrangeTimeline(grouped) : arrange(grouped) };
  }, [shown, opened, mode]);
  return useMemo(() => drawn && { ...drawn, legend: legendOf(drawn.boxes, colour) }, [drawn, colour]);
}

interface DrawnProps {
  props: GraphViewProps;
  holding: Holding;
  opening: Opening;
  picture: Picture;
  root: { current: HTMLElement | null };
}

function Drawn({ props, holding, opening, picture, root }: DrawnProps): JSX.Element {
  const { depth, up, mode, colour } = props;
  const { shown, boxes, drawing, legend } = picture;
  const { focus } = shown;
  const handle = useRef<CanvasHandle | null>(null);
  const saveAs = (kind: FileKind) =>
    fileOf(kind, picture, root.current!)
      .then((file) => save(`event-${shortId(focus)}.${kind === "mermaid" ? "mmd" : kind}`, file))
      .catch((error: unknown) => holding.setNotice(`The file could not be made. ${messageOf(error)}`));
  return (
    <>
      <Tools
        {...{ depth, up, mode, colour }}
        defaultDepth={DEFAULT_DOWN}
        isChanged={opening.isOpened}
        onOptions={props.onOptions}
        onReset={opening.close}
        onReload={holding.reload}
        onZoom={(factor) => handle.current?.zoom(factor)}
        onFit={() => handle.current?.fit()}
        onCentre={() => handle.current?.centre()}
        onSave={saveAs}
      />
      <Summary shown={shown} boxes={boxes} isCut={holding.gathered?.lineage.truncated.limit ?? false} />
      <Canvas
        drawing={drawing}
        focus={focus}
        legend={legend}
        label={`${mode === "timeline" ? "Timeline" : "Graph"} of ${counted(shown.nodes.length, "event")}. Arrow keys walk, Enter opens, + shows more.`}
        viewKey={`${focus} ${mode}`}
        onOpen={(box) => {
          if (isGroup(box.id)) opening.expand(box);
          else if (box.id !== focus) props.onNavigate(box.id);
        }}
        onGrow={opening.growBox}
        onShrink={opening.shrink}
        handle={handle}
      />
      <LegendView legend={legend} boxes={boxes} />
      {mode === "timeline" && <p class="graph-quiet">Distances grow with the logarithm of the time between two events.</p>}
      <p class="graph-notice" role="status">
        {holding.notice}
      </p>
      <Keys />
      <List lineage={shown} onNavigate={props.onNavigate} />
    </>
  );
}

function Summary({ shown, boxes, isCut }: { shown: Lineage; boxes: Box[]; isCut: boolean }): JSX.Element {
  const told = useMemo(() => summary(shown), [shown]);
  const missing = leftOut(boxes, isCut);
  return (
    <p class="graph-summary">
      {told} {missing && <span class="graph-left-out">{missing}</span>}
    </p>
  );
}

async function fileOf(kind: FileKind, { shown, drawing, legend }: Picture, root: HTMLElement): Promise<Blob> {
  if (kind === "mermaid") return new Blob([toMermaid(shown)], { type: "text/vnd.mermaid;charset=utf-8" });
  const svg = toSvg(drawing, shown.focus, legend, paletteOf(root));
  return kind === "svg" ? new Blob([svg], { type: "image/svg+xml" }) : toPng(svg);
}
