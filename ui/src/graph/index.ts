/** Stands here until the graph is drawn: the branch that draws it replaces this file. */
import type { JSX } from "preact";

import type { Lineage } from "../api/types";

export interface GraphViewProps {
  id: string;
  depth: number | null;
  up: number | null;
  mode: "graph" | "timeline";
  colour: "domain" | "source";
  onNavigate(id: string): void;
  onOptions(patch: Partial<Pick<GraphViewProps, "depth" | "up" | "mode" | "colour">>): void;
  load(id: string, direction: "ancestors" | "descendants" | "both", maxDepth: number | null, limit: number | null): Promise<Lineage>;
}

export function GraphView(_props: GraphViewProps): JSX.Element | null {
  return null;
}
