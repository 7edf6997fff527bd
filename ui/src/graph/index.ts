/** The graph of an event: the component, and what it is made of. */

export type { ColourBy, Legend } from "./colour";
export { legendOf } from "./colour";
export { type Palette, toMermaid, toPng, toSvg } from "./export";
export { GraphView, type GraphViewProps } from "./GraphView";
export { type GroupOptions, group } from "./group";
export { layout } from "./layout";
export { timeline } from "./timeline";
export type { Box, BoxEdge, Drawing, Grouped, Lineage, LineageNode, Load, PlacedBox, PlacedEdge } from "./types";
