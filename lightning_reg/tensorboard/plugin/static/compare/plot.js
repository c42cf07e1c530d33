// Points over a strength: a logarithmic axis, with a separate zero at its start.

import { shape } from "../drawing/dom.js";
import { number } from "../drawing/format.js";
import { extent, scaleOver, ticks } from "../drawing/scale.js";

const MARGIN = { left: 56, right: 14, top: 12, bottom: 24 };
const ZERO = 0.12; // share of the width for zero, if there is one

/** Return the position, in [0, 1], of each of `values` on the axis, and the ticks. */
function strengthAxis(values) {
  const positive = values.filter((value) => value > 0);
  const start = positive.length < values.length && positive.length ? ZERO : 0;
  const scale = scaleOver(extent([[positive]]), "log");
  const place = (value) => (value > 0 ? start + (1 - start) * scale.position(value) : 0);
  const marks = scale.low < scale.high ? ticks(scale, 4) : positive.slice(0, 1);
  return { place, marks: [...(positive.length < values.length ? [0] : []), ...marks] };
}

/** Fill an SVG picture with `points`: `{ x, mean, low, high, best, label }`. */
export function plot(picture, points, { title, height, format = (value) => number(value, 3) }) {
  const width = picture.clientWidth;
  const axis = strengthAxis(points.map((point) => point.x));
  const y = scaleOver(extent([points.map((point) => [point.low, point.high])]), "linear");
  const across = (value) => MARGIN.left + 8 + axis.place(value) * (width - MARGIN.left - MARGIN.right - 16);
  const up = (value) => height - MARGIN.bottom - y.position(value) * (height - MARGIN.top - MARGIN.bottom);
  const marks = [];
  for (const value of y.low === y.high ? [y.low] : ticks(y, 3)) {
    marks.push(
      shape("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: up(value), y2: up(value) }),
      shape("text", { class: "axis", x: MARGIN.left - 6, y: up(value) + 4, "text-anchor": "end" }, format(value)),
    );
  }
  for (const value of axis.marks) {
    marks.push(
      shape("text", { class: "axis", x: across(value), y: height - 6, "text-anchor": "middle" }, number(value, 3)),
    );
  }
  const drawn = points
    .filter((point) => Number.isFinite(point.mean))
    .map((point) => {
      const [x, middle] = [across(point.x), up(point.mean)];
      const group = shape("g", { class: point.best ? "point best" : "point", "data-x": point.x, "data-mean": point.mean });
      group.append(
        shape("title", {}, point.label),
        shape("line", { x1: x, x2: x, y1: up(point.low), y2: up(point.high) }),
        shape("circle", { cx: x, cy: middle, r: point.best ? 6 : 4 }),
      );
      return group;
    });
  picture.setAttribute("aria-label", `${title}. ${points.map((point) => point.label).join(". ")}`);
  picture.replaceChildren(...marks, ...drawn);
}
