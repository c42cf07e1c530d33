// The step axis under a heatmap.

import { element } from "../drawing/dom.js";
import { shortStep } from "../drawing/format.js";

const ROOM = 64;

/** Return labels for some of the steps, each under the middle of its column. */
export function stepLabels(steps, width) {
  const wanted = Math.max(2, Math.min(steps.length, Math.floor(width / ROOM)));
  const places = new Set();
  for (let index = 0; index < wanted; index++) {
    places.add(Math.round((index / Math.max(wanted - 1, 1)) * (steps.length - 1)));
  }
  return [...places].map((column) => {
    const share = (column + 0.5) / steps.length;
    // The outer labels stay within the picture.
    const shift = share < 0.08 ? 0 : share > 0.92 ? -100 : -50;
    const style = `left:${share * 100}%;transform:translateX(${shift}%)`;
    return element("span", { class: "step", style }, shortStep(steps[column]));
  });
}
