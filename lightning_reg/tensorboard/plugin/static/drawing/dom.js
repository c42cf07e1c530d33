// Make elements. Text from a log directory becomes a text node or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Make an element. Attributes such as "onclick" are listeners; strings among the children are text. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of an SVG picture. */
export function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

let width;

/** Return `text`, cut at its start to fit, because the end of a layer's name is more informative. */
export function fitted(text, pixels, font) {
  width ??= document.createElement("canvas").getContext("2d");
  width.font = font;
  if (width.measureText(text).width <= pixels) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (width.measureText("…" + text.slice(middle)).width <= pixels) high = middle;
    else low = middle + 1;
  }
  return "…" + text.slice(low);
}

/** Return the width of `text` in pixels. */
export function widthOf(text, font) {
  width ??= document.createElement("canvas").getContext("2d");
  width.font = font;
  return width.measureText(text).width;
}
