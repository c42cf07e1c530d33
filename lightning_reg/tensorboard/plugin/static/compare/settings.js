// The setting in which the runs differ, and runs that differ in the seed only.

const STRENGTH = /\.(strength|alpha|value)$/;
const AMOUNT = /\.(strength|alpha|value|target|norm_bound|max_norm|n)$/;
const SEED = /seed/i;
const LOWER = /loss|err|mse|mae|perplexity|ppl|nll|nmse|fid/i;

/** Return the numeric settings in which runs differ, strengths of callbacks first. */
export function varying(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings ?? {})))].filter((name) => !SEED.test(name));
  const differ = names.filter((name) => {
    const values = runs.map((run) => run.settings?.[name]);
    return values.some((value) => typeof value === "number") && new Set(values).size > 1;
  });
  return differ.sort((one, other) => AMOUNT.test(other) - AMOUNT.test(one));
}

/** Return the value of a setting in a run, or null; a missing penalty has strength 0. */
export function valueOf(run, name) {
  const value = run.settings?.[name];
  if (typeof value === "number") return value;
  return value === undefined && STRENGTH.test(name) ? 0 : null;
}

/** Return lists of runs whose settings are equal except for the seed. */
export function bySettings(runs) {
  const groups = new Map();
  for (const run of runs) {
    const settings = Object.entries(run.settings ?? {}).filter(([name]) => !SEED.test(name));
    const key = settings.length ? JSON.stringify(settings.sort()) : run.name.replace(/[-_/]?seed[-_=]?\d+/i, "");
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  return [...groups.values()];
}

/** Return the tags of scalars that may measure how good a run is, the likeliest first. */
export function candidates(runs) {
  const tags = [...new Set(runs.flatMap((run) => run.scalars ?? []))].filter((tag) => !/^(epoch|hp_metric|lr-.*)$/.test(tag));
  const rank = (tag) =>
    4 * /val|test|eval/i.test(tag) + 2 * /acc|auc|f1|iou|score/i.test(tag) + LOWER.test(tag) - 3 * /_step$/.test(tag);
  return tags.sort((one, other) => rank(other) - rank(one) || (one < other ? -1 : 1));
}

/** Tell by the name of a metric whether smaller values are better. */
export function isBetterLower(tag, wish) {
  return wish ? wish === "low" : LOWER.test(tag);
}
