// The numbers that a row draws: the values, their differences to others, or one for several layers.

export const MODES = [
  ["value", "Value"],
  ["change", "Change since the first step"],
  ["baseline", "Difference to the baseline run"],
  ["median", "Distance from the median layer"],
];

const LABELS = { value: "", change: "change", baseline: "difference", median: "from the median" };

/** Return the name of a mode in a tooltip, empty for plain values, and whether zero is in the middle of its colours. */
export function modeOf(name) {
  return { name, label: LABELS[name], diverging: name !== "value" };
}

/** Return rows of numbers for a mode; `base` is the answer of the baseline run. */
export function drawnOf(mode, data, rows, base) {
  const values = rows.map((row) => data.values[row]);
  if (mode === "change") return values.map(changes);
  if (mode === "median") return fromMedian(values);
  if (mode === "baseline") return rows.map((row) => differences(data, row, base));
  return values;
}

function changes(row) {
  const first = row.find((value) => value !== null && Number.isFinite(value));
  return row.map((value) => (value === null || first === undefined ? null : value - first));
}

function fromMedian(values) {
  const medians = (values[0] ?? []).map((_, column) => median(values.map((row) => row[column])));
  return values.map((row) => row.map((value, column) => (value === null ? null : value - medians[column])));
}

/** Return the median of the finite `values`; NaN if there are none. */
export function median(values) {
  const sorted = values.filter((value) => value !== null && Number.isFinite(value)).sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Return one number for the values of several layers: their median, unless a value is NaN or infinite. */
export function joined(values) {
  const strange = values.find((value) => value !== null && !Number.isFinite(value));
  if (strange !== undefined) return strange;
  return values.some((value) => value !== null) ? median(values) : null;
}

/** Compare with the baseline's last value up to the same step; empty if the baseline has none. */
function differences(data, row, base) {
  const other = base ? base.values[base.layers.indexOf(data.layers[row])] : undefined;
  let place = -1;
  return data.values[row].map((value, column) => {
    while (base && place + 1 < base.steps.length && base.steps[place + 1] <= data.steps[column]) place++;
    const against = other?.[place] ?? null;
    return value === null || against === null ? null : value - against;
  });
}
