import { render } from "preact";
import { act } from "preact/test-utils";
import { useState } from "preact/hooks";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { GraphView, type GraphViewProps } from "../../src/graph";
import { neighbours, reach } from "../../src/graph/lineage";
import type { Lineage, Load } from "../../src/graph/types";
import { chain, demoDay, idOf, lineageOf, star } from "./graphs";

let place: HTMLElement;

beforeEach(() => {
  place = document.createElement("div");
  document.body.append(place);
});

afterEach(() => {
  render(null, place);
  place.remove();
});

/** Everything within the depth that is asked for, as the server answers it. */
function loaderOf(whole: Lineage, limit = Infinity): Load {
  return async (id, direction, maxDepth, most) => {
    const { parents, children } = neighbours(whole);
    const found = new Set<string>([id]);
    let depth = false;
    for (const [way, map] of [["descendants", children], ["ancestors", parents]] as const) {
      if (direction !== way && direction !== "both") continue;
      for (const [other, hops] of reach(id, map, null)) {
        if (hops > (maxDepth ?? 50)) depth = true;
        else found.add(other);
      }
    }
    const kept = new Set(Array.from(found).slice(0, Math.min(most ?? 500, limit)));
    return {
      ...whole,
      focus: id,
      direction,
      nodes: whole.nodes.filter((node) => kept.has(node.id)),
      edges: whole.edges.filter(({ parent, child }) => kept.has(parent) && kept.has(child)),
      truncated: { depth, limit: kept.size < found.size, frontier: [] },
    };
  };
}

async function show(load: Load, id: string, more: Partial<GraphViewProps> = {}) {
  const onNavigate = vi.fn();
  function Page() {
    const [now, setNow] = useState(id);
    const [options, setOptions] = useState({
      depth: more.depth ?? null,
      up: more.up ?? null,
      mode: more.mode ?? ("graph" as const),
      colour: more.colour ?? ("domain" as const),
    });
    const navigate = (next: string) => {
      onNavigate(next);
      setNow(next);
    };
    return <GraphView id={now} {...options} load={load} onNavigate={navigate} onOptions={(patch) => setOptions({ ...options, ...patch })} />;
  }
  await act(async () => render(<Page />, place));
  await settled();
  return { onNavigate };
}

/** Let the page do what it has begun, until it is not busy. */
async function settled(): Promise<void> {
  await vi.waitFor(async () => {
    await act(async () => {
      await new Promise((resolve) => requestAnimationFrame(resolve));
    });
    if (place.querySelector("section")?.getAttribute("aria-busy") !== "false") throw new Error("still loading");
  });
}

const all = (selector: string) => Array.from(place.querySelectorAll<SVGElement>(selector));
const box = (number: number) => place.querySelector<SVGElement>(`[data-id="${idOf(number)}"]`)!;
const svg = () => place.querySelector<SVGElement>('[data-testid="graph"]')!;
const active = () => place.querySelector<SVGElement>('[data-id][tabindex="0"]')!;

async function press(key: string, options: KeyboardEventInit = {}): Promise<void> {
  await act(async () => {
    active().dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...options }));
  });
  await settled();
}

async function click(element: Element): Promise<void> {
  await act(async () => {
    element.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  });
  await settled();
}

function button(text: string): HTMLElement {
  return Array.from(place.querySelectorAll("button")).find((element) => element.textContent === text)!;
}

test("the demo's day is drawn with every event and link", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  expect(all("[data-id]").map((element) => element.dataset["id"]).sort()).toEqual(demoDay().nodes.map(({ id }) => id).sort());
  expect(all("[data-parent]").map(({ dataset }) => ({ parent: dataset["parent"], child: dataset["child"] }))).toEqual(demoDay().edges);
  expect(svg().dataset["nodes"]).toBe("9");
  expect(svg().dataset["edges"]).toBe("9");
});

test("each event is a button with a label, one of them in the order of Tab, and nothing has a style of its own", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  expect(all("[data-id]").every((element) => element.getAttribute("role") === "button" && element.getAttribute("aria-label"))).toBe(true);
  expect(all('[data-id][tabindex="0"]')).toEqual([box(7)]);
  expect(box(7).getAttribute("aria-label")).toMatch(/^This event: artifact\.created.*2 causes, 1 effect$/);
  // The drawing's height is set by script; the markup has none.
  expect(Array.from(place.querySelectorAll("[style]")).filter((element) => element !== svg())).toEqual([]);
});

