// The content of the page, as a function of the user's choices and the existing runs.

import { titlesOf } from "../names/titles.js";

const TELLING = ["spectral_norm", "weight_norm", "sparsity"];
const FIRST_RUNS = 12;

/** Return the metric, the metrics to choose from, the runs that are shown, and the shown runs with the metric. */
export function viewOf(state, catalogue) {
  const found = new Set(catalogue.flatMap((run) => run.metrics));
  const metrics = [...TELLING.filter((name) => found.delete(name)), ...[...found].sort()];
  const metric = metrics.includes(state.metric) ? state.metric : (metrics[0] ?? "");
  const titles = titlesOf(catalogue.map((run) => run.name));
  const runs = catalogue.map((run, index) => ({ ...run, title: titles[index], index, colour: run.started ?? index }));
  const chosen = new Set(state.runs ?? firstRuns(catalogue));
  const shown = runs.filter((run) => chosen.has(run.name));
  const readable = shown.filter((run) => run.metrics.includes(metric));
  const named = readable.some((run) => run.name === state.baseline);
  return { metric, metrics, runs, shown, readable, baseline: named ? state.baseline : (readable[0]?.name ?? "") };
}

/** Return the names of the runs that are shown before the user chooses. */
export function firstRuns(catalogue) {
  return catalogue.slice(0, FIRST_RUNS).map((run) => run.name);
}
