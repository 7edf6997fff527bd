/** What the reader let out of a graph: generations of single events, and events of groups. */

import { useEffect, useRef, useState } from "preact/hooks";

import { type Holding, messageOf } from "./gathered";
import { EXPAND_STEP } from "./group";
import { grow, neighbours } from "./lineage";
import type { Load, PlacedBox } from "./types";
import { counted } from "./words";

export interface Opened {
  /** Events whose causes are shown, and those whose effects are. */
  up: ReadonlySet<string>;
  down: ReadonlySet<string>;
  /** How many events a group let go, by the group's id. */
  groups: ReadonlyMap<string, number>;
}

const CLOSED: Opened = { up: new Set(), down: new Set(), groups: new Map() };

export interface Opening {
  opened: Opened;
  isOpened: boolean;
  expand(box: PlacedBox): void;
  growBox(box: PlacedBox, way: "up" | "down"): Promise<void>;
  shrink(box: PlacedBox): void;
  close(): void;
}

/** Hold what is let out of the graph of `focus`, and ask for what is not at hand. */
export function useOpened(focus: string, load: Load, holding: Holding): Opening {
  const [opened, setOpened] = useState<Opened>(CLOSED);
  const { gathered, setNotice, replace } = holding;
  useEffect(() => setOpened(CLOSED), [focus]);
  const focusNow = useRef(focus);
  focusNow.current = focus;

  const expand = (box: PlacedBox) => {
    setOpened((now) => ({ ...now, groups: new Map(now.groups).set(box.id, (now.groups.get(box.id) ?? 0) + EXPAND_STEP) }));
    setNotice(`${counted(Math.min(EXPAND_STEP, box.events.length), "event")} of the group drawn.`);
  };

  const growBox = async (box: PlacedBox, way: "up" | "down") => {
    if (!gathered) return;
    const word = way === "up" ? "cause" : "effect";
    const lacking = lackingOf(box, way, gathered.lineage.edges);
    if (lacking.length === 0) setNotice(`${counted(way === "up" ? box.hiddenParents : box.hiddenChildren, word)} added.`);
    else {
      setNotice(`Asking for ${word}s…`);
      try {
        const lineage = await grow(load, gathered.lineage, lacking, way);
        if (focusNow.current !== focus) return;
        const added = lineage.nodes.length - gathered.lineage.nodes.length;
        const isNew = added > 0 || lineage.edges.length > gathered.lineage.edges.length;
        replace(gathered, { ...gathered, lineage });
        setNotice(isNew ? `${counted(added, word)} added.` : `The ${word}s that are not drawn are no longer kept.`);
      } catch (error) {
        if (focusNow.current === focus) setNotice(`The ${word}s could not be loaded. ${messageOf(error)}`);
        return;
      }
    }
    setOpened((now) => ({ ...now, [way]: new Set([...now[way], ...box.events.map(({ id }) => id)]) }));
  };

  const shrink = (box: PlacedBox) => {
    const own = new Set(box.events.map(({ id }) => id));
    const without = (ids: ReadonlySet<string>) => new Set(Array.from(ids).filter((id) => !own.has(id)));
    setOpened((now) => {
      const groups = new Map(now.groups);
      groups.delete(box.of ?? box.id);
      return { up: without(now.up), down: without(now.down), groups };
    });
  };

  const isOpened = opened.up.size + opened.down.size + opened.groups.size > 0;
  return { opened, isOpened, expand, growBox, shrink, close: () => setOpened(CLOSED) };
}

/** Events of a box that have more causes or effects than are at hand. */
function lackingOf(box: PlacedBox, way: "up" | "down", edges: readonly { parent: string; child: string }[]): string[] {
  const near = neighbours({ edges });
  const map = way === "up" ? near.parents : near.children;
  const total = way === "up" ? "parents_total" : "children_total";
  return box.events.filter((event) => event[total] > (map.get(event.id)?.length ?? 0)).map(({ id }) => id);
}
