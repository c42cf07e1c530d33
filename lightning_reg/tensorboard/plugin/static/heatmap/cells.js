// The cells of a heatmap on a canvas. Numbers have the colours of the map, and NaN and infinities have special marks. At
// a step where nothing was logged, the background of the page shows.

import { colourOf } from "../drawing/colours.js";
import { element } from "../drawing/dom.js";

const TILE = 6;

export const MARKS = {
  nan: {
    label: "NaN",
    ground: "#d81b60",
    lines: [
      [0, 0, TILE, TILE],
      [0, TILE, TILE, 0],
    ],
  },
  infinite: { label: "∞", ground: "#ff7043", lines: [[0, TILE, TILE, 0]] },
  negative: { label: "−∞", ground: "#eceff1", lines: [[0, 0, TILE, TILE]] },
};

/** Return the mark of a value, or null. */
export function markOf(value) {
  if (value === null || Number.isFinite(value)) return null;
  if (Number.isNaN(value)) return "nan";
  return value > 0 ? "infinite" : "negative";
}

/** Return a small canvas with the hatching of a mark. */
function tile(mark, pixels = TILE) {
  const { ground, lines } = MARKS[mark];
  const canvas = element("canvas", { width: pixels, height: pixels });
  const context = canvas.getContext("2d");
  context.scale(pixels / TILE, pixels / TILE);
  context.fillStyle = ground;
  context.fillRect(0, 0, TILE, TILE);
  context.strokeStyle = mark === "nan" ? "#ffffff" : "#212121";
  context.lineWidth = 1.2;
  for (const [left, top, right, bottom] of lines) {
    context.beginPath();
    context.moveTo(left, top);
    context.lineTo(right, bottom);
    context.stroke();
  }
  return canvas;
}

/** Return a square of a mark's hatching, for the legend. */
export function sample(mark, pixels) {
  const canvas = element("canvas", { class: "sample", width: pixels, height: pixels });
  const context = canvas.getContext("2d");
  context.fillStyle = context.createPattern(tile(mark), "repeat");
  context.fillRect(0, 0, pixels, pixels);
  return canvas;
}

/** Draw rows of values over all of `canvas`, which already has its size; columns lie between `edges`, in [0, 1]. */
export function draw(canvas, rows, scale, edges) {
  const context = canvas.getContext("2d");
  const columns = rows[0]?.length ?? 0;
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!columns) return;
  const marked = [];
  context.imageSmoothingEnabled = false;
  const small = picture(rows, columns, scale, marked);
  const at = edges.map((edge) => Math.round(edge * canvas.width));
  for (let column = 0; column < columns; column++) {
    const width = Math.max(at[column + 1] - at[column], 1);
    context.drawImage(small, column, 0, 1, rows.length, at[column], 0, width, canvas.height);
  }
  const height = canvas.height / rows.length;
  const patterns = {};
  for (const [row, column, mark] of marked) {
    context.fillStyle = patterns[mark] ??= context.createPattern(tile(mark, TILE * devicePixelRatio), "repeat");
    const [left, top] = [at[column], Math.round(row * height)];
    // A mark must not vanish if cells are smaller than a pixel.
    const right = Math.max(at[column + 1], left + 1);
    const bottom = Math.max(Math.round((row + 1) * height), top + 1);
    context.fillRect(left, top, right - left, bottom - top);
  }
}

/** Return a canvas with one pixel for each value. Scaling it up is far faster than filling rectangles. */
function picture(rows, columns, scale, marked) {
  const small = element("canvas", { width: columns, height: rows.length });
  const context = small.getContext("2d");
  const image = context.createImageData(columns, rows.length);
  let place = 0;
  for (let row = 0; row < rows.length; row++) {
    for (let column = 0; column < columns; column++, place += 4) {
      const value = rows[row][column];
      if (value === null) continue;
      if (!Number.isFinite(value)) {
        marked.push([row, column, markOf(value)]);
        continue;
      }
      const [red, green, blue] = colourOf(scale, value);
      image.data[place] = red;
      image.data[place + 1] = green;
      image.data[place + 2] = blue;
      image.data[place + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return small;
}