test("a failure has a mark besides its colour", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  expect(all('[data-status="failed"]')).toEqual([box(8)]);
  expect(box(8).querySelector(".g-cross")).not.toBeNull();
  expect(box(7).querySelector(".g-cross")).toBeNull();
});

test("a cause that was never seen says so", async () => {
  await show(loaderOf(lineageOf([{ known: false }, { parents: [0] }], 1)), idOf(1));
  expect(box(0).dataset["known"]).toBe("false");
  expect(box(0).textContent).toContain("never seen");
  expect(place.querySelector(".graph-summary")!.textContent).toContain("1 cause was named and never seen");
});

test("arrow keys walk and Enter opens", async () => {
  const { onNavigate } = await show(loaderOf(demoDay()), idOf(7));
  await press("ArrowDown");
  expect(active()).toBe(box(8));
  await press("ArrowUp");
  await press("ArrowUp");
  const first = active();
  await press("ArrowRight");
  await press("ArrowLeft");
  expect([box(5), box(6)]).toContain(first);
  await press("Home");
  expect(active()).toBe(box(7));
  await press("ArrowDown");
  await press("Enter");
  expect(onNavigate).toHaveBeenCalledWith(idOf(8));
  expect(box(8).getAttribute("aria-current")).toBe("true");
});

test("two generations of effects are shown, and + shows more of them", async () => {
  await show(loaderOf(chain(8)), idOf(0));
  expect(all("[data-id]")).toHaveLength(3);
  expect(place.querySelector(".graph-summary")!.textContent).toContain("Not drawn: 1 effect of these events.");
  await press("ArrowDown");
  await press("ArrowDown");
  await press("+");
  expect(all("[data-id]")).toHaveLength(4);
  expect(active()).toBe(box(2));
  await press("-");
  expect(all("[data-id]")).toHaveLength(3);
});

test("a +N can be clicked, and asks the server for what is not at hand", async () => {
  const made = [{}, { parents: [0] }, { parents: [1] }, ...Array.from({ length: 700 }, () => ({ parents: [2], type: "a.b" })), { parents: [0] }];
  const load = vi.fn(loaderOf(lineageOf(made)));
  await show(load, idOf(0), { depth: 1 });
  expect(all("[data-id]")).toHaveLength(3);
  const asked = load.mock.calls.length;
  await click(place.querySelector(`[data-grow="down"][data-box="${idOf(1)}"]`)!);
  await vi.waitFor(() => expect(all("[data-id]")).toHaveLength(4));
  await click(place.querySelector(`[data-grow="down"][data-box="${idOf(2)}"]`)!);
  await vi.waitFor(() => expect(svg().dataset["events"]).toBe("704"));
  expect(all("[data-id]")).toHaveLength(5);
  expect(load.mock.calls.slice(asked)).toContainEqual([idOf(2), "descendants", 1, 10_000]);
});

test("many siblings are one box, which lets some of them out", async () => {
  await show(loaderOf(star(60)), idOf(0));
  expect(all("[data-id]")).toHaveLength(2);
  expect(svg().textContent).toContain("59 × llm.response");
  await press("ArrowDown");
  await press("Enter");
  expect(all("[data-id]")).toHaveLength(26);
  expect(active().dataset["count"]).toBe("35");
  await click(button("Fold"));
  expect(all("[data-id]")).toHaveLength(2);
});

test("pointing at an event lights its path and dims the rest", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  await act(async () => {
    box(3).dispatchEvent(new MouseEvent("pointerover", { bubbles: true }));
  });
  expect(svg().hasAttribute("data-dim")).toBe(true);
  expect([0, 1, 2, 3, 4, 5, 6, 7, 8].filter((number) => box(number).hasAttribute("data-lit"))).toEqual([0, 1, 2, 3, 5, 7, 8]);
  expect(place.querySelector(".graph-said")!.textContent).toContain("llm.prompt");
});

test("the timeline has a lane for each source", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  await click(button("Timeline"));
  expect(all("[data-names] text").map((text) => text.textContent)).toEqual(["recorder", "http-api", "fetcher", "scribe", "planner", "writer", "indexer"]);
  expect(all("[data-id]")).toHaveLength(9);
});

test("colours can be those of sources", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  expect(place.querySelector(".graph-legend")!.textContent).toContain("fireflies");
  await click(button("Source"));
  expect(place.querySelector(".graph-legend")!.textContent).toContain("recorder");
});

