// The summary: one line for each run, its last numbers.

import { strokeOf } from "../drawing/colours.js";
import { element } from "../drawing/dom.js";
import { number, percent } from "../drawing/format.js";

const COLUMNS = [
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

/** Make the table. `sortBy(order)` is called when the user clicks on the head of a column. */
export function table(sortBy) {
  const heads = new Map();
  const body = element("tbody");
  const head = element("tr");
  let order = "run";
  for (const { name, title, hint } of COLUMNS) {
    const button = element(
      "button",
      { type: "button", title: hint, onclick: () => sortBy(nextOrder(order, name)) },
      title,
    );
    heads.set(name, element("th", { scope: "col" }, button));
    head.append(heads.get(name));
  }
  return {
    element: element(
      "div",
      { class: "card summary", role: "region", "aria-label": "Last values of each run", tabindex: 0 },
      element("table", {}, element("thead", {}, head), body),
    ),
    show(runs, wanted, dark) {
      order = wanted;
      const [column, descending] = parsed(wanted);
      for (const [name, cell] of heads) {
        cell.setAttribute("aria-sort", name !== column ? "none" : descending ? "descending" : "ascending");
      }
      body.replaceChildren(...sorted(runs, column, descending).map((run) => line(run, dark)));
    },
  };
}

const short = (value) => number(value, 3);

function parsed(order) {
  const descending = order.startsWith("-");
  const column = descending ? order.slice(1) : order;
  return COLUMNS.some(({ name }) => name === column) ? [column, descending] : ["run", false];
}

/** The first click on a number asks for the largest, on the runs for their order. */
function nextOrder(order, column) {
  const [sortedBy, descending] = parsed(order);
  const down = sortedBy === column ? !descending : column !== "run";
  return (down ? "-" : "") + column;
}

function sorted(runs, column, descending) {
  const sign = descending ? -1 : 1;
  const key = (run) => (column === "run" ? run.index : run.summary[column]);
  const missing = (run) => key(run) === null || key(run) === undefined || Number.isNaN(key(run));
  return [...runs].sort((one, other) => {
    // Runs without the number stand last, whichever way.
    if (missing(one) || missing(other)) return missing(one) - missing(other) || one.index - other.index;
    return key(one) === key(other) ? one.index - other.index : sign * (key(one) < key(other) ? -1 : 1);
  });
}

function line(run, dark) {
  const swatch = element("span", { class: "swatch" });
  swatch.style.background = strokeOf(run.index, dark).colour;
  const cells = COLUMNS.slice(1).map(({ name, format = short }) => {
    const value = run.summary[name] ?? null;
    return value === null ? element("td", { class: "none" }, "–") : element("td", {}, format(value));
  });
  return element(
    "tr",
    {},
    element("th", { scope: "row", title: run.name }, swatch, element("span", {}, run.name)),
    ...cells,
  );
}
