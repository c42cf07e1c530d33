// The legend of the colours.

import { gradient } from "../drawing/colours.js";
import { element } from "../drawing/dom.js";
import { number } from "../drawing/format.js";
import { ticks } from "../drawing/scale.js";
import { MARKS, markOf, sample } from "./cells.js";

/** Return the bar of a scale with its two ends, for a single run. */
export function rangeBar(scale) {
  if (scale.kind === "none") return [element("span", {}, "no finite value")];
  const bar = element("span", { class: "bar" });
  bar.style.background = gradient("to right", scale.diverging);
  return [element("span", {}, lowEnd(scale)), bar, element("span", {}, highEnd(scale))];
}

/** Make the legend of the shared scale. */
export function legend() {
  const bar = element("div", { class: "bar" });
  const marks = element("div", { class: "ticks" });
  const scaleBox = element("div", { class: "scale" }, bar, marks);
  const keys = element("div", { class: "keys" });
  const note = element("span", { class: "note" });
  return {
    element: element("div", { class: "legend", "aria-label": "Colour scale", role: "group" }, scaleBox, keys, note),
    /** Show a scale (null: each run has its own), the kinds of marks in the pictures, and a remark. */
    show(scale, kinds, remark) {
      scaleBox.hidden = !scale || scale.kind === "none";
      if (!scaleBox.hidden) {
        bar.style.background = gradient("to right", scale.diverging);
        marks.replaceChildren(...tickLabels(scale));
      }
      keys.replaceChildren(
        ...Object.keys(MARKS)
          .filter((kind) => kinds.has(kind))
          .map(keyOf),
      );
      if (kinds.has("blank"))
        keys.append(element("span", { class: "key" }, element("span", { class: "blank" }), "nothing logged"));
      note.textContent = remark;
    },
  };
}

function tickLabels(scale) {
  if (scale.low === scale.high) return [tickLabel(0.5, `all ${number(scale.low, 3)}`)];
  const ends = [tickLabel(0, lowEnd(scale)), tickLabel(1, highEnd(scale))];
  const between = ticks(scale, 4).map((value) => [scale.position(value), number(value, 3)]);
  const apart = between.filter(([place]) => place > 0.16 && place < 0.84);
  return [ends[0], ...apart.map(([place, text]) => tickLabel(place, text)), ends[1]];
}

function lowEnd(scale) {
  return (scale.below || scale.least < scale.low ? "≤ " : "") + number(scale.low, 3);
}

function highEnd(scale) {
  return (scale.most > scale.high ? "≥ " : "") + number(scale.high, 3);
}

function tickLabel(place, text) {
  return element("span", { class: "tick", style: `left:${place * 100}%;transform:translateX(${-place * 100}%)` }, text);
}

function keyOf(kind) {
  return element("span", { class: "key" }, sample(kind, 18), MARKS[kind].label);
}

/** Return the marks in rows of values, including "blank". */
export function kindsIn(rows) {
  const kinds = new Set();
  for (const row of rows) {
    for (const value of row) {
      if (value === null) kinds.add("blank");
      else if (!Number.isFinite(value)) kinds.add(markOf(value));
    }
  }
  return kinds;
}
