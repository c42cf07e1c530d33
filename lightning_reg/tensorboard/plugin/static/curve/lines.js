// The line of one run. It breaks where no finite value was logged; NaN and infinities are drawn as crosses.

import { shape } from "../drawing/dom.js";

const ARM = 3;

/** Return the line as a group of SVG shapes; `place` turns steps and values into pixels. */
export function plotted({ run, steps, values }, place, { colour, dash }) {
  const group = shape("g", { "data-run": run, stroke: colour, fill: "none" });
  let path = "";
  let pen = "M";
  let last = null;
  const crosses = [];
  steps.forEach((step, index) => {
    const value = values[index];
    if (value === null) return;
    if (!Number.isFinite(value)) {
      crosses.push([step, last]);
      pen = "M";
      return;
    }
    path += `${pen}${place.x(step).toFixed(1)} ${place.y(value).toFixed(1)}`;
    // A single point is a line of length zero with round ends.
    if (pen === "M") path += "h0";
    pen = "L";
    last = value;
  });
  group.append(
    shape("path", {
      d: path,
      "stroke-width": 1.8,
      "stroke-dasharray": dash,
      "stroke-linecap": "round",
      "stroke-linejoin": "round",
    }),
  );
  for (const [step, value] of crosses) {
    const [x, y] = [place.x(step), value === null ? place.y(NaN) || ARM + 1 : place.y(value)];
    group.append(shape("path", { d: `M${x - ARM} ${y - ARM}l6 6m0 -6l-6 6` }));
  }
  return group;
}
