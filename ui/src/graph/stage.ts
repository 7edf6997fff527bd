/** What moves on the page without a new drawing: view, focus and the path that is lit. */

import type { Legend } from "./colour";
import { boxLabel } from "./Shapes";
import { LANE_TOP } from "./timeline";
import type { Drawing, PlacedBox } from "./types";
import { centre, firstView, fit, fits, reveal, type Size, type View, zoomAt } from "./view";
import { isLit, lit, type Paths, type Step, step } from "./walk";

export interface CanvasProps {
  drawing: Drawing;
  focus: string;
  legend: Legend;
  label: string;
  /** Changes when the view is to begin anew. */
  viewKey: string;
  onOpen(box: PlacedBox): void;
  onGrow(box: PlacedBox, way: "up" | "down"): void;
  onShrink(box: PlacedBox): void;
  handle: { current: CanvasHandle | null };
}

/** What buttons outside of the drawing do with it. */
export interface CanvasHandle {
  zoom(factor: number): void;
  fit(): void;
  centre(): void;
}

const LEAST_HEIGHT = 300;
/** Of the window's height, at most. Lanes stand below each other, and are all of the story. */
const SHARE = 0.68;
const LANES_SHARE = 0.71;
const PAN_STEP = 80;
const DRAG_PIXELS = 4;
const ARROWS: Record<string, Step> = {
  ArrowUp: "up",
  ArrowDown: "down",
  ArrowLeft: "left",
  ArrowRight: "right",
  n: "next",
  p: "previous",
};
const PANS: Record<string, [number, number]> = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [1, 0], ArrowRight: [-1, 0] };

/** It changes the elements themselves; what it needs of a drawing it gets by `update`. */
export class Stage implements CanvasHandle {
  active: string | null = null;
  private view: View | null = null;
  private viewKey = "";
  private props!: CanvasProps;
  private boxes = new Map<string, PlacedBox>();
  private before = new Map<string, PlacedBox>();
  private paths!: Paths;
  private svg!: { current: SVGSVGElement | null };
  private said!: { current: HTMLParagraphElement | null };
  private onView!: (view: View, size: Size) => void;
  private frame = 0;
  private lighted: string | null = null;
  private hadFocus = false;
  /** The click that ends a drag opens nothing. */
  private dragged = false;

  update(
    props: CanvasProps,
    boxes: Map<string, PlacedBox>,
    paths: Paths,
    svg: { current: SVGSVGElement | null },
    said: { current: HTMLParagraphElement | null },
    onView: (view: View, size: Size) => void,
  ): void {
    if (boxes !== this.boxes) {
      this.before = this.boxes;
      this.boxes = boxes;
      if (this.active === null || !boxes.has(this.active) || props.viewKey !== this.viewKey) {
        const kept = this.active !== null && props.viewKey === this.viewKey ? this.heir(this.active, boxes) : null;
        this.hadFocus = kept !== null && (svg.current?.contains(document.activeElement) ?? false);
        this.active = kept ?? (boxes.has(props.focus) ? props.focus : (props.drawing.nodes[0]?.id ?? null));
      }
    }
    Object.assign(this, { props, paths, svg, said, onView });
  }

  /** Place the view after a drawing: anew for another event, else so that the active box stays where it was. */
  drawn(): void {
    const { props } = this;
    if (!this.svg.current || props.drawing.nodes.length === 0) return;
    const isNew = this.view === null || this.viewKey !== props.viewKey;
    if (isNew) this.viewKey = props.viewKey;
    if (isNew || this.before.size > 0) {
      this.resize(isNew);
      const size = this.size();
      const view = isNew || fits(props.drawing, size) ? firstView(props.drawing, this.boxes.get(props.focus), size) : this.held();
      this.show(view);
      this.onView(view, size);
    }
    this.before = new Map();
    if (this.hadFocus) {
      this.hadFocus = false;
      this.elementOf(this.active ?? "")?.focus({ preventScroll: true });
    }
    this.light(this.lighted);
  }

  /** The view in which the active box stays where it was. */
  private held(): View {
    const { x, y, k } = this.view!;
    const [old, now] = [this.before.get(this.active ?? ""), this.boxes.get(this.active ?? "")];
    const moved = old && now ? { k, x: x + k * (old.x - now.x), y: y + k * (old.y - now.y) } : this.view!;
    return now ? reveal(moved, now, this.size()) : moved;
  }

  zoom(factor: number): void {
    const { width, height } = this.size();
    if (this.view) this.show(zoomAt(this.view, factor, width / 2, height / 2));
  }

  fit(): void {
    this.show(fit(this.props.drawing, this.size()));
  }

