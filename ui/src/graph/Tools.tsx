/** The row above the graph and the legend below it. */

import type { JSX } from "preact";

import type { ColourBy, Legend } from "./colour";
import { ALL } from "./lineage";
import type { Box } from "./types";

const GENERATIONS = [1, 2, 3, 4, 5, 10];

export interface Options {
  depth: number | null;
  up: number | null;
  mode: "graph" | "timeline";
  colour: ColourBy;
}

export type FileKind = "svg" | "png" | "mermaid";

export interface ToolsProps extends Options {
  /** What `depth: null` stands for. */
  defaultDepth: number;
  isChanged: boolean;
  onOptions(patch: Partial<Options>): void;
  onReset(): void;
  onReload(): void;
  onZoom(factor: number): void;
  onFit(): void;
  onCentre(): void;
  onSave(kind: FileKind): void;
}

export function Tools(props: ToolsProps): JSX.Element {
  const { mode, colour, onOptions } = props;
  return (
    <div class="graph-tools" role="toolbar" aria-label="Graph">
      <Choice
        label="Drawn as"
        value={mode}
        options={{ graph: "Graph", timeline: "Timeline" }}
        onChoose={(chosen) => onOptions({ mode: chosen })}
      />
      <Generations label="Causes" value={props.up ?? ALL} onChoose={(up) => onOptions({ up: up === ALL ? null : up })} />
      <Generations
        label="Effects"
        value={props.depth ?? props.defaultDepth}
        onChoose={(depth) => onOptions({ depth: depth === props.defaultDepth ? null : depth })}
      />
      <Choice
        label="Colour by"
        isLabelSeen
        value={colour}
        options={{ domain: "Domain", source: "Source" }}
        onChoose={(chosen) => onOptions({ colour: chosen })}
      />
      <span class="graph-space" />
      {props.isChanged && (
        <button type="button" title="Fold what was opened" onClick={props.onReset}>
          Fold
        </button>
      )}
      <button type="button" title="Ask the server again" onClick={props.onReload}>
        Reload
      </button>
      <div class="graph-joined" role="group" aria-label="Zoom">
        <button type="button" aria-label="Zoom out" onClick={() => props.onZoom(0.8)}>
          −
        </button>
        <button type="button" aria-label="Zoom in" onClick={() => props.onZoom(1.25)}>
          +
        </button>
        <button type="button" title="Show everything" onClick={props.onFit}>
          Fit
        </button>
        <button type="button" title="This event in the middle" onClick={props.onCentre}>
          Centre
        </button>
      </div>
      <details class="graph-menu">
        <summary>Save</summary>
        <div>
          {(["svg", "png", "mermaid"] as const).map((kind) => (
            <button
              key={kind}
              type="button"
              onClick={(event) => {
                event.currentTarget.closest("details")!.open = false;
                props.onSave(kind);
              }}
            >
              {{ svg: "SVG picture", png: "PNG picture", mermaid: "Mermaid text" }[kind]}
            </button>
          ))}
        </div>
      </details>
    </div>
  );
}

interface ChoiceProps<Name extends string> {
  label: string;
  /** Whether the label stands before the buttons, where these do not say what they are about. */
  isLabelSeen?: boolean;
  value: Name;
  options: Record<Name, string>;
  onChoose(name: Name): void;
}

function Choice<Name extends string>({ label, isLabelSeen, value, options, onChoose }: ChoiceProps<Name>): JSX.Element {
  const buttons = (
    <div class="graph-joined" role="group" aria-label={label}>
      {(Object.keys(options) as Name[]).map((name) => (
        <button key={name} type="button" aria-pressed={name === value} onClick={() => name !== value && onChoose(name)}>
          {options[name]}
        </button>
      ))}
    </div>
  );
  if (!isLabelSeen) return buttons;
  return (
    <span class="graph-field">
      <span aria-hidden="true">{label}</span> {buttons}
    </span>
  );
}

function Generations(props: { label: string; value: number; onChoose(value: number): void }): JSX.Element {
  const { label, value, onChoose } = props;
  const values = value === ALL || GENERATIONS.includes(value) ? GENERATIONS : [...GENERATIONS, value].sort((a, b) => a - b);
  return (
    <label class="graph-field">
      {label}{" "}
      <select value={String(value)} onChange={(event) => onChoose(Number(event.currentTarget.value))}>
        {values.map((count) => (
          <option key={count} value={String(count)} selected={count === value}>
            {count === 1 ? "1 generation" : `${count} generations`}
          </option>
        ))}
        <option value={String(ALL)} selected={value === ALL}>
          all
        </option>
      </select>
    </label>
  );
}

const MOST_ITEMS = 16;

export function LegendView({ legend, boxes }: { legend: Legend; boxes: Box[] }): JSX.Element {
  const rest = legend.items.length - MOST_ITEMS;
  return (
    <ul class="graph-legend" aria-label="Legend">
      {legend.items.slice(0, MOST_ITEMS).map(({ name, colour, events }) => (
        <li key={name}>
          <svg class={`c${colour}`} width="12" height="12" aria-hidden="true">
            <rect class="g-bar" width="12" height="12" rx="3" />
          </svg>
          {name} <span class="graph-quiet">{events.toLocaleString("en")}</span>
        </li>
      ))}
      {rest > 0 && <li class="graph-quiet">and {rest} more</li>}
      {boxes.some(({ failed }) => failed) && (
        <li>
          <svg width="20" height="14" aria-hidden="true">
            <rect class="g-key g-key-failed" x="1" y="1" width="18" height="12" rx="3" />
            <path class="g-cross" d="M7.5 4.5l5 5m0 -5l-5 5" />
          </svg>
          failed
        </li>
      )}
      {boxes.some(({ known }) => !known) && (
        <li>
          <svg width="20" height="14" aria-hidden="true">
            <rect class="g-key g-key-unknown" x="1" y="1" width="18" height="12" rx="3" />
          </svg>
          never seen, or no longer kept
        </li>
      )}
      {boxes.some(({ events }) => events.length > 1) && (
        <li>
          <svg width="22" height="16" aria-hidden="true">
            <rect class="g-key" x="4" y="4" width="16" height="10" rx="3" />
            <rect class="g-key" x="1" y="1" width="16" height="10" rx="3" />
          </svg>
          several of one type; open it to see them
        </li>
      )}
    </ul>
  );
}
