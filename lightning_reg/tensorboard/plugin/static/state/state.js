// What the user has chosen. All of it is in the link; everything else follows from it and from the server's answers.

export const DEFAULTS = Object.freeze({
  metric: "", // empty: the most telling one there is
  scale: "linear", // or "log"
  range: "shared", // or "run"
  filter: "",
  runs: null, // an array of names; null: as many as fit
  layer: "", // whose curve is open
  sort: "run", // a column of the table, with "-" before it: the largest first
});

const CHOICES = { scale: ["linear", "log"], range: ["shared", "run"] };

/** Return the entries of a link that differ from the defaults, as strings. */
export function toEntries(state) {
  const entries = {};
  for (const [name, value] of Object.entries(state)) {
    if (value === DEFAULTS[name]) continue;
    entries[name] = name === "runs" ? JSON.stringify(value) : value;
  }
  return entries;
}

/** Return the state that a link describes. Links are typed and cut off: what makes no sense is left at its default. */
export function fromEntries(entries) {
  const state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) {
    const text = entries[name];
    if (typeof text !== "string") continue;
    if (name === "runs") state.runs = namesIn(text);
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

/** Make a state that tells its listeners of each change. */
export function store(initial) {
  let state = initial;
  const listeners = [];
  return {
    get: () => state,
    set(changes) {
      const before = state;
      state = { ...state, ...changes };
      for (const listener of listeners) listener(state, before);
    },
    listen: (listener) => listeners.push(listener),
  };
}
