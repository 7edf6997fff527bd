/** Shapes of the graph: what the server answers, and what is drawn of it. */

import type { Direction, Lineage, LineageNode } from "../api/types";

export type { Direction, Lineage, LineageNode };

/** Ask the server for a lineage. `null` bounds are the server's own. */
export type Load = (
  id: string,
  direction: Direction,
  maxDepth: number | null,
  limit: number | null,
) => Promise<Lineage>;

/** What is drawn as one box: an event, or a group of siblings of one type. */
export interface Box {
  /** The event's id, or `group:` and the id of the group's first event. */
  id: string;
  /** At least one; more than one is a group. */
  events: LineageNode[];
  type: string | null;
  known: boolean;
  failed: boolean;
  /** The group that let this event go, when it was expanded; else null. */
  of: string | null;
  /** Causes and effects, of all its events together, that are not drawn. */
  hiddenParents: number;
  hiddenChildren: number;
}

/** A line between two boxes. `count`: how many links of events it stands for. */
export interface BoxEdge {
  parent: string;
  child: string;
  count: number;
}

export interface Grouped {
  boxes: Box[];
  edges: BoxEdge[];
  /** Which box stands for an event. */
  boxOf: Map<string, string>;
}

/** A box with its place. `x` and `y` are its centre, in pixels at zoom 1. */
export interface PlacedBox extends Box {
  x: number;
  y: number;
  width: number;
  height: number;
  /** Row, counted from the causes; in a timeline the lane. */
  layer: number;
  /** Place in its row, from the left. */
  order: number;
}

export interface PlacedEdge extends BoxEdge {
  /** SVG path data, with the arrow's head. */
  path: string;
  /** Against the direction of the drawing: part of a circle of causes. */
  against: boolean;
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** A row of the timeline: one source. */
export interface Lane {
  name: string;
  top: number;
  height: number;
}

/** A mark on the timeline's axis. */
export interface Tick {
  x: number;
  label: string;
}

export interface Drawing {
  nodes: PlacedBox[];
  edges: PlacedEdge[];
  width: number;
  height: number;
  /** Only in a timeline. */
  lanes: Lane[];
  ticks: Tick[];
}

export const NOTHING_DRAWN: Drawing = { nodes: [], edges: [], width: 0, height: 0, lanes: [], ticks: [] };
