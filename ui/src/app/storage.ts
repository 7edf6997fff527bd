/** What the browser keeps for this page; where it was told to keep nothing, until the page is left. */

export interface Kept {
  get(name: string): string | null;
  set(name: string, value: string | null): void;
}

/** `storage`: looks it up; a browser that was told to keep nothing throws already then. */
export function keptIn(storage: () => Storage): Kept {
  const here = new Map<string, string>();
  return {
    get(name) {
      try {
        return storage().getItem(name);
      } catch {
        return here.get(name) ?? null;
      }
    },
    set(name, value) {
      try {
        if (value === null) storage().removeItem(name);
        else storage().setItem(name, value);
      } catch {
        if (value === null) here.delete(name);
        else here.set(name, value);
      }
    },
  };
}
