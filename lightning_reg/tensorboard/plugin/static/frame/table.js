// The summary: one line for each run, with its last numbers.

import { isBetterLower, varying } from "../compare/settings.js";
import { strokeOf } from "../drawing/colours.js";
import { element } from "../drawing/dom.js";
import { number, percent, title } from "../drawing/format.js";

const FIXED = [
  { name: "run", title: "Run", hint: "Sort by the order of the runs" },
  {
    name: "sparsity",
    title: "Sparsity",
    hint: "Share of weights that are exactly zero (reg/sparsity)",
    format: percent,
  },
  {
    name: "lipschitz_upper",
    title: "Lipschitz bound",
    hint: "Upper bound of the Lipschitz constant (reg/lipschitz_upper)",
  },
  {
    name: "penalty_ratio",
    title: "Penalty share",
    hint: "Penalties divided by the loss without them (reg/penalty_ratio)",
  },
  { name: "dropout", title: "Dropout", hint: "Mean dropout rate (reg/dropout)" },
];

/** Return all possible columns, each with a function that reads its value in a run. */
function columnsFor(runs, scores) {
  const fixed = FIXED.slice(1).map((column) => ({ ...column, value: (run) => run.summary[column.name] }));
  const metric = scores.tag && {
    name: `metric:${scores.tag}`,
    title: scores.tag,
    hint: "At its best step, as compared above",
    value: (run) => scores.runs[run.name]?.[isBetterLower(scores.tag, scores.better) ? "least" : "largest"]?.[1],
  };
  const settings = varying(runs).map((name) => ({
    name: `setting:${name}`,
    title: name,
    hint: "A setting",
    value: (run) => run.settings?.[name],
  }));
  const known = new Set(fixed.map((column) => column.name));
  const numbers = [...new Set(runs.flatMap((run) => Object.keys(run.numbers ?? {})))]
    .filter((name) => !known.has(name))
    .sort()
    .map((name) => ({ name, title: title(name), hint: `The last value of reg/${name}`, value: (run) => run.numbers?.[name] }));
  const rare = numbers.map((column) => ({ ...column, rare: true }));
  return [{ ...FIXED[0], value: (run) => run.index }, ...fixed, ...(metric ? [metric] : []), ...settings, ...rare];
}

/** Return the columns in which runs differ, or the columns that the user chose. */
function chosenOf(columns, runs, wanted) {
  return columns.filter(({ name, value, rare }) => {
    if (name === "run") return true;
    if (wanted) return wanted.includes(name);
    const values = runs.map((run) => value(run) ?? null);
    const empty = values.every((each) => each === null);
    return !rare && !empty && (runs.length < 2 || new Set(values).size > 1);
  });
}

/** Make the table. `change(changes)` is called when the user clicks on a column head, or chooses columns. */
export function table(change) {
  const body = element("tbody");
  const head = element("tr");
  const boxes = element("div", { class: "column-list", role: "group", "aria-label": "Columns of the table" });
  let known = "";
  let order = "run";

  function choose(columns, shown) {
    const now = JSON.stringify([choice.open, columns.map((column) => column.name), shown.map((column) => column.name)]);
    if (now === known) return;
    known = now;
    const names = new Set(shown.map((column) => column.name));
    const focused = boxes.contains(document.activeElement) && document.activeElement.value;
    boxes.replaceChildren(
      ...(choice.open ? columns.slice(1) : []).map((column) => {
        const toggle = () => {
          if (!names.delete(column.name)) names.add(column.name);
          change({ columns: columns.map((each) => each.name).filter((each) => names.has(each)) });
        };
        const box = element("input", { type: "checkbox", class: "column", value: column.name, onchange: toggle });
        box.checked = names.has(column.name);
        return element("label", { class: "column-label" }, box, element("span", {}, column.title));
      }),
    );
    if (focused) [...boxes.querySelectorAll("input")].find((box) => box.value === focused)?.focus();
    head.replaceChildren(
      ...shown.map(({ name, title: text, hint }) => {
        const sort = () => change({ sort: nextOrder(order, name) });
        const button = element("button", { type: "button", title: hint, onclick: sort }, text);
        return element("th", { scope: "col", "data-column": name }, button);
      }),
    );
  }

  const scroll = element(
    "div",
    { class: "card summary", role: "region", "aria-label": "Last values of each run", tabindex: 0 },
    element("table", {}, element("thead", {}, head), body),
  );
  const choice = element(
    "details",
    { class: "columns", ontoggle: () => last && show(...last) },
    element("summary", {}, "Columns"),
    boxes,
  );
  let last = null; // the content shown last

  function show(runs, state, scores, dark) {
    last = [runs, state, scores, dark];
    const columns = columnsFor(runs, { ...scores, better: state.better });
    const shown = chosenOf(columns, runs, state.columns);
    choose(columns, shown);
    order = state.sort;
    const [name, descending] = parsed(order);
    const column = shown.find((each) => each.name === name) ?? shown[0];
    for (const cell of head.children) {
      const sorts = cell.dataset.column === column.name;
      cell.setAttribute("aria-sort", !sorts ? "none" : descending ? "descending" : "ascending");
    }
    body.replaceChildren(...sorted(runs, column, descending).map((run) => line(run, shown, dark)));
  }

  return {
    element: element("section", { "aria-label": "Table of runs" }, scroll, choice),
    show,
  };
}

const short = (value) => (typeof value === "number" ? number(value, 3) : String(value));

function parsed(order) {
  const descending = order.startsWith("-");
  return [descending ? order.slice(1) : order, descending];
}

/** The first click on a number sorts the largest first; on the runs, it sorts by their order. */
function nextOrder(order, column) {
  const [sortedBy, descending] = parsed(order);
  const down = sortedBy === column ? !descending : column !== "run";
  return (down ? "-" : "") + column;
}

function sorted(runs, column, descending) {
  const sign = descending ? -1 : 1;
  const key = (run) => column.value(run);
  const missing = (run) => key(run) === null || key(run) === undefined || Number.isNaN(key(run));
  return [...runs].sort((one, other) => {
    // Runs without the number come last in both directions.
    if (missing(one) || missing(other)) return missing(one) - missing(other) || one.index - other.index;
    return key(one) === key(other) ? one.index - other.index : sign * (key(one) < key(other) ? -1 : 1);
  });
}

function line(run, columns, dark) {
  const swatch = element("span", { class: "swatch" });
  swatch.style.background = strokeOf(run.colour, dark).colour;
  const cells = columns.slice(1).map(({ value: of, format = short }) => {
    const value = of(run) ?? null;
    return value === null ? element("td", { class: "none" }, "–") : element("td", {}, format(value));
  });
  return element(
    "tr",
    {},
    element("th", { scope: "row", title: run.name }, swatch, element("span", {}, run.title)),
    ...cells,
  );
}
