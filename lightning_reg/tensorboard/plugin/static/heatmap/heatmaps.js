// All heatmaps: one card for each run that is shown, on a shared scale or on separate scales.

import { strokeOf } from "../drawing/colours.js";
import { element } from "../drawing/dom.js";
import { number } from "../drawing/format.js";
import { aroundZero, extent, scaleOver, withoutOutliers } from "../drawing/scale.js";
import { rowsOf } from "../names/folding.js";
import { heatmapCard } from "./heatmap.js";
import { kindsIn, legend } from "./legend.js";
import { drawnOf, joined, modeOf } from "./modes.js";
import { axisOf } from "./steps.js";

const LEAST_WIDTH = 320;
const NONE = { data: null, error: { missing: true } };
const PICTURE = 0.6; // share of a card's width, beside long names

/** Make the section. `load` is the loader of answers. */
export function heatmaps(load, actions) {
  const colours = legend();
  const list = element("div", { class: "heatmaps" });
  const cards = new Map();
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) load.see(target.dataset.run, isIntersecting);
    },
    { rootMargin: "200px" },
  );
  /** Lay out the cards in even rows: four cards as two by two, not three and one. */
  function align() {
    const fit = Math.max(1, Math.floor(list.clientWidth / LEAST_WIDTH));
    const lines = Math.ceil(cards.size / fit);
    list.style.setProperty("--across", Math.max(1, Math.ceil(cards.size / Math.max(lines, 1))));
  }
  new ResizeObserver(align).observe(list);
  let cache = { key: null, parts: new WeakMap() };

  /** Return the visible part of an answer. Cached, because every answer of any run asks for it again. */
  function partOf(data, filter, mode, base, folded) {
    const key = [filter.matches, mode.name, base, folded];
    if (!cache.key?.every((each, index) => each === key[index])) cache = { key, parts: new WeakMap() };
    if (!cache.parts.has(data)) {
      const matched = data.layers.flatMap((name, row) => (filter.matches(name) ? [row] : []));
      const rows = rowsOf(
        matched.map((row) => data.layers[row]),
        folded ?? [],
      );
      const drawn = foldedTo(rows, drawnOf(mode.name, data, matched, base));
      cache.parts.set(data, {
        layers: rows.map((row) => row.name),
        matched: matched.length,
        values: foldedTo(
          rows,
          matched.map((row) => data.values[row]),
        ),
        drawn,
        extent: extent([drawn]),
        sample: sampleOf(drawn),
        kinds: kindsIn(drawn),
      });
    }
    return cache.parts.get(data);
  }

  function arrange(runs) {
    const names = new Set(runs.map((run) => run.name));
    for (const [name, card] of cards) {
      if (names.has(name)) continue;
      seen.unobserve(card.element);
      load.see(name, false);
      card.element.remove();
      cards.delete(name);
    }
    runs.forEach(({ name }, place) => {
      if (!cards.has(name)) {
        cards.set(name, heatmapCard(name, actions));
        seen.observe(cards.get(name).element);
      }
      const { element: card } = cards.get(name);
      if (list.children[place] !== card) list.insertBefore(card, list.children[place] ?? null);
    });
    align();
  }

  return {
    element: element("section", { "aria-label": "Heatmaps" }, element("h2", { class: "unseen" }, "Heatmaps"), colours.element, list),
    /** Return how many columns of at least one pixel fit into a card. */
    columns: () => Math.max(100, Math.min(400, Math.ceil(((list.firstChild?.clientWidth || 400) * PICTURE) / 50) * 50)),
    arrange,
    show(view, state, filter, dark) {
      const parts = new Map();
      const mode = modeOf(state.mode);
      const base = mode.name === "baseline" ? (load.answer(view.baseline)?.data ?? null) : null;
      for (const { name } of view.readable) {
        const data = load.answer(name)?.data;
        if (data) parts.set(name, partOf(data, filter, mode, base, state.folded));
      }
      const axis = axisOf([...parts.keys()].map((name) => load.answer(name).data.steps));
      const scaleFor = (some) => scaleOver(rangeOf(some, view.metric, mode, state.scale), state.scale);
      const shared = state.range === "shared" && scaleFor([...parts.values()]);
      const kinds = new Set([...parts.values()].flatMap((part) => [...part.kinds]));
      for (const run of view.shown) {
        const part = parts.get(run.name);
        cards.get(run.name).show({
          name: run.title,
          answer: view.readable.includes(run) ? load.answer(run.name) : NONE,
          layers: part?.layers ?? [],
          matched: part?.matched ?? 0,
          values: part?.values ?? [],
          drawn: part?.drawn ?? [],
          mode,
          axis: state.axis === "relative" && part ? axisOf([load.answer(run.name).data.steps]) : axis,
          scale: shared || (part && scaleFor([part])),
          layer: state.layer,
          stroke: strokeOf(run.colour, dark),
          filter: state.filter,
          ownRange: !shared,
        });
      }
      colours.show(shared || null, kinds, remark(view.readable.length, load.answered(), state, shared));
    },
  };
}

/** Return the values of `rows`; a row stands for one layer or several. */
function foldedTo(rows, values) {
  return rows.map(({ members }) =>
    members.length === 1
      ? values[members[0]]
      : values[members[0]].map((_, column) => joined(members.map((member) => values[member][column]))),
  );
}

const SAMPLE = 2000;

/** Return an even sample of the finite values. */
function sampleOf(rows) {
  const finite = rows.flatMap((row) => row.filter((value) => value !== null && Number.isFinite(value)));
  const stride = Math.max(1, Math.floor(finite.length / SAMPLE));
  return finite.filter((_, index) => index % stride === 0);
}

/** Return the range of the colours. */
function rangeOf(parts, metric, mode, scale) {
  const whole = merged(parts.map((part) => part.extent));
  if (!(whole.low <= whole.high)) return whole;
  if (mode.diverging) {
    return aroundZero(
      withoutOutliers(
        whole,
        parts.map((part) => part.sample),
      ),
    );
  }
  if (metric === "sparsity") return { ...whole, low: 0, high: 1 };
  return scale === "log"
    ? whole
    : withoutOutliers(
        whole,
        parts.map((part) => part.sample),
      );
}

function merged(extents) {
  return {
    low: Math.min(...extents.map((each) => each.low)),
    lowPositive: Math.min(...extents.map((each) => each.lowPositive)),
    high: Math.max(...extents.map((each) => each.high)),
  };
}

function remark(runs, answered, state, shared) {
  if (answered < runs) return `${answered} of ${runs} runs read`;
  if (shared && state.scale === "log" && shared.kind === "linear") return "Linear: no value is above zero";
  if (!shared) return "Each run has its own colours";
  const far = [shared.least < shared.low && shared.least, shared.most > shared.high && shared.most];
  const told = far.filter((value) => value !== false).map((value) => number(value, 3));
  return told.length ? `Beyond the colour scale: values up to ${told.join(" and ")}` : "";
}