  centre(): void {
    const box = this.boxes.get(this.props.focus);
    if (box) this.show(centre(box, this.size(), Math.max(0.9, this.view?.k ?? 1)));
  }

  /** Listen until the function that is returned is called. */
  listen(): () => void {
    const svg = this.svg.current!;
    const stop = new AbortController();
    const { signal } = stop;
    svg.addEventListener("wheel", (event) => this.onWheel(event), { passive: false, signal });
    svg.addEventListener("keydown", (event) => this.onKey(event), { signal });
    svg.addEventListener("focusin", (event) => this.onFocus(event), { signal });
    svg.addEventListener("focusout", () => this.light(null), { signal });
    svg.addEventListener("pointerover", (event) => this.light(boxIdAt(event.target) ?? this.focused()), { signal });
    svg.addEventListener("pointerleave", () => this.light(this.focused()), { signal });
    svg.addEventListener("pointerdown", (event) => this.onPointer(event), { signal });
    svg.addEventListener("click", (event) => this.onClick(event), { signal });
    const observer = new ResizeObserver(() => {
      if (this.view) this.show(this.view);
    });
    observer.observe(svg);
    return () => {
      stop.abort();
      observer.disconnect();
      cancelAnimationFrame(this.frame);
    };
  }

  private size(): Size {
    const svg = this.svg.current!;
    return { width: svg.clientWidth || 800, height: svg.clientHeight || LEAST_HEIGHT };
  }

  /** A small graph takes little of the page; one that grows gets more. */
  private resize(isNew: boolean): void {
    const svg = this.svg.current!;
    const share = this.props.drawing.lanes.length > 0 ? LANES_SHARE : SHARE;
    const most = Math.max(LEAST_HEIGHT, Math.round(share * window.innerHeight));
    const least = isNew ? LEAST_HEIGHT : Math.min(most, svg.clientHeight);
    svg.style.height = `${Math.min(most, Math.max(least, Math.ceil(this.props.drawing.height) + 90))}px`;
  }

