// The user's choices. All of them are in the link; everything else follows from them and the server's answers.

const DEFAULTS = Object.freeze({
  metric: "", // empty: the most informative one
  scale: "linear", // or "log"
  range: "shared", // or "run"
  mode: "value", // of `MODES`
  baseline: "", // the run to compare others with; empty: the first one
  axis: "step", // or "relative", to each run's length
  validation: "", // the metric that measures how good a run is; empty: the likeliest
  by: "", // the setting in which runs are compared
  better: "", // "low" or "high"; empty: as the metric's name says
  columns: null, // names of columns of the table; null: the columns in which runs differ
  filter: "",
  folded: null, // paths of modules whose layers are one row
  runs: null, // an array of names; null: as many as fit
  layer: "", // whose curve is open
  sort: "run", // a column of the table, with "-" before it: the largest first
});

const LISTS = ["runs", "columns", "folded"];
const CHOICES = {
  better: ["low", "high"],
  scale: ["linear", "log"],
  range: ["shared", "run"],
  mode: ["value", "change", "baseline", "median"],
  axis: ["step", "relative"],
};

/** Return the entries of a link that differ from the defaults, as strings. */
export function toEntries(state) {
  const entries = {};
  for (const [name, value] of Object.entries(state)) {
    if (value === DEFAULTS[name]) continue;
    entries[name] = LISTS.includes(name) ? JSON.stringify(value) : value;
  }
  return entries;
}

/** Return the state that a link describes. Links are typed and cut off, so invalid entries keep their defaults. */
export function fromEntries(entries) {
  const state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) {
    const text = entries[name];
    if (typeof text !== "string") continue;
    if (LISTS.includes(name)) state[name] = namesIn(text);
    else if (!CHOICES[name] || CHOICES[name].includes(text)) state[name] = text;
  }
  return state;
}

function namesIn(text) {
  try {
    const names = JSON.parse(text);
    return Array.isArray(names) && names.every((name) => typeof name === "string") ? names : null;
  } catch {
    return null;
  }
}

/** Make a state that notifies its listeners of each change. */
export function store(initial) {
  let state = initial;
  const listeners = [];
  return {
    get: () => state,
    set(changes) {
      state = { ...state, ...changes };
      for (const listener of listeners) listener(state);
    },
    listen: (listener) => listeners.push(listener),
  };
}
