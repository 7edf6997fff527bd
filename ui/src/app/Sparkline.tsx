/** Sixty seconds of counts, as an area: how it goes, not how much exactly. */

import type { JSX } from "preact";

const WIDTH = 240;
const HEIGHT = 40;

export function Sparkline({ counts, label }: { counts: number[]; label: string }): JSX.Element {
  return (
    <svg class="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      <path class="sparkline-area" d={`${linePath(counts)} L${WIDTH},${HEIGHT} L0,${HEIGHT} Z`} />
      <path class="sparkline-line" d={linePath(counts)} vector-effect="non-scaling-stroke" />
    </svg>
  );
}

/** Return the path of a line through counts; the highest one is at the top, 0 at the bottom. */
export function linePath(counts: number[]): string {
  const most = Math.max(1, ...counts);
  const step = WIDTH / Math.max(1, counts.length - 1);
  return counts
    .map((count, index) => {
      const x = Number((index * step).toFixed(1));
      const y = Number((HEIGHT - 1 - (count / most) * (HEIGHT - 3)).toFixed(1));
      return `${index === 0 ? "M" : "L"}${x},${y}`;
    })
    .join(" ");
}
