// The step axis: positions of columns and labels. Steps are drawn to scale, on request on one scale for all runs.

import { element } from "../drawing/dom.js";
import { shortStep } from "../drawing/format.js";
import { ticks } from "../drawing/scale.js";

const ROOM = 64;

/** Return the step at which each column begins, followed by the step at which the last column ends. */
export function edgesOf(steps) {
  const gaps = steps.slice(1).map((step, index) => step - steps[index]);
  gaps.sort((one, other) => one - other);
  // The last column is as wide as most of the others.
  return [...steps, (steps.at(-1) ?? 0) + (gaps[gaps.length >> 1] ?? 1)];
}

/** Return the axis that covers all `runs`, lists of steps. */
export function axisOf(runs) {
  const axis = { first: Infinity, last: -Infinity };
  for (const steps of runs) {
    if (!steps.length) continue;
    const edges = edgesOf(steps);
    axis.first = Math.min(axis.first, edges[0]);
    axis.last = Math.max(axis.last, edges.at(-1));
  }
  return axis;
}

/** Return the position of a step on an axis, as a share of its length. */
export function placeOf(step, { first, last }) {
  return last > first ? (step - first) / (last - first) : 0;
}

/** Return labels at round steps, each at the beginning of its column. */
export function stepLabels(axis, width) {
  const wanted = Math.max(2, Math.floor(width / ROOM));
  const round = ticks({ kind: "linear", low: axis.first, high: axis.last }, wanted).filter(Number.isInteger);
  return round.map((step) => {
    const share = placeOf(step, axis);
    // The outer labels stay within the picture.
    const shift = share < 0.04 ? 0 : share > 0.94 ? -100 : -50;
    const style = `left:${share * 100}%;transform:translateX(${shift}%)`;
    return element("span", { class: "step", style }, shortStep(step));
  });
}
