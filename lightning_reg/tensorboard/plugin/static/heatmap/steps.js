// The step axis: where columns and labels stand. Steps are in proportion, and the same for all runs if wanted.

import { element } from "../drawing/dom.js";
import { shortStep } from "../drawing/format.js";
import { ticks } from "../drawing/scale.js";

const ROOM = 64;

/** Return the step at which each column begins, and behind them the one at which the last column ends. */
export function edgesOf(steps) {
  const gaps = steps.slice(1).map((step, index) => step - steps[index]);
  gaps.sort((one, other) => one - other);
  // The last column stands for as many steps as the others mostly do.
  return [...steps, (steps.at(-1) ?? 0) + (gaps[gaps.length >> 1] ?? 1)];
}

/** Return the axis that holds all of `runs`, lists of steps. */
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

/** Return the place of a step on an axis, as a share of it. */
export function placeOf(step, { first, last }) {
  return last > first ? (step - first) / (last - first) : 0;
}

/** Return labels at round steps, each where its column begins. */
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
