/** The graph of an event: what caused it and what it led to, drawn, said in words, and as a list. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { Canvas, type CanvasHandle } from "./Canvas";
import { type ColourBy, legendOf } from "./colour";
import { toMermaid, toPng, toSvg } from "./export";
import { EXPAND_STEP, group, isGroup } from "./group";
import "./graph.css";
import { arrange } from "./layout";
import { DEFAULT_DOWN, type Gathered, gather, grow, neighbours, shownPart } from "./lineage";
import { List } from "./List";
import { paletteOf, save } from "./save";
import { arrangeTimeline } from "./timeline";
import { type FileKind, LegendView, type Options, Tools } from "./Tools";
import type { Load, PlacedBox } from "./types";
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

/** What the reader let out, of this event's graph. */
interface Opened {
  up: ReadonlySet<string>;
  down: ReadonlySet<string>;
  groups: ReadonlyMap<string, number>;
}

const CLOSED: Opened = { up: new Set(), down: new Set(), groups: new Map() };

export function GraphView(props: GraphViewProps): JSX.Element {
  const { id, depth, up, mode, colour, load } = props;
  const down = depth ?? DEFAULT_DOWN;
  const root = useRef<HTMLElement>(null);
  const handle = useRef<CanvasHandle | null>(null);
  const { gathered, problem, isLoading, notice, setNotice, setGathered, reload } = useGathered(load, id, up, down);
  const [opened, setOpened] = useState<Opened>(CLOSED);
  // Until another event's graph is there, the one before stays.
  const focus = gathered?.lineage.focus ?? id;
  useEffect(() => setOpened(CLOSED), [focus]);

  const shown = useMemo(
    () => gathered && shownPart(gathered.lineage, { up, down, grownUp: opened.up, grownDown: opened.down }),
    [gathered, up, down, opened],
  );
  const grouped = useMemo(
    () => shown && group(shown, { expanded: opened.groups, bySource: mode === "timeline" }),
    [shown, opened, mode],
  );
  const drawing = useMemo(() => grouped && (mode === "timeline" ? arrangeTimeline(grouped) : arrange(grouped)), [grouped, mode]);
  const legend = useMemo(() => grouped && legendOf(grouped.boxes, colour), [grouped, colour]);

  if (!shown || !grouped || !drawing || !legend || !gathered) {
    return (
      <section class="graph" ref={root} aria-label="Graph" aria-busy={isLoading}>
        {problem === null ? <p class="graph-quiet">Loading the graph…</p> : <Problem text={problem} onRetry={reload} />}
      </section>
    );
  }

  const open = (box: PlacedBox) => {
    if (isGroup(box.id)) {
      const groups = new Map(opened.groups).set(box.id, (opened.groups.get(box.id) ?? 0) + EXPAND_STEP);
      setOpened({ ...opened, groups });
      setNotice(`${counted(Math.min(EXPAND_STEP, box.events.length), "event")} of the group drawn.`);
    } else if (box.id !== focus) props.onNavigate(box.id);
  };

  const growBox = async (box: PlacedBox, way: "up" | "down") => {
    const near = neighbours(gathered.lineage);
    const map = way === "up" ? near.parents : near.children;
    const total = way === "up" ? "parents_total" : "children_total";
    const lacking = box.events.filter((event) => event[total] > (map.get(event.id)?.length ?? 0)).map((event) => event.id);
    const ids = new Set([...opened[way], ...box.events.map((event) => event.id)]);
    const words = way === "up" ? "cause" : "effect";
    if (lacking.length === 0) setNotice(`${counted(way === "up" ? box.hiddenParents : box.hiddenChildren, words)} added.`);
    else {
      setNotice(`Asking for ${words}s…`);
      try {
        const lineage = await grow(load, gathered.lineage, lacking, way);
        const added = lineage.nodes.length - gathered.lineage.nodes.length;
        setGathered(gathered, { ...gathered, lineage });
        const isNew = added > 0 || lineage.edges.length > gathered.lineage.edges.length;
        setNotice(isNew ? `${counted(added, words)} added.` : `The ${words}s that are not drawn are no longer kept.`);
      } catch (error) {
        setNotice(`The ${words}s could not be loaded. ${messageOf(error)}`);
        return;
      }
    }
    setOpened((now) => ({ ...now, [way]: ids }));
  };

  const shrink = (box: PlacedBox) => {
    const without = (ids: ReadonlySet<string>) => new Set(Array.from(ids).filter((grown) => !box.events.some((event) => event.id === grown)));
    const groups = new Map(opened.groups);
    groups.delete(box.of ?? box.id);
    setOpened({ up: without(opened.up), down: without(opened.down), groups });
  };

  const saveAs = async (kind: FileKind) => {
    const name = `event-${shortId(focus)}`;
    try {
      if (kind === "mermaid") save(`${name}.mmd`, new Blob([toMermaid(shown)], { type: "text/vnd.mermaid;charset=utf-8" }));
      else {
        const svg = toSvg(drawing, focus, legend, paletteOf(root.current!));
        save(`${name}.${kind}`, kind === "svg" ? new Blob([svg], { type: "image/svg+xml" }) : await toPng(svg));
      }
    } catch (error) {
      setNotice(`The file could not be made. ${messageOf(error)}`);
    }
  };

  const told = summary(shown);
  const missing = leftOut(grouped.boxes, gathered.lineage.truncated.limit);
  const marks = {
    failed: grouped.boxes.some(({ failed }) => failed),
    unknown: grouped.boxes.some(({ known }) => !known),
    groups: grouped.boxes.some(({ events }) => events.length > 1),
  };
  return (
    <section class="graph" ref={root} aria-label="Graph" aria-busy={isLoading}>
      <Tools
        {...{ depth, up, mode, colour }}
        defaultDepth={DEFAULT_DOWN}
        isChanged={opened.up.size + opened.down.size + opened.groups.size > 0}
        onOptions={props.onOptions}
        onReset={() => setOpened(CLOSED)}
        onReload={reload}
        onZoom={(factor) => handle.current?.zoom(factor)}
        onFit={() => handle.current?.fit()}
        onCentre={() => handle.current?.centre()}
        onSave={saveAs}
      />
      {problem !== null && <Problem text={problem} onRetry={reload} />}
      <p class="graph-summary">
        {told} {missing && <span class="graph-left-out">{missing}</span>}
      </p>
      <Canvas
        drawing={drawing}
        focus={focus}
        legend={legend}
        label={`${mode === "timeline" ? "Timeline" : "Graph"} of ${counted(shown.nodes.length, "event")}. Arrow keys walk, Enter opens, + shows more.`}
        viewKey={`${focus} ${mode}`}
        onOpen={open}
        onGrow={growBox}
        onShrink={shrink}
        handle={handle}
      />
      <LegendView legend={legend} marks={marks} />
      {mode === "timeline" && <p class="graph-quiet">Distances grow with the logarithm of the time between two events.</p>}
      <p class="graph-notice" role="status">
        {notice}
      </p>
      <Keys />
      <List lineage={shown} onNavigate={props.onNavigate} />
    </section>
  );
}

