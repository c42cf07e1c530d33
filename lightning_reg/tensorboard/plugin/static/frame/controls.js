// The controls of the drawing: metric, colours, layers.

import { element } from "../drawing/dom.js";
import { remarkOn, title } from "../drawing/format.js";
import { MODES } from "../heatmap/modes.js";

const SCALES = [
  ["linear", "Linear"],
  ["log", "Log"],
];
const RANGES = [
  ["shared", "Shared"],
  ["run", "Per run"],
];

const AXES = [
  ["step", "Steps"],
  ["relative", "Run length"],
];

/** Make a group of radio buttons under a heading. `choices` are `[value, label]`. */
function radios(name, heading, kind, change) {
  const box = element("div", { class: kind });
  let known = "";
  return {
    element: element("fieldset", { class: "group" }, element("legend", {}, heading), box),
    show(choices, value) {
      const now = JSON.stringify(choices);
      if (now !== known) {
        known = now;
        box.replaceChildren(
          ...choices.map(([each, label]) => {
            const input = element("input", { type: "radio", name, value: each, onchange: () => change(each) });
            return element("label", {}, input, element("span", {}, label));
          }),
        );
      }
      for (const input of box.querySelectorAll("input")) input.checked = input.value === value;
    },
  };
}

/** Make the controls. `change(changes)` is called with changes of the state. */
export function controls(change) {
  const metric = radios("metric", "Metric", "list", (value) => change({ metric: value }));
  const meaning = element("p", { class: "note meaning" });
  metric.element.append(meaning);
  const scale = radios("scale", "Colour scale", "segments", (value) => change({ scale: value }));
  const mode = radios("mode", "Show", "list", (value) => change({ mode: value }));
  const axis = radios("axis", "Columns", "segments", (value) => change({ axis: value }));
  const baseline = element("select", { id: "baseline", onchange: () => change({ baseline: baseline.value }) });
  const against = element("div", { class: "group" }, element("label", { for: "baseline", class: "heading" }, "Baseline"), baseline);
  const range = radios("range", "Range over runs", "segments", (value) => change({ range: value }));
  const error = element("p", { class: "error", id: "filter-error", role: "alert" });
  const filter = element("input", {
    type: "search",
    id: "filter",
    class: "search",
    placeholder: "head, *.query, /\\.\\d+$/",
    spellcheck: "false",
    "aria-describedby": "filter-hint filter-error",
    oninput: () => change({ filter: filter.value }),
  });
  const hint = "Part of a name, a glob with * and ?, or a /regular expression/";
  const layers = element(
    "div",
    { class: "group" },
    element("label", { for: "filter", class: "heading" }, "Layers"),
    filter,
    element("p", { class: "note", id: "filter-hint" }, hint),
    error,
  );
  return {
    elements: [metric.element, mode.element, against, scale.element, range.element, axis.element, layers],
    show(view, state, problem) {
      metric.show(
        view.metrics.map((name) => [name, title(name)]),
        view.metric,
      );
      meaning.textContent = remarkOn(view.metric);
      scale.show(SCALES, state.scale);
      range.show(RANGES, state.range);
      mode.show(MODES, state.mode);
      axis.show(AXES, state.axis);
      against.hidden = state.mode !== "baseline";
      const choices = view.readable.map((run) => [run.name, run.title]);
      if (JSON.stringify(choices) !== JSON.stringify([...baseline.options].map(({ value, text }) => [value, text]))) {
        baseline.replaceChildren(...choices.map(([name, text]) => element("option", { value: name }, text)));
      }
      baseline.value = view.baseline;
      if (filter.value !== state.filter) filter.value = state.filter;
      filter.setAttribute("aria-invalid", problem ? "true" : "false");
      if (error.textContent !== problem) error.textContent = problem;
    },
  };
}
