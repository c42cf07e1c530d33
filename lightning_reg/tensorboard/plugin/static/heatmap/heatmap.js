// The heatmap of one run: rows are layers, columns are steps.

import { element, widthOf } from "../drawing/dom.js";
import { count, number, title } from "../drawing/format.js";
import { labelsOf } from "../names/labels.js";
import { draw } from "./cells.js";
import { moved } from "./keyboard.js";
import { rangeBar } from "./legend.js";
import { edgesOf, placeOf, stepLabels } from "./steps.js";

const ROW = { least: 3, most: 26 };
const HEIGHT = { wanted: 300, most: 6000 }; // browsers draw nothing on a canvas that is too tall
const LABEL = { height: 13, share: 0.4, font: "11px Roboto, sans-serif", gap: 10, slack: 6 };

/** Make the card of a run. `pick(layer)` is called when the user chooses a row. */
export function heatmapCard(run, { tip, pick }) {
  const swatch = element("span", { class: "swatch" });
  const note = element("span", { class: "note" });
  const range = element("div", { class: "range" });
  const labels = element("div", { class: "labels" });
  const canvas = element("canvas");
  const rowMark = element("div", { class: "row-mark", hidden: true });
  const cellMark = element("div", { class: "cell-mark", hidden: true });
  const grid = element("div", { class: "grid", tabindex: 0, role: "application" }, canvas, rowMark, cellMark);
  const steps = element("div", { class: "steps", "aria-hidden": "true" });
  const axis = element("span", { class: "axis-name", "aria-hidden": "true" }, "step");
  const plot = element("div", { class: "plot" }, labels, grid, axis, steps);
  const message = element("p", { class: "message" });
  const heading = element("h3", { title: run }, run);
  const header = element("header", {}, swatch, heading, note);
  const card = element("article", { class: "card heatmap", "data-run": run }, header, range, plot, message);
  let shown = null;
  let cursor = null;

  /** Redraw the last content at the current size. */
  function paint() {
    if (!shown?.layers.length || !card.isConnected) return;
    const height = rowHeight(shown.layers.length);
    const room = plot.clientWidth * LABEL.share;
    const longest = shown.layers.reduce((most, name) => (name.length > most.length ? name : most), "");
    const labelWidth = Math.min(room, widthOf(longest, LABEL.font) + LABEL.slack) + LABEL.gap;
    plot.style.setProperty("--labels", `${Math.ceil(labelWidth)}px`);
    labels.replaceChildren(...layerLabels(shown, height, labelWidth - LABEL.gap));
    canvas.style.height = `${height * shown.layers.length}px`;
    const [left, right] = [shown.edges[0], shown.edges.at(-1)].map((step) => placeOf(step, shown.axis));
    canvas.style.marginLeft = `${left * 100}%`;
    canvas.style.width = `${(right - left) * 100}%`;
    canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
    canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
    const ends = { first: shown.edges[0], last: shown.edges.at(-1) };
    draw(
      canvas,
      shown.drawn,
      shown.scale,
      shown.edges.map((step) => placeOf(step, ends)),
    );
    steps.replaceChildren(...stepLabels(shown.axis, grid.clientWidth));
    const chosen = shown.layers.indexOf(shown.layer);
    rowMark.hidden = chosen < 0;
    rowMark.style.cssText = `top:${chosen * height}px;height:${height}px`;
    placeCursor();
  }

  function placeCursor() {
    cellMark.hidden = !cursor || document.activeElement !== grid;
    if (cellMark.hidden) return;
    const height = rowHeight(shown.layers.length);
    const [left, right] = [0, 1].map((end) => 100 * placeOf(shown.edges[cursor.column + end], shown.axis));
    cellMark.style.cssText = `left:${left}%;width:max(${right - left}%, 5px);top:${cursor.row * height}px;height:${height}px`;
  }

  const layerAt = (y) => Math.min(Math.floor(y / rowHeight(shown.layers.length)), shown.layers.length - 1);

  function cellAt({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    const [first, last] = [shown.edges[0], shown.edges.at(-1)];
    const step = first + ((clientX - box.left) / box.width) * (last - first);
    const column = shown.edges.findLastIndex((edge) => edge <= step);
    return {
      row: Math.max(0, layerAt(clientY - box.top)),
      column: Math.max(0, Math.min(column, shown.data.steps.length - 1)),
    };
  }

  function describe({ row, column }, x, y) {
    const [layer, step, value] = [shown.layers[row], shown.data.steps[column], shown.values[row][column]];
    tip.show(
      [
        [layer, "strong"],
        [`step ${step}`, "quiet"],
        [`${title(shown.data.metric)}: ${number(value, 6)}`, ""],
        ...(shown.mode.label ? [[`${shown.mode.label}: ${number(shown.drawn[row][column], 6)}`, ""]] : []),
      ],
      x,
      y,
    );
    return `${layer}, step ${step}, ${number(value, 6)}`;
  }

  function tellCursor() {
    const box = canvas.getBoundingClientRect();
    const ends = { first: shown.edges[0], last: shown.edges.at(-1) };
    const middle = (shown.edges[cursor.column] + shown.edges[cursor.column + 1]) / 2;
    const x = box.left + placeOf(middle, ends) * box.width;
    const y = box.top + (cursor.row + 0.5) * rowHeight(shown.layers.length);
    placeCursor();
    tip.say(describe(cursor, x, y));
  }

  grid.addEventListener(
    "pointermove",
    (event) => shown?.layers.length && describe(cellAt(event), event.clientX, event.clientY),
  );
  grid.addEventListener("pointerleave", () => tip.hide());
  grid.addEventListener("click", (event) => {
    if (!shown?.layers.length) return;
    cursor = cellAt(event);
    pick(shown.layers[cursor.row], card);
    placeCursor();
  });
  labels.addEventListener("click", (event) => {
    if (shown?.layers.length) pick(shown.layers[layerAt(event.clientY - labels.getBoundingClientRect().top)], card);
  });
  grid.addEventListener("focus", () => {
    if (!shown?.layers.length || !grid.matches(":focus-visible")) return;
    cursor ??= { row: 0, column: shown.data.steps.length - 1 };
    tellCursor();
  });
  grid.addEventListener("blur", () => {
    cellMark.hidden = true;
    tip.hide();
  });
  grid.addEventListener("keydown", (event) => {
    if (!shown?.layers.length || event.ctrlKey || event.metaKey || event.altKey) return;
    cursor ??= { row: 0, column: shown.data.steps.length - 1 };
    if (event.key === "Enter" || event.key === " ") pick(shown.layers[cursor.row], card);
    else {
      const cell = moved(event.key, cursor, shown.layers.length, shown.data.steps.length);
      if (!cell) return;
      cursor = cell;
      tellCursor();
    }
    event.preventDefault();
  });
  new ResizeObserver(() => requestAnimationFrame(paint)).observe(plot);

  return {
    element: card,
    /** Show an answer of the loader: `layers` are the rows for the `matched` layers that pass the filter. */
    show({ name, answer, layers, matched, values, drawn, mode, axis, scale, layer, stroke, filter, ownRange }) {
      swatch.style.background = stroke.colour;
      heading.textContent = name;
      const data = answer?.data;
      const kept = cursor && shown && [shown.layers[cursor.row], shown.data.steps[cursor.column]];
      const edges = data && edgesOf(data.steps);
      shown = data && { data, layers, values, drawn, mode, edges, axis, scale, layer };
      cursor = kept && data ? cellOf(kept, layers, data.steps) : null;
      card.classList.toggle("waiting", !answer);
      plot.hidden = !layers.length;
      message.hidden = Boolean(layers.length);
      message.textContent = messageOf(answer, filter);
      note.textContent = data ? noteOf(data, layers.length, matched) : "";
      note.title =
        data?.order === "name"
          ? "By name: this run has not logged the order of its layers"
          : "In the order of the network";
      range.hidden = !ownRange || !layers.length;
      if (!range.hidden) range.replaceChildren(...rangeBar(scale));
      if (data) {
        const size = `${count(layers.length, layers.length < matched ? "row" : "layer")} by ${count(data.steps.length, "step")}`;
        grid.setAttribute(
          "aria-label",
          `${title(data.metric)} of run ${run}, ${size}. Arrow keys move, Enter shows the layer's curve.`,
        );
      }
      paint();
      if (data) markFirstPicture();
    },
  };
}

let pictured = false;

/** Set a mark in the browser's timeline, to measure the time to the first picture. */
function markFirstPicture() {
  if (!pictured) performance.mark("regularization: first picture");
  pictured = true;
}

function rowHeight(layers) {
  const wanted = Math.max(ROW.least, Math.min(ROW.most, Math.floor(HEIGHT.wanted / layers)));
  return Math.min(wanted, HEIGHT.most / layers);
}

function cellOf([layer, step], layers, steps) {
  const row = layers.indexOf(layer);
  const column = steps.indexOf(step);
  return row < 0 ? null : { row, column: column < 0 ? steps.length - 1 : column };
}

function layerLabels({ layers, layer }, height, width) {
  const labels = [];
  const texts = labelsOf(layers, (text) => widthOf(text, LABEL.font) <= width);
  let free = -Infinity;
  layers.forEach((name, row) => {
    const middle = (row + 0.5) * height;
    if (middle - LABEL.height / 2 < free && height < LABEL.height) return;
    free = middle + LABEL.height / 2;
    const kind = name === layer ? "layer chosen" : "layer";
    labels.push(
      element("span", { class: kind, title: name, style: `top:${middle}px` }, texts[row]),
    );
  });
  return labels;
}

function messageOf(answer, filter) {
  if (!answer) return "Reading…";
  if (answer.data) return `No layer of this run matches ${filter}`;
  return answer.error.missing ? "This run has no such numbers." : `Could not be read: ${answer.error.message}`;
}

function noteOf(data, rows, matched) {
  const some = matched < data.layers.length ? `${matched} of ` : "";
  const folded = rows < matched ? ` in ${count(rows, "row")}` : "";
  const all = count(data.total_steps, "step");
  const steps = data.steps.length < data.total_steps ? `${data.steps.length} of ${all}` : all;
  return `${some}${count(data.layers.length, "layer")}${folded} · ${steps}`;
}
