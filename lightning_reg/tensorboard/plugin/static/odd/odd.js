// The layers that stand out: at the end they are far from the others, or they have grown differently.

import { element } from "../drawing/dom.js";
import { number } from "../drawing/format.js";
import { median } from "../heatmap/modes.js";

const SHOWN = 5;
const LEAST = 4; // times the typical distance from the median
const FEWEST = 5; // layers; with fewer, none is odd

/** Return the odd layers of a heatmap's answer, as `{ layer, distance, text }`, the oddest first. */
function oddOf({ layers, values }) {
  const finite = values.map((row) => row.filter((value) => value !== null && Number.isFinite(value)));
  const last = finite.map((row) => row.at(-1) ?? NaN);
  const growth = finite.map((row) => (row[0] > 0 && row.at(-1) > 0 ? Math.log(row.at(-1) / row[0]) : NaN));
  const [far, grown] = [distances(last), distances(growth)];
  const middle = median(last);
  const found = layers.map((layer, place) => {
    const isGrowth = grown[place] > far[place];
    const text = isGrowth
      ? `${number(Math.exp(growth[place]), 3)} times its first value`
      : `${number(last[place], 3)}, where the median is ${number(middle, 3)}`;
    return { layer, text, distance: Math.max(far[place], grown[place]) };
  });
  return found.filter((each) => each.distance > LEAST).sort((one, other) => other.distance - one.distance);
}

/** Return the distance of each number from the median, in median distances. */
function distances(numbers) {
  const known = numbers.filter(Number.isFinite);
  if (known.length < FEWEST) return numbers.map(() => 0);
  const middle = median(known);
  const typical = Math.max(median(known.map((value) => Math.abs(value - middle))), 0.01 * Math.abs(middle), 1e-12);
  return numbers.map((value) => (Number.isFinite(value) ? Math.abs(value - middle) / typical : 0));
}

/** Make the card. `pick(layer)` is called when the user chooses one. */
export function oddLayers(pick) {
  const list = element("ol", { class: "odd-list" });
  const card = element("section", { class: "card odd", hidden: true }, element("h2", {}, "Odd layers"), list);
  return {
    element: card,
    /** Show the oddest of all answers, `[title of a run, data]`. */
    show(answers) {
      const all = answers.flatMap(([run, data]) => oddOf(data).map((each) => ({ ...each, run })));
      all.sort((one, other) => other.distance - one.distance);
      const once = new Map(); // each layer, in the run in which it is oddest
      for (const each of all) if (!once.has(each.layer)) once.set(each.layer, each);
      const oddest = [...once.values()].slice(0, SHOWN);
      card.hidden = !oddest.length;
      list.replaceChildren(
        ...oddest.map(({ layer, text, run }) => {
          const button = element("button", { type: "button", class: "text", onclick: () => pick(layer) }, layer);
          return element("li", {}, button, ` ${text} (${run})`);
        }),
      );
    },
  };
}
