// Which strength is best: a validation metric over the setting in which the runs differ, and the effect on the network.

import { element, shape } from "../drawing/dom.js";
import { number, percent, title } from "../drawing/format.js";
import * as api from "../server/api.js";
import { plot } from "./plot.js";
import { bySettings, candidates, isBetterLower, valueOf, varying } from "./settings.js";

const DID = ["weight_norm", "sparsity", "lipschitz_upper"];
const NAMES = { lipschitz_upper: "Lipschitz bound" };
const HEIGHT = { main: 190, small: 120 };
const BETTER = [
  ["", "by its name"],
  ["low", "lower is better"],
  ["high", "higher is better"],
];

/** Make the card. `change(changes)` is called with changes of the state. */
export function comparison(change) {
  const metric = select("validation", "Validation metric", (value) => change({ validation: value }));
  const by = select("by", "Over", (value) => change({ by: value }));
  const better = select("better", "Best", (value) => change({ better: value }));
  const best = element("p", { class: "best-line", role: "status" });
  const main = picture(HEIGHT.main);
  const small = DID.map((name) => ({ name, svg: picture(HEIGHT.small) }));
  const others = small.map(({ name, svg }) => element("figure", {}, element("figcaption", {}, NAMES[name] ?? title(name)), svg));
  const card = element(
    "section",
    { class: "card compare", "aria-label": "Compare strengths", hidden: true },
    element("h2", {}, "Compare"),
    element("div", { class: "compare-controls" }, metric.element, by.element, better.element),
    best,
    element("div", { class: "compare-pictures" }, element("figure", { class: "main" }, main), ...others),
  );
  let read = { tag: "", runs: {} };
  let last = null;

  function paint() {
    if (!last || card.hidden) return;
    const { shown, name, tag, lower } = last;
    const found = groups(shown, name, read.runs, lower);
    const leading = bestOf(found, lower);
    plot(main, pointsOf(found, leading, name, (group) => group.scores), { title: tag, height: HEIGHT.main });
    for (const { name: did, svg } of small) {
      const format = did === "sparsity" ? percent : undefined;
      const values = (group) => group.runs.map((run) => run.numbers?.[did]).filter(Number.isFinite);
      const points = pointsOf(found, leading, name, values).filter((point) => Number.isFinite(point.mean));
      svg.parentNode.hidden = !points.length;
      if (points.length) plot(svg, points, { title: NAMES[did] ?? title(did), height: HEIGHT.small, format });
    }
    const words = leading ? `Best: ${sentence(leading, name, tag)}` : "No run has this metric.";
    if (best.textContent !== words) best.textContent = words;
  }
  new ResizeObserver(() => requestAnimationFrame(paint)).observe(main);

  return {
    element: card,
    /** The values read of the chosen metric: run -> `{ last, least, largest }`. */
    scores: () => read,
    /** Compare the runs that are shown; reads the metric if it has changed, or if `again`. */
    async show(view, state, again = false) {
      const tags = candidates(view.shown);
      const names = varying(view.shown);
      card.hidden = !tags.length || !names.length;
      if (card.hidden) return;
      const tag = tags.includes(state.validation) ? state.validation : tags[0];
      const name = names.includes(state.by) ? state.by : names[0];
      metric.show(
        tags.map((each) => [each, each]),
        tag,
      );
      by.show(
        names.map((each) => [each, each]),
        name,
      );
      better.show(BETTER, state.better);
      last = { shown: view.shown, name, tag, lower: isBetterLower(tag, state.better) };
      if (tag !== read.tag || again) {
        const pending = { tag, runs: tag === read.tag ? read.runs : {} };
        read = pending;
        pending.runs = await api.scalar(tag);
        if (read !== pending) return; // another metric was chosen meanwhile
      }
      paint();
    },
  };
}

function select(name, heading, change) {
  const field = element("select", { id: name, onchange: () => change(field.value) });
  return {
    element: element("label", { for: name }, element("span", {}, heading), field),
    show(choices, value) {
      const now = JSON.stringify(choices);
      if (now !== field.dataset.choices) {
        field.dataset.choices = now;
        field.replaceChildren(...choices.map(([each, label]) => element("option", { value: each }, label)));
      }
      field.value = value;
    },
  };
}

function picture(height) {
  return shape("svg", { class: "picture", role: "img", height, "aria-label": "Nothing read yet" });
}

function groups(runs, name, scores, lower) {
  const found = bySettings(runs).map((members) => ({
    runs: members,
    x: valueOf(members[0], name),
    scores: members
      .map((run) => scores[run.name]?.[lower ? "least" : "largest"]?.[1])
      .filter((value) => Number.isFinite(value)),
  }));
  return found.filter((group) => group.x !== null).sort((one, other) => one.x - other.x);
}

function bestOf(found, lower) {
  const sign = lower ? 1 : -1;
  const scored = found.filter((group) => group.scores.length);
  return scored.sort((one, other) => sign * (mean(one.scores) - mean(other.scores)))[0] ?? null;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function pointsOf(found, leading, name, valuesOf) {
  return found
    .map((group) => ({ group, values: valuesOf(group) }))
    .filter(({ values }) => values.length)
    .map(({ group, values }) => ({
      x: group.x,
      mean: mean(values),
      low: Math.min(...values),
      high: Math.max(...values),
      best: group === leading,
      label: `${name} ${number(group.x, 3)}: ${spread(values)}`,
    }));
}

function spread(values) {
  const text = number(mean(values));
  if (values.length < 2) return text;
  return `${text} (mean of ${values.length} runs, ${number(Math.min(...values))} to ${number(Math.max(...values))})`;
}

function sentence(group, name, tag) {
  const did = DID.map((each) => [each, group.runs.map((run) => run.numbers?.[each]).filter(Number.isFinite)]);
  const words = did
    .filter(([, values]) => values.length)
    .map(([each, values]) => `${(NAMES[each] ?? title(each)).toLowerCase()} ${number(mean(values), 3)}`);
  return [`${name} = ${number(group.x, 3)}, ${tag} ${spread(group.scores)}`, ...words].join(", ");
}
