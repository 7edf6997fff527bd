/** The graph of the event that is shown, as the page holds it. */

import { useEffect, useRef, useState } from "preact/hooks";

import { type Gathered, gather } from "./lineage";
import type { Load } from "./types";

export interface Holding {
  gathered: Gathered | null;
  /** Why it could not be loaded, in words. */
  problem: string | null;
  isLoading: boolean;
  /** What was done last, in words. */
  notice: string;
  setNotice(text: string): void;
  /** Take what was added to a lineage, unless another one is there by now. */
  replace(from: Gathered, to: Gathered): void;
  reload(): void;
}

/** Load what is around an event, again when it or what is shown of it changes. */
export function useGathered(load: Load, id: string, up: number | null, down: number): Holding {
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
    if (had && had.gathered.isWhole && had.gathered.lineage.focus === id && had.round === round) {
      // What was asked for another event meanwhile, and why that failed, is of no interest here.
      setLoading(false);
      setProblem(null);
      return;
    }
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
  const replace = (from: Gathered, to: Gathered) => setAll((now) => (now === from ? to : now));
  return { gathered, problem, isLoading, notice, setNotice, replace, reload: () => setRound(round + 1) };
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
