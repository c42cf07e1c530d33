// From values to positions between 0 and 1.

/** Return the least, the least positive and the largest finite value. */
export function extent(rowsOfValues) {
  const found = { low: Infinity, lowPositive: Infinity, high: -Infinity };
  for (const rows of rowsOfValues) {
    for (const row of rows) {
      for (const value of row) {
        if (value === null || !Number.isFinite(value)) continue;
        if (value < found.low) found.low = value;
        if (value > found.high) found.high = value;
        if (value > 0 && value < found.lowPositive) found.lowPositive = value;
      }
    }
  }
  return found;
}

/** Make a scale over an extent: `position(value)`, `value(position)`, and what kind it came to be. */
export function scaleOver({ low, lowPositive, high }, wanted) {
  if (!(low <= high)) return { kind: "none", low: NaN, high: NaN, position: () => 0.5, value: () => NaN };
  const log = wanted === "log" && high > 0; // where nothing is positive there is no logarithm
  const bottom = log ? lowPositive : low;
  const [start, end] = log ? [Math.log(bottom), Math.log(high)] : [bottom, high];
  const position = (value) => {
    if (log && value <= 0) return 0;
    return end > start ? ((log ? Math.log(value) : value) - start) / (end - start) : 0.5;
  };
  const value = (place) => {
    const inner = start + place * (end - start);
    return log ? Math.exp(inner) : inner;
  };
  return { kind: log ? "log" : "linear", low: bottom, high, position, value, below: log && low <= 0 };
}

/** Return round numbers within a scale, about `wanted` of them, both ends apart. */
export function ticks(scale, wanted) {
  if (scale.kind === "none" || scale.low === scale.high) return [];
  if (scale.kind === "log" && scale.high / scale.low >= 100) return powers(scale, wanted);
  const raw = (scale.high - scale.low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let index = Math.ceil(scale.low / step); index * step <= scale.high; index++) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

function powers({ low, high }, wanted) {
  const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  const stride = Math.max(1, Math.round((last - first) / wanted));
  const found = [];
  for (let power = first; power <= last; power += stride) found.push(10 ** power);
  return found;
}
