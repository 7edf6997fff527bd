/**
 * Graphs to try without a server: `npm run dev`, at /dev/graph.html. Not part of the build.
 *
 * `?graph=demo|random|wide|star|tree|chain|circle&n=500&back=8&seed=1&theme=dark&mode=timeline&depth=10000`. What it took is in
 * `window.graphTimes`, in milliseconds.
 */

import { render } from "preact";
import { useState } from "preact/hooks";

import { GraphView } from "../src/graph";
import { neighbours, reach } from "../src/graph/lineage";
import type { Lineage, Load } from "../src/graph/types";
import { chain, demoDay, lineageOf, random, star } from "../test/graph/graphs";

const query = new URLSearchParams(location.search);
const count = Number(query.get("n") ?? 500);
const seed = Number(query.get("seed") ?? 1);
const theme = query.get("theme");
if (theme) document.documentElement.dataset["theme"] = theme;

function tree(size: number, each: number): Lineage {
  const types = ["llm.prompt", "llm.response", "artifact.created", "mail.sent", "billing.charge.failed"];
  return lineageOf(
    Array.from({ length: size }, (_, at) => ({
      type: types[at % types.length]!,
      source: ["scribe", "planner", "writer"][at % 3]!,
      parents: at > 0 ? [Math.floor((at - 1) / each)] : [],
    })),
  );
}

const whole: Lineage = {
  demo: demoDay,
  random: () => random(count, seed, { back: Number(query.get("back") ?? 8) }),
  star: () => star(count),
  tree: () => tree(count, Number(query.get("each") ?? 4)),
  chain: () => chain(count, Math.floor(count / 2)),
  circle: () => lineageOf(Array.from({ length: count }, (_, at) => ({ parents: [(at + count - 1) % count] }))),
}[query.get("graph") ?? "demo"]!();

const load: Load = async (id, direction, maxDepth, limit) => {
  const { parents, children } = neighbours(whole);
  const hops = new Map<string, number>([[id, 0]]);
  let depth = false;
  for (const [way, map, sign] of [["descendants", children, 1], ["ancestors", parents, -1]] as const) {
    if (direction !== way && direction !== "both") continue;
    for (const [other, far] of reach(id, map, null)) {
      if (far > (maxDepth ?? 50)) depth = true;
      else if (!hops.has(other)) hops.set(other, sign * far);
    }
  }
  const kept = new Set(Array.from(hops.keys()).slice(0, limit ?? 500));
  return {
    ...whole,
    focus: id,
    direction,
    nodes: whole.nodes.filter((node) => kept.has(node.id)).map((node) => ({ ...node, depth: hops.get(node.id)! })),
    edges: whole.edges.filter(({ parent, child }) => kept.has(parent) && kept.has(child)),
    truncated: { depth, limit: kept.size < hops.size, frontier: [] },
  };
};

function Page() {
  const [id, setId] = useState(whole.focus);
  const [options, setOptions] = useState({
    depth: query.has("depth") ? Number(query.get("depth")) : null,
    up: null as number | null,
    mode: (query.get("mode") ?? "graph") as "graph" | "timeline",
    colour: (query.get("colour") ?? "domain") as "domain" | "source",
  });
  return <GraphView id={id} {...options} onNavigate={setId} onOptions={(patch) => setOptions({ ...options, ...patch })} load={load} />;
}

const start = performance.now();
render(<Page />, document.getElementById("app")!);
const watch = new MutationObserver(() => {
  if (!document.querySelector("[data-testid=graph] [data-id]")) return;
  watch.disconnect();
  const mounted = performance.now() - start;
  // The second frame after a change begins when the first has been painted.
  requestAnimationFrame(() =>
    requestAnimationFrame(() => {
      Object.assign(window, { graphTimes: { mounted, painted: performance.now() - start } });
    }),
  );
});
watch.observe(document.getElementById("app")!, { childList: true, subtree: true });