/** Load what is around an event, again when it or what is shown of it changes. */
function useGathered(load: Load, id: string, up: number | null, down: number) {
  const [gathered, setAll] = useState<Gathered | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [isLoading, setLoading] = useState(true);
  const [notice, setNotice] = useState("");
  const [round, setRound] = useState(0);
  const held = useRef<{ gathered: Gathered; round: number } | null>(null);
  const loader = useRef(load);
  loader.current = load;
  useEffect(() => {
    const had = held.current;
    if (had && had.gathered.isWhole && had.gathered.lineage.focus === id && had.round === round) return;
    let isCurrent = true;
    setLoading(true);
    setNotice("");
    gather((...question) => loader.current(...question), id, up, down)
      .then((found) => {
        if (!isCurrent) return;
        held.current = { gathered: found, round };
        setAll(found);
        setProblem(null);
      })
      .catch((error: unknown) => {
        if (isCurrent) setProblem(`The graph could not be loaded. ${messageOf(error)}`);
      })
      .finally(() => {
        if (isCurrent) setLoading(false);
      });
    return () => {
      isCurrent = false;
    };
  }, [id, up, down, round]);
  /** Take what was added to a lineage, unless another one is there by now. */
  const setGathered = (from: Gathered, to: Gathered) => setAll((now) => (now === from ? to : now));
  return { gathered, problem, isLoading, notice, setNotice, setGathered, reload: () => setRound(round + 1) };
}

function Problem({ text, onRetry }: { text: string; onRetry(): void }): JSX.Element {
  return (
    <p class="graph-problem" role="alert">
      {text}{" "}
      <button type="button" onClick={onRetry}>
        Try again
      </button>
    </p>
  );
}

const KEYS: [string, string][] = [
  ["↑ ↓", "to a cause, to an effect"],
  ["← →", "to a sibling"],
  ["n p", "to the next event, to the one before"],
  ["Home", "back to this event"],
  ["Enter", "open the event, or take events out of a group"],
  ["+ −", "show what is not drawn, fold it again"],
  ["z x", "zoom in, zoom out; so does the wheel once the graph has been clicked, and Ctrl with the wheel"],
  ["0", "show everything"],
  ["Shift with arrows", "move the drawing; so does dragging"],
];

function Keys(): JSX.Element {
  return (
    <details class="graph-keys">
      <summary>Keys</summary>
      <dl>
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt>{keys}</dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
