// Advice for when there is nothing to show.

import { element } from "../drawing/dom.js";

const EXAMPLE = `from lightning_reg import RegularizationMonitor

trainer = Trainer(callbacks=[RegularizationMonitor()])`;

/** Return the advice for a log directory without numbers of single layers; null if there are some. */
export function advice(catalogue, metrics) {
  if (metrics.length) return null;
  if (!catalogue.length) {
    return card(
      "No layers to show yet",
      "Add the monitor to your trainer. Its numbers appear here as they are written.",
      EXAMPLE,
    );
  }
  const text = "These runs hold no numbers of single layers. The monitor writes them unless per_layer=False says not to:";
  return card("No layers to show", text, EXAMPLE);
}

function card(heading, text, code) {
  return element(
    "div",
    { class: "card empty" },
    element("h2", {}, heading),
    element("p", {}, text),
    element("pre", {}, element("code", {}, code)),
  );
}
