// The curve of one layer in all runs that are shown.

import { strokeOf } from "../drawing/colours.js";
import { element, shape } from "../drawing/dom.js";
import { number, shortStep, title } from "../drawing/format.js";
import { extent, scaleOver, ticks } from "../drawing/scale.js";
import * as api from "../server/api.js";
import { plotted } from "./lines.js";

const POINTS = 500;
const MARGIN = { left: 56, right: 12, top: 10, bottom: 22 };
const HEIGHT = 190;
const CLEAR = 8; // pixels between a row and the panel

/** Make the panel. `close()` is called when the user closes it. */
export function curvePanel(tip, close) {
  const heading = element("h2");
  const closing = element(
    "button",
    { type: "button", class: "text", onclick: close, "aria-label": "Close the curve" },
    "Close",
  );
  const picture = shape("svg", {
    class: "curve",
    role: "img",
    tabindex: 0,
    height: HEIGHT,
    "aria-label": "Curve of one layer",
  });
  const names = element("ul", { class: "curve-names", tabindex: 0, "aria-label": "Runs and their last values" });
  const message = element("p", { class: "message" });
  const panel = element(
    "section",
    { class: "card curve-panel", "aria-label": "Curve of one layer", hidden: true },
    element("header", {}, heading, closing),
    element("div", { class: "curve-body" }, picture, names),
    message,
  );
  let shown = null; // the content of the picture
  let read = { key: "", curves: [] };
  let probe = null;
  let opener = null; // the element that had the focus before

  function paint() {
    if (!shown || panel.hidden) return;
    const { curves, state, dark } = shown;
    const width = picture.clientWidth;
    const steps = curves.flatMap((curve) => curve.steps);
    const values = curves.map((curve) => curve.values);
    const y = scaleOver(extent([values]), state.scale);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const place = {
      x: (step) =>
        MARGIN.left + (last > first ? (step - first) / (last - first) : 0.5) * (width - MARGIN.left - MARGIN.right),
      y: (value) => HEIGHT - MARGIN.bottom - y.position(value) * (HEIGHT - MARGIN.top - MARGIN.bottom),
    };
    const lines = curves.map((curve) => plotted(curve, place, strokeOf(curve.index, dark)));
    const axis = steps.length ? axes(y, { kind: "linear", low: first, high: last }, place, width) : [];
    picture.replaceChildren(...axis, ...lines, ...probeLine(place));
    names.replaceChildren(...curves.map((curve) => nameOf(curve, dark)));
  }

  function probeLine(place) {
    if (probe === null) return [];
    const x = place.x(probe);
    return [shape("line", { class: "probe", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom })];
  }

  function allSteps() {
    return [...new Set(shown.curves.flatMap((curve) => curve.steps))].sort((one, other) => one - other);
  }

  function tell(step) {
    probe = step;
    paint();
    const lines = shown.curves.map((curve) => `${curve.title}: ${number(curve.values[nearest(curve.steps, step)])}`);
    const box = picture.getBoundingClientRect();
    const mark = picture.querySelector(".probe");
    tip.show(
      [[`step ${step}`, "strong"], ...lines.map((text) => [text, ""])],
      box.left + Number(mark.getAttribute("x1")),
      box.top + 20,
    );
    return `step ${step}. ${lines.join(", ")}`;
  }

  function hush() {
    probe = null;
    tip.hide();
    paint();
  }

  picture.addEventListener("pointermove", (event) => {
    const steps = shown && allSteps();
    if (!steps?.length) return;
    const box = picture.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    tell(steps[nearest(steps, steps[0] + share * (steps.at(-1) - steps[0]))]);
  });
  picture.addEventListener("pointerleave", hush);
  picture.addEventListener("blur", hush);
  picture.addEventListener("keydown", (event) => {
    const steps = shown && allSteps();
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (!steps?.length || !move) return;
    event.preventDefault();
    const from = probe === null ? steps.length - 1 : steps.indexOf(probe);
    tip.say(tell(steps[Math.min(Math.max(from + move, 0), steps.length - 1)]));
  });
  new ResizeObserver(() => requestAnimationFrame(paint)).observe(picture);

  return {
    element: panel,
    /** Scroll so that the panel does not cover `row`. */
    leaveInSight(row) {
      const hidden = row.getBoundingClientRect().bottom + CLEAR - panel.getBoundingClientRect().top;
      if (!panel.hidden && hidden > 0) window.scrollBy(0, hidden);
    },
    /** Show the chosen layer; reads its curve if the layer has changed, or if `again`. */
    async show(view, state, dark, again = false) {
      const open = Boolean(state.layer && view.metric);
      if (open && panel.hidden) opener = document.activeElement;
      else if (!open && panel.contains(document.activeElement)) opener?.focus();
      panel.hidden = !open;
      if (!open) return;
      heading.replaceChildren(
        element("span", { class: "strong" }, state.layer),
        ` ${title(view.metric).toLowerCase()} over all runs`,
      );
      const key = JSON.stringify([view.metric, state.layer]);
      if (key !== read.key || again) {
        if (key !== read.key) {
          [shown, probe] = [null, null];
          // Lines of the previous layer must not stand under this heading until the answer arrives.
          picture.replaceChildren();
          names.replaceChildren();
        }
        const pending = { key, curves: key === read.key ? read.curves : [] };
        read = pending;
        try {
          pending.curves = await api.curves(view.metric, state.layer, POINTS);
          message.textContent = "";
        } catch (error) {
          message.textContent = error.missing ? "No run has this layer." : error.message;
        }
        if (read !== pending) return; // another layer was chosen meanwhile
      }
      const byName = new Map(read.curves.map((curve) => [curve.run, curve]));
      const curves = view.shown
        .filter((run) => byName.has(run.name))
        .map((run) => ({ ...byName.get(run.name), title: run.title, index: run.colour }));
      shown = { curves, state, dark };
      picture.setAttribute(
        "aria-label",
        `${title(view.metric)} of ${state.layer}. Left and right arrow keys read values.`,
      );
      paint();
    },
  };
}

/** Return the index of the step nearest to `step`. */
function nearest(steps, step) {
  let best = 0;
  steps.forEach((each, index) => {
    if (Math.abs(each - step) < Math.abs(steps[best] - step)) best = index;
  });
  return best;
}

function axes(y, x, place, width) {
  const marks = [];
  const values = y.low === y.high ? [y.low] : ticks(y, 5);
  for (const value of values) {
    const at = place.y(value);
    marks.push(shape("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    marks.push(shape("text", { class: "axis", x: MARGIN.left - 6, y: at + 4, "text-anchor": "end" }, number(value, 3)));
  }
  for (const step of ticks(x, Math.max(2, Math.floor(width / 90)))) {
    if (!Number.isInteger(step)) continue;
    marks.push(
      shape("text", { class: "axis", x: place.x(step), y: HEIGHT - 6, "text-anchor": "middle" }, shortStep(step)),
    );
  }
  return marks;
}

function nameOf(curve, dark) {
  const { colour, dash } = strokeOf(curve.index, dark);
  const sample = shape("svg", { width: 18, height: 10, "aria-hidden": "true" });
  sample.append(
    shape("line", { x1: 0, x2: 18, y1: 5, y2: 5, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }),
  );
  const last = curve.values.findLast((value) => value !== null) ?? null;
  return element(
    "li",
    { title: curve.run },
    sample,
    element("span", { class: "name" }, curve.title),
    element("span", { class: "last" }, number(last)),
  );
}
