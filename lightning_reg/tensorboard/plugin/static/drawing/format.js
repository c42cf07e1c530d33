// Numbers and names in readable form.

const METRIC_TITLES = {
  lipschitz: "Lipschitz bound",
  sparsity: "Sparsity",
  spectral_norm: "Spectral norm",
  weight_norm: "Weight norm",
};

const REMARKS = {
  lipschitz: "Upper bounds. Convolutions are bounded for the size of the images in a batch.",
  spectral_norm: "By default, convolutions on images of any size. The value can exceed the Lipschitz bound.",
};

/** Return a remark for comparing a metric with others; empty for most metrics. */
export function remarkOn(metric) {
  return REMARKS[metric] ?? "";
}

/** Return the name of a metric as a title. */
export function title(metric) {
  if (metric in METRIC_TITLES) return METRIC_TITLES[metric];
  const words = metric.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Return a number with at most `digits` significant digits, or words for a missing number, NaN and infinity. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "nothing logged";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? exponent(value, digits) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

function exponent(value, digits) {
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}e${Number(power)}`.replace("e-", "e−");
}

/** Return a share as per cent. */
export function percent(value) {
  return Number.isFinite(value) ? `${number(value * 100, 3)} %` : number(value);
}

/** Return a step, short enough for an axis. */
export function shortStep(step) {
  if (step >= 1e6) return `${Number((step / 1e6).toPrecision(3))}M`;
  if (step >= 1e4) return `${Number((step / 1e3).toPrecision(3))}k`;
  return String(step);
}

/** Return a count with its noun. */
export function count(amount, noun) {
  return `${amount} ${noun}${amount === 1 ? "" : "s"}`;
}
