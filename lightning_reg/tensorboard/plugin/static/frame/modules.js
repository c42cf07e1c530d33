// The tree of modules: a folded one is one row of the heatmaps.

import { element } from "../drawing/dom.js";
import { count } from "../drawing/format.js";
import { modulesOf } from "../names/folding.js";

/** Make the tree. `change(folded)` is called with the paths of the folded modules. */
export function moduleTree(change) {
  const list = element("div", { class: "modules" });
  const note = element("p", { class: "note" }, "A folded module is one row: the median of its layers.");
  const box = element("details", { class: "group", hidden: true }, element("summary", { class: "heading" }, "Modules"), list, note);
  let known = "";
  let modules = [];
  let names = [];
  let shown = [];

  function treeOf(children, folded) {
    return element("ul", {}, ...children.map((module) => itemOf(module, folded)));
  }

  function itemOf(module, folded) {
    const open = !folded.includes(module.path);
    const toggle = () => change(open ? [...folded, module.path] : folded.filter((path) => path !== module.path));
    const button = element(
      "button",
      { type: "button", class: "text", "aria-expanded": String(open), "data-path": module.path, title: module.path, onclick: toggle },
      `${open ? "▾" : "▸"} ${module.label} `,
      element("span", { class: "quiet" }, count(module.count, "layer")),
    );
    return element("li", {}, button, ...(open && module.children.length ? [treeOf(module.children, folded)] : []));
  }

  function paint() {
    const folded = shown;
    const now = JSON.stringify([box.open, folded]);
    if (now === known) return;
    known = now;
    const focus = list.contains(document.activeElement) ? document.activeElement.dataset.path : null;
    list.replaceChildren(...(box.open ? [treeOf(modules, folded)] : []));
    if (focus !== null) [...list.querySelectorAll("button")].find((each) => each.dataset.path === focus)?.focus();
  }

  box.addEventListener("toggle", paint);
  return {
    element: box,
    /** Show the modules of the layers called `layers`. */
    show(layers, folded) {
      shown = folded ?? [];
      if (layers.length !== names.length || layers.some((name, place) => name !== names[place])) {
        [names, modules, known] = [layers, modulesOf(layers), ""];
      }
      box.hidden = !modules.length;
      paint();
    },
  };
}