test("the list has every event, causes first, with links", async () => {
  const { onNavigate } = await show(loaderOf(demoDay()), idOf(7));
  const list = place.querySelector<HTMLDetailsElement>(".graph-list")!;
  await act(async () => {
    list.open = true;
    list.dispatchEvent(new Event("toggle"));
  });
  const links = Array.from(list.querySelectorAll<HTMLAnchorElement>("li > a"));
  expect(links).toHaveLength(9);
  expect(links[0]!.getAttribute("href")).toBe(`/e/${idOf(0)}`);
  await click(links[8]!);
  expect(onNavigate).toHaveBeenCalledWith(idOf(8));
});

test("a graph that cannot be loaded says why, and can be asked for again", async () => {
  let fails = true;
  const answer = loaderOf(demoDay());
  const load: Load = async (...question) => {
    if (fails) throw new Error("The store is down.");
    return answer(...question);
  };
  await show(load, idOf(7));
  expect(place.querySelector('[role="alert"]')!.textContent).toContain("The store is down.");
  fails = false;
  await click(button("Try again"));
  expect(all("[data-id]")).toHaveLength(9);
  expect(place.querySelector('[role="alert"]')).toBeNull();
});

test("what was asked for one event says nothing of the next one", async () => {
  const made = [{}, { parents: [0] }, { parents: [1] }, ...Array.from({ length: 700 }, () => ({ parents: [2], type: "a.b" }))];
  const whole = loaderOf(lineageOf(made));
  let answer: () => void = () => undefined;
  const load: Load = async (id, direction, depth, limit) => {
    if (id === idOf(2) && direction === "descendants" && depth === 1) await new Promise<void>((resolve) => (answer = resolve));
    return whole(id, direction, depth, limit);
  };
  const page = (id: string) => (
    <GraphView id={id} depth={2} up={1} mode="graph" colour="domain" load={load} onNavigate={() => undefined} onOptions={() => undefined} />
  );
  await act(async () => render(page(idOf(0)), place));
  await settled();
  await click(place.querySelector(`[data-grow="down"][data-box="${idOf(2)}"]`)!);
  expect(place.querySelector(".graph-notice")!.textContent).toBe("Asking for effects…");
  await act(async () => render(page(idOf(1)), place));
  await settled();
  await act(async () => answer());
  await settled();
  expect(place.querySelector(".graph-notice")!.textContent).toBe("");
});

test("a drag that ended outside moves nothing any more", async () => {
  await show(loaderOf(demoDay()), idOf(7));
  const world = () => place.querySelector("[data-world]")!.getAttribute("transform");
  const pointer = (type: string, x: number, buttons: number) =>
    svg().dispatchEvent(new PointerEvent(type, { clientX: x, clientY: 5, button: 0, buttons, pointerId: 1, bubbles: true }));
  pointer("pointerdown", 5, 1);
  const before = world();
  // The button was released where the drawing does not hear it.
  pointer("pointermove", 60, 0);
  expect(world()).toBe(before);
  pointer("pointermove", 90, 1);
  expect(world()).toBe(before);
});

test("going back before the other event's graph has come ends the waiting, and its failure is not told", async () => {
  const whole = loaderOf(demoDay());
  let fail: (why: Error) => void = () => undefined;
  const away = new Promise<Lineage>((_, reject) => (fail = reject));
  const load: Load = (id, ...more) => (id === idOf(1) ? away : whole(id, ...more));
  const page = (id: string) => (
    <GraphView id={id} depth={null} up={null} mode="graph" colour="domain" load={load} onNavigate={() => undefined} onOptions={() => undefined} />
  );
  await act(async () => render(page(idOf(7)), place));
  await settled();
  await act(async () => render(page(idOf(1)), place));
  expect(place.querySelector("section")?.getAttribute("aria-busy")).toBe("true");
  await act(async () => render(page(idOf(7)), place));
  await settled();
  await act(async () => render(page(idOf(1)), place));
  await act(async () => fail(new Error("The index is away.")));
  await settled();
  expect(place.textContent).toContain("The index is away.");
  await act(async () => render(page(idOf(7)), place));
  await settled();
  expect(place.textContent).not.toContain("The index is away.");
});

test("an answer that is cut is said to be", async () => {
  await show(loaderOf(star(900), 400), idOf(0));
  expect(place.querySelector(".graph-summary")!.textContent).toContain("the graph is not whole");
});

test("of a chain of 10,000 only what is seen is in the page", async () => {
  await show(loaderOf(chain(10_000, 5_000)), idOf(5_000), { depth: 10_000 });
  await vi.waitFor(() => expect(all("[data-id]").length).toBeGreaterThan(3));
  expect(svg().dataset["nodes"]).toBe("10000");
  expect(all("[data-id]").length).toBeLessThan(100);
});
