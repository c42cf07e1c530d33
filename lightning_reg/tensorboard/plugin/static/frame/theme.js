// TensorBoard's look. TensorBoard passes neither theme nor font to the frame of a plugin, so both are read off its page.

function parentPage() {
  try {
    return window.parent === window ? null : window.parent.document;
  } catch {
    return null;
  }
}

/** Follow the theme of TensorBoard, or of the system if the page stands alone; call `changed` when it changes. */
export function followTheme(changed) {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const parent = parentPage();
  const apply = () => {
    const dark = parent ? parent.body.classList.contains("dark-mode") : system.matches;
    const theme = dark ? "dark" : "light";
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    changed(dark);
  };
  if (parent) new MutationObserver(apply).observe(parent.body, { attributeFilter: ["class"] });
  else system.addEventListener("change", apply);
  apply();
}

/** Call `reload` when the user presses TensorBoard's reload button, which does not notify the frames of plugins. */
export function followReload(reload) {
  const page = parentPage();
  const pressed = (event) => event.target.closest?.(".reload-button") && reload();
  page?.addEventListener("click", pressed);
  window.addEventListener("pagehide", () => page?.removeEventListener("click", pressed));
}

/** Copy the font faces of Roboto from TensorBoard's page. */
export function borrowFont() {
  const page = parentPage();
  for (const sheet of page?.styleSheets ?? []) {
    let rules;
    try {
      rules = [...sheet.cssRules];
    } catch {
      continue; // a style sheet of another origin
    }
    for (const rule of rules) {
      const source = rule.constructor.name === "CSSFontFaceRule" && rule.style.getPropertyValue("src");
      const address = source && /url\("?([^")]+)"?\)/.exec(source)?.[1];
      if (!address || !/roboto["']?$/i.test(rule.style.getPropertyValue("font-family"))) continue;
      const weight = rule.style.getPropertyValue("font-weight") || "400";
      const style = rule.style.getPropertyValue("font-style") || "normal";
      const unicodeRange = rule.style.getPropertyValue("unicode-range") || "U+0-10FFFF";
      const url = new URL(address, sheet.href ?? page.baseURI);
      document.fonts.add(new FontFace("Roboto", `url("${url}")`, { weight, style, unicodeRange }));
    }
  }
}
