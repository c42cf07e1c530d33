// The status bar: when the numbers were read, whether the page keeps reading, and the link.

import { element } from "../drawing/dom.js";

/** Make the bar. `actions` are `refresh()`, `pause(paused)` and `copy()`, which returns whether it could. */
export function statusBar(actions) {
  const dot = element("span", { class: "dot", "aria-hidden": "true" });
  const text = element("span", { role: "status" });
  const refresh = element("button", { type: "button", onclick: actions.refresh }, "Refresh");
  const pause = element("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const link = element("button", { type: "button" }, "Copy link");
  pause.addEventListener("click", () => actions.pause(pause.getAttribute("aria-pressed") !== "true"));
  link.addEventListener("click", async () => {
    link.textContent = (await actions.copy()) ? "Copied" : "See the address bar";
    setTimeout(() => (link.textContent = "Copy link"), 2000);
  });
  const bar = element("div", { class: "status" }, element("span", { class: "state" }, dot, text), refresh, pause, link);
  return {
    element: bar,
    show({ busy, paused, at, error }) {
      const kind = error ? "failed" : paused ? "paused" : "fresh";
      bar.dataset.kind = kind;
      bar.toggleAttribute("data-busy", busy);
      // A screen reader would read out every refresh, so the text changes only when its content does.
      const words = wordsFor(kind, at, error, paused);
      if (text.textContent !== words) text.textContent = words;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Resume" : "Pause";
    },
  };
}

function wordsFor(kind, at, error, paused) {
  const time = at?.toLocaleTimeString([], { hour12: false }) ?? "";
  if (kind === "failed") return `${error.message}. ${paused ? "Paused." : "Trying again every 30 s."}`;
  if (!at) return "Reading…";
  return kind === "paused" ? `Paused · read at ${time}` : `Read at ${time}`;
}
