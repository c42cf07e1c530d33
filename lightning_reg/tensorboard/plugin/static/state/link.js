// The link that reproduces the view: `#<tab>&reg.metric=spectral_norm&...` in the address of TensorBoard's own page.

const PREFIX = "reg.";

/** Return TensorBoard's window, or this one if the page stands alone or the parent has another origin. */
function host() {
  try {
    void window.parent.location.hash;
    return window.parent;
  } catch {
    return window;
  }
}

function parts() {
  return host().location.hash.slice(1).split("&").filter(Boolean);
}

/** Return the name of this page's tab: the last folder of its routes. */
function tab() {
  return new URL(document.baseURI).pathname.split("/").at(-2);
}

/** Return the entries of the link for this page. */
export function read() {
  const entries = {};
  for (const part of parts()) {
    const [name, value] = part.split("=").map(safelyDecoded);
    if (value !== undefined && name.startsWith(PREFIX)) entries[name.slice(PREFIX.length)] = value;
  }
  return entries;
}

function safelyDecoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Write the entries into the address, beside the entries of TensorBoard and its other tabs. */
export function write(entries) {
  const kept = parts().filter((part) => !part.startsWith(PREFIX));
  // An address without a tab opens the first one.
  if (!kept.some((part) => !part.includes("="))) kept.unshift(tab());
  const ours = Object.entries(entries).map(([name, value]) => `${PREFIX}${name}=${encodeURIComponent(value)}`);
  const { history } = host();
  history.replaceState(history.state, "", "#" + [...kept, ...ours].join("&"));
}

/** Call `listener` when the user enters another link. */
export function follow(listener) {
  const page = host();
  // A change of TensorBoard's tab also changes the address, but does not matter for this page.
  const changed = () => (page === window || parts().includes(tab())) && listener();
  page.addEventListener("hashchange", changed);
  window.addEventListener("pagehide", () => page.removeEventListener("hashchange", changed));
}

/** Copy the link. Returns whether it was possible. */
export async function copy() {
  const text = host().location.href;
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no clipboard, but this works.
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "unseen";
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}
