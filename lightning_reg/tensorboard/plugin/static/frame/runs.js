// Which runs are shown: a list with a search.

import { strokeOf } from "../drawing/colours.js";
import { element } from "../drawing/dom.js";

/** Make the list. `choose(names)` is called with the names of the runs to show. */
export function runList(choose) {
  const search = element("input", {
    type: "search",
    placeholder: "Search runs",
    "aria-label": "Search runs",
    class: "search",
  });
  const list = element("div", { class: "run-list", role: "group", "aria-label": "Runs" });
  const tally = element("span", { class: "note" });
  const all = element("button", { type: "button", class: "text", onclick: () => choose(union(listed())) }, "All");
  const none = element("button", { type: "button", class: "text", onclick: () => choose(without(listed())) }, "None");
  let view = null;

  const listed = () => view.runs.filter((run) => run.name.toLowerCase().includes(search.value.trim().toLowerCase()));
  const chosen = () => new Set(view.shown.map((run) => run.name));

  // "All" and "None" apply to the runs found by the search.
  function union(found) {
    const names = new Set([...chosen(), ...found.map((run) => run.name)]);
    return view.runs.map((run) => run.name).filter((name) => names.has(name));
  }

  function without(found) {
    const names = new Set(found.map((run) => run.name));
    return [...chosen()].filter((name) => !names.has(name));
  }

  function toggle(name) {
    const names = chosen();
    if (!names.delete(name)) names.add(name);
    choose(view.runs.map((run) => run.name).filter((each) => names.has(each)));
  }

  function paint(dark) {
    const shown = chosen();
    const found = listed();
    const focused = list.contains(document.activeElement) && document.activeElement.value;
    list.replaceChildren(
      ...found.map((run) => {
        const box = element("input", { type: "checkbox", value: run.name, onchange: () => toggle(run.name) });
        box.checked = shown.has(run.name);
        box.style.accentColor = strokeOf(run.colour, dark).colour;
        return element("label", { class: "run", title: run.name }, box, element("span", {}, run.title));
      }),
    );
    if (!found.length) list.append(element("p", { class: "note" }, "No run has this text in its name."));
    tally.textContent = `${view.shown.length} of ${view.runs.length}`;
    if (focused) [...list.querySelectorAll("input")].find((box) => box.value === focused)?.focus();
  }

  let dark = false;
  search.addEventListener("input", () => paint(dark));
  const head = element("div", { class: "run-head" }, element("span", { class: "heading" }, "Runs"), tally, all, none);
  return {
    element: element("section", { class: "runs", "aria-label": "Runs" }, head, search, list),
    show(newView, isDark) {
      view = newView;
      dark = isDark;
      paint(dark);
    },
  };
}
