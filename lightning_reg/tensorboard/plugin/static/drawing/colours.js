// Colours. The map from numbers is viridis (N. Smith and S. van der Walt, 2015, CC0): equal steps look equal, its
// lightness grows all the way, so it also reads in print and with any colour blindness.

const ANCHORS =
  "440154 470d60 48186a 482374 472d7b 453781 424086 3e4989 3b528b 375b8d 33638d " +
  "2f6b8e 2c728e 297a8e 26828e 23898e 21908c 1f978b 1f9f88 21a685 27ad81 31b57b " +
  "3ebc74 4dc26c 5cc863 6ece58 82d34d 95d840 aadc32 c0df25 d5e21a eae51a fde725";

const anchors = ANCHORS.split(" ").map((hex) => [0, 2, 4].map((start) => parseInt(hex.slice(start, start + 2), 16)));

const SHADES = 256;

/** The map as a table of red, green, blue. */
export const shades = Array.from({ length: SHADES }, (_, index) => {
  const place = (index / (SHADES - 1)) * (anchors.length - 1);
  const left = Math.min(Math.floor(place), anchors.length - 2);
  return anchors[left].map((value, channel) =>
    Math.round(value + (place - left) * (anchors[left + 1][channel] - value)),
  );
});

/** Return the row of `shades` for a position between 0 and 1. */
function shade(position) {
  return shades[Math.round(Math.min(Math.max(position, 0), 1) * (SHADES - 1))];
}

// Below zero blue, zero near white, above zero red (ends of ColorBrewer's RdBu, C. Brewer, Apache 2.0).
const BELOW = [33, 102, 172];
const ZERO = [247, 247, 247];
const ABOVE = [178, 24, 43];

/** Return the colour for a position between 0 and 1 of a range with zero in its middle. */
function tint(position) {
  const place = Math.min(Math.max(position, 0), 1) * 2 - 1;
  const end = place < 0 ? BELOW : ABOVE;
  return ZERO.map((value, channel) => Math.round(value + Math.abs(place) * (end[channel] - value)));
}

/** Return the colour of a finite value on a scale. */
export function colourOf(scale, value) {
  return (scale.diverging ? tint : shade)(scale.position(value));
}

/** Return the map as a CSS gradient, lowest value first. */
export function gradient(direction, diverging = false) {
  const map = diverging ? tint : shade;
  const stops = Array.from({ length: 17 }, (_, index) => `rgb(${map(index / 16).join(" ")})`);
  return `linear-gradient(${direction}, ${stops.join(", ")})`;
}

// TensorBoard's colours of runs, in its order, for light and for dark pages.
const LIGHT = ["#425066", "#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a"];
const DARK = ["#aecbfa", "#12b5cb", "#ff8bcb", "#fdd663", "#c58af9", "#aedc7e", "#fa903e"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];

/** Return the stroke of the run at `index`; if there are more runs than colours, dashes distinguish them. */
export function strokeOf(index, dark) {
  const palette = dark ? DARK : LIGHT;
  const round = Math.floor(index / palette.length);
  return { colour: palette[index % palette.length], dash: DASHES[round % DASHES.length] };
}