  private show(view: View): void {
    this.view = view;
    // A movement may end after the reader went to another page.
    const svg = this.svg.current;
    if (!svg) return;
    const { x, y, k } = view;
    svg.querySelector("[data-world]")!.setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
    const move = (texts: string, by: "x" | "y", at: (place: number) => number) => {
      for (const text of svg.querySelectorAll(texts)) text.setAttribute(by, String(at(Number(text.getAttribute(`data-${by}`)))));
    };
    move("[data-ticks] text", "x", (place) => x + k * place);
    move("[data-names] text", "y", (place) => y + k * place + Math.min(18, k * LANE_TOP - 3));
    if (this.frame === 0) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        if (this.view && this.svg.current) this.onView(this.view, this.size());
      });
    }
  }

  /** Light the path of a box, or nothing's. */
  private light(id: string | null): void {
    const svg = this.svg.current;
    if (!svg) return;
    const box = id === null ? undefined : this.boxes.get(id);
    this.lighted = box ? box.id : null;
    if (this.said.current) this.said.current.textContent = box ? boxLabel(box, this.paths, this.props.focus) : HINT;
    svg.toggleAttribute("data-dim", box !== undefined);
    if (!box) return;
    const path = lit(box.id, this.paths);
    for (const element of svg.querySelectorAll<SVGElement>("[data-id]")) {
      const at = element.dataset["id"]!;
      element.toggleAttribute("data-lit", path.above.has(at) || path.below.has(at));
    }
    for (const element of svg.querySelectorAll<SVGElement>("[data-parent]")) {
      element.toggleAttribute("data-lit", isLit({ parent: element.dataset["parent"]!, child: element.dataset["child"]! }, path));
    }
  }

  private focused(): string | null {
    const element = document.activeElement;
    return element && this.svg.current?.contains(element) ? boxIdAt(element) : null;
  }

  private elementOf(id: string): SVGElement | null {
    return this.svg.current?.querySelector<SVGElement>(`[data-id="${CSS.escape(id)}"]`) ?? null;
  }

  /** A box that stands for an event of one that is gone: its group, or the first that its group let go. */
  private heir(id: string, boxes: Map<string, PlacedBox>): string | null {
    const events = new Set(this.before.get(id)?.events.map((event) => event.id));
    for (const box of boxes.values()) if (box.events.some((event) => events.has(event.id))) return box.id;
    return null;
  }

  private go(box: PlacedBox): void {
    this.elementOf(this.active ?? "")?.setAttribute("tabindex", "-1");
    this.active = box.id;
    if (this.view) this.show(reveal(this.view, box, this.size()));
    const element = this.elementOf(box.id);
    if (element) {
      element.setAttribute("tabindex", "0");
      element.focus({ preventScroll: true });
      return;
    }
    // It is not in the page yet: the part that is drawn changes first.
    this.hadFocus = true;
  }

  private onFocus(event: FocusEvent): void {
    const id = boxIdAt(event.target);
    if (id === null || id === this.active) {
      this.light(id);
      return;
    }
    this.elementOf(this.active ?? "")?.setAttribute("tabindex", "-1");
    this.active = id;
    this.elementOf(id)?.setAttribute("tabindex", "0");
    this.light(id);
  }

  private onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.onViewKey(event) || this.onBoxKey(event)) event.preventDefault();
  }

  private onViewKey(event: KeyboardEvent): boolean {
    const pan = event.shiftKey ? PANS[event.key] : undefined;
    if (pan && this.view) this.show({ ...this.view, x: this.view.x + pan[0] * PAN_STEP, y: this.view.y + pan[1] * PAN_STEP });
    else if (event.key === "z") this.zoom(1.25);
    else if (event.key === "x") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else return false;
    return true;
  }

  private onBoxKey(event: KeyboardEvent): boolean {
    const box = this.boxes.get(this.active ?? "");
    if (!box) return false;
    const way = ARROWS[event.key];
    if (way) {
      const next = step(box, way, this.props.drawing, this.paths);
      if (next) this.go(next);
    } else if (event.key === "Home") {
      const focus = this.boxes.get(this.props.focus);
      if (focus) this.go(focus);
    } else if (event.key === "Enter" || event.key === " ") this.props.onOpen(box);
    else if (event.key === "+" || event.key === "=") this.grow(box);
    else if (event.key === "-") this.props.onShrink(box);
    else return false;
    return true;
  }

  private grow(box: PlacedBox): void {
    if (box.hiddenChildren > 0) this.props.onGrow(box, "down");
    else if (box.hiddenParents > 0) this.props.onGrow(box, "up");
    else if (box.events.length > 1) this.props.onOpen(box);
  }

  /** The wheel zooms when the graph has the focus or with Ctrl; else the page scrolls, as everywhere. */
  private onWheel(event: WheelEvent): void {
    const svg = this.svg.current!;
    if (!(event.ctrlKey || event.metaKey || svg.contains(document.activeElement)) || !this.view) return;
    event.preventDefault();
    const rect = svg.getBoundingClientRect();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    const factor = Math.exp(-Math.max(-120, Math.min(120, pixels)) * (event.ctrlKey ? 0.008 : 0.002));
    this.show(zoomAt(this.view, factor, event.clientX - rect.left, event.clientY - rect.top));
  }

  private onPointer(event: PointerEvent): void {
    const svg = this.svg.current!;
    this.dragged = false;
    if (event.button !== 0 || !this.view) return;
    const start = { x: event.clientX, y: event.clientY, view: this.view };
    let isDrag = false;
    const stop = new AbortController();
    const move = (moved: PointerEvent) => {
      if (moved.buttons === 0) {
        // The button was released where the drawing did not hear it.
        end();
        return;
      }
      const [dx, dy] = [moved.clientX - start.x, moved.clientY - start.y];
      if (!isDrag && Math.hypot(dx, dy) < DRAG_PIXELS) return;
      if (!isDrag) svg.setPointerCapture(event.pointerId);
      isDrag = true;
      this.dragged = true;
      svg.toggleAttribute("data-drag", true);
      this.show({ k: start.view.k, x: start.view.x + dx, y: start.view.y + dy });
    };
    const end = () => {
      stop.abort();
      svg.toggleAttribute("data-drag", false);
    };
    svg.addEventListener("pointermove", move, { signal: stop.signal });
    svg.addEventListener("pointerup", end, { signal: stop.signal });
    svg.addEventListener("pointercancel", end, { signal: stop.signal });
  }

  private onClick(event: MouseEvent): void {
    if (this.dragged) return;
    const target = event.target instanceof Element ? event.target : null;
    const more = target?.closest<SVGElement>("[data-grow]");
    const box = this.boxes.get(more?.dataset["box"] ?? boxIdAt(target) ?? "");
    if (!box) return;
    this.active = box.id;
    if (more) this.props.onGrow(box, more.dataset["grow"] === "up" ? "up" : "down");
    else this.props.onOpen(box);
  }
}

const HINT = "Point at an event to see its path; click it to open it. By keyboard: Tab into the graph, then arrow keys and Enter.";

function boxIdAt(target: EventTarget | null): string | null {
  const element = target instanceof Element ? target.closest<SVGElement>("[data-id]") : null;
  return element?.dataset["id"] ?? null;
}
