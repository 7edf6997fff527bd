/** Order and layers of a directed graph given as numbers, in linear time and without recursion. */

/** For each key the numbers of the arrows that have it: `items[start[key] … start[key + 1] - 1]`. */
export interface Index {
  start: Int32Array;
  items: Int32Array;
}

/** Index arrows by one of their ends, in the order of the arrows. */
export function indexBy(count: number, keys: ArrayLike<number>): Index {
  const start = new Int32Array(count + 1);
  for (let arrow = 0; arrow < keys.length; arrow++) start[keys[arrow]! + 1]!++;
  for (let key = 0; key < count; key++) start[key + 1]! += start[key]!;
  const next = start.slice();
  const items = new Int32Array(keys.length);
  for (let arrow = 0; arrow < keys.length; arrow++) items[next[keys[arrow]!]!++] = arrow;
  return { start, items };
}

/**
 * Order nodes so that arrows go forwards (Kahn 1962).
 *
 * Where only circles are left, the first node of those left is taken: its arrows from later nodes go backwards.
 */
export function topological(count: number, from: Int32Array, to: Int32Array): Int32Array {
  const out = indexBy(count, from);
  const waits = new Int32Array(count);
  for (let arrow = 0; arrow < to.length; arrow++) waits[to[arrow]!]!++;
  const order = new Int32Array(count);
  const taken = new Uint8Array(count);
  let filled = 0;
  const take = (node: number) => {
    taken[node] = 1;
    order[filled++] = node;
  };
  for (let node = 0; node < count; node++) if (waits[node] === 0) take(node);
  let first = 0;
  for (let read = 0; read < count; read++) {
    if (read === filled) {
      while (taken[first]) first++;
      take(first);
    }
    const node = order[read]!;
    for (let at = out.start[node]!; at < out.start[node + 1]!; at++) {
      const child = to[out.items[at]!]!;
      if (--waits[child]! === 0 && !taken[child]) take(child);
    }
  }
  return order;
}

export interface Layers {
  layer: Int32Array;
  count: number;
  /** Arrows that go against the order, since they close a circle; they are layered the other way round. */
  against: Uint8Array;
}

/**
 * Give each node a layer below those of its causes: the longest path from a cause without causes.
 *
 * A node with more effects than causes then moves down towards its effects, so that lines are short.
 */
export function layersOf(count: number, from: Int32Array, to: Int32Array): Layers {
  const order = topological(count, from, to);
  const position = new Int32Array(count);
  order.forEach((node, at) => (position[node] = at));
  const against = new Uint8Array(from.length);
  const upper = from.slice();
  const lower = to.slice();
  for (let arrow = 0; arrow < from.length; arrow++) {
    if (position[from[arrow]!]! > position[to[arrow]!]!) {
      against[arrow] = 1;
      upper[arrow] = to[arrow]!;
      lower[arrow] = from[arrow]!;
    }
  }
  const down = indexBy(count, upper);
  const up = indexBy(count, lower);
  const layer = new Int32Array(count);
  for (const node of order) {
    for (let at = up.start[node]!; at < up.start[node + 1]!; at++) {
      layer[node] = Math.max(layer[node]!, layer[upper[up.items[at]!]!]! + 1);
    }
  }
  for (let at = count - 1; at >= 0; at--) {
    const node = order[at]!;
    const effects = down.start[node + 1]! - down.start[node]!;
    if (effects <= up.start[node + 1]! - up.start[node]!) continue;
    let nearest = Infinity;
    for (let item = down.start[node]!; item < down.start[node + 1]!; item++) {
      nearest = Math.min(nearest, layer[lower[down.items[item]!]!]!);
    }
    layer[node] = nearest - 1;
  }
  let least = Infinity;
  let most = -Infinity;
  for (const value of layer) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  if (count > 0) for (let node = 0; node < count; node++) layer[node]! -= least;
  return { layer, count: count > 0 ? most - least + 1 : 0, against };
}
