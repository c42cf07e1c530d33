// One box that follows the pointer or cursor, and one line that screen readers read out.

import { element } from "../drawing/dom.js";

const GAP = 14;

/** Make the tooltip. `show` takes lines of `[text, class]` and a point of the window. */
export function tooltip() {
  const box = element("div", { class: "tooltip", hidden: true, "aria-hidden": "true" });
  const spoken = element("div", { class: "unseen", role: "status", "aria-live": "polite", id: "spoken" });
  document.body.append(box, spoken);
  return {
    show(lines, x, y) {
      box.replaceChildren(...lines.map(([text, kind]) => element("div", { class: kind }, text)));
      box.hidden = false;
      const [width, height] = [box.offsetWidth, box.offsetHeight];
      const left = x + GAP + width < innerWidth ? x + GAP : x - GAP - width;
      const top = y + GAP + height < innerHeight ? y + GAP : y - GAP - height;
      box.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
      box.style.top = `${Math.max(4, top)}px`;
    },
    hide: () => (box.hidden = true),
    say: (text) => (spoken.textContent = text),
  };
}
