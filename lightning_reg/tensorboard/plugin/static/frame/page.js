// The frame of the page: the places of its parts, and its style.

import { element } from "../drawing/dom.js";
import { title } from "../drawing/format.js";

const NARROW = 800; // as in style.css
const HINT = "Rows are layers. Columns are optimizer steps, drawn to scale. Click on a row for its curve.";

/** Load the style sheet. Afterwards the page is shown, and measures itself. */
export async function styled() {
  const sheet = element("link", { rel: "stylesheet", href: new URL("../style.css", import.meta.url) });
  const loaded = new Promise((done) => ["load", "error"].forEach((kind) => sheet.addEventListener(kind, done)));
  document.head.append(sheet, element("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }));
  await loaded;
}

/** Put the parts together. */
export function assembled({ settings, modules, runs, status, compare, summary, odd, maps, curve }) {
  const heading = element("h1");
  const hint = element("p", { class: "hint" }, HINT);
  const hidden = element("div", { class: "advice" });
  const summaryLine = element("summary", {}, "Metric, colours, layers, runs");
  const side = element("details", { class: "side" }, summaryLine, ...settings.elements, modules.element, runs.element);
  side.open = innerWidth >= NARROW;
  addEventListener("resize", () => innerWidth >= NARROW && (side.open = true));
  const top = element("div", { class: "top" }, element("div", {}, heading, hint), status.element);
  const content = element("div", { class: "content" }, top, compare.element, summary.element, hidden, odd.element, maps.element, curve.element);
  const show = (view, instead) => {
    heading.textContent = view.metric ? `${title(view.metric)} of each layer` : "Regularization";
    status.element.hidden = !view.runs.length && Boolean(instead);
    hint.hidden = maps.element.hidden = !view.metric;
    side.hidden = summary.element.hidden = !view.runs.length;
    hidden.replaceChildren(...(instead ? [instead] : []));
  };
  show({ metric: "", runs: [] }, null); // until the first answer
  return { element: element("main", {}, side, content), show };
}
