// From values to positions between 0 and 1.

const ROUNDING = 1e-6; // numbers that differ by less are equal in single precision
const FAR = 3;

/** Return an extent without outliers far from most values, which would leave one colour for all other values.
 *
 * `samples` are lists of finite values; each value stands for the same number of values. `least` and `most` are the old ends.
 */
export function withoutOutliers(extent, samples) {
  const sorted = Float64Array.from(samples.flat()).sort();
  if (sorted.length < 20) return extent;
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [start, end] = [at(0.05), at(0.95)];
  const room = FAR * (end - start);
  const low = room && extent.low < start - room ? start : extent.low;
  const high = room && extent.high > end + room ? end : extent.high;
  return { ...extent, low, high, least: extent.low, most: extent.high };
}

/** Return the extent with zero in its middle. */
export function aroundZero(extent) {
  const size = Math.max(Math.abs(extent.low), Math.abs(extent.high));
  return { ...extent, low: -size, high: size, diverging: true };
}

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

/** Make a scale over an extent: `position(value)`, and its kind. */
export function scaleOver(extents, wanted) {
  const { low, lowPositive, high } = extents;
  const { least = low, most = high, diverging = false } = extents;
  if (!(low <= high)) return { kind: "none", low: NaN, high: NaN, position: () => 0.5 };
  const log = wanted === "log" && high > 0; // without positive values there is no logarithm
  const bottom = log ? lowPositive : low;
  const [start, end] = log ? [Math.log(bottom), Math.log(high)] : [bottom, high];
  const position = (value) => {
    if (log && value <= 0) return 0;
    return end - start > ROUNDING * Math.max(Math.abs(start), Math.abs(end)) ? ((log ? Math.log(value) : value) - start) / (end - start) : 0.5;
  };
  const below = log && low <= 0;
  return { kind: log ? "log" : "linear", low: bottom, high, position, below, least, most, diverging };
}

/** Return about `wanted` round numbers within a scale. */
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
