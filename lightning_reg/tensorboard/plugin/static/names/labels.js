// Names of layers, short enough for their place, and all different. The common start is omitted first. Then modules are
// shortened to the letters that distinguish them from their neighbours. Numbers and the last part stay whole if possible.

/** Return a label for each name; `fits(text)` tells whether a label fits. */
export function labelsOf(names, fits) {
  const parts = names.map((name) => name.split("."));
  const common = sharedStart(parts);
  const rest = parts.map((each) => each.slice(common));
  const brothers = childrenOf(rest);
  const labels = rest.map((each) => shortened(each, brothers, fits));
  const uses = new Map();
  for (const label of labels) uses.set(label, (uses.get(label) ?? 0) + 1);
  return labels.map((label, place) => (uses.get(label) > 1 ? `${place + 1}: ${label}` : label));
}

function sharedStart(parts) {
  if (parts.length < 2) return 0;
  const most = Math.min(...parts.map((each) => each.length)) - 1; // the last part is never omitted
  let count = 0;
  while (count < most && parts.every((each) => each[count] === parts[0][count])) count++;
  return count;
}

/** Return path -> the names that follow it. */
function childrenOf(parts) {
  const children = new Map();
  for (const each of parts) {
    each.forEach((name, depth) => {
      const path = each.slice(0, depth).join(".");
      if (!children.has(path)) children.set(path, new Set());
      children.get(path).add(name);
    });
  }
  return children;
}

function shortened(parts, children, fits) {
  const now = [...parts];
  for (let depth = 0; depth < now.length - 1 && !fits(now.join(".")); depth++) {
    now[depth] = shortest(parts[depth], children.get(parts.slice(0, depth).join(".")));
  }
  const text = now.join(".");
  return fits(text) ? text : cut(text, fits);
}

/** Return the shortest start of `name` that no other name has; numbers are not shortened. */
function shortest(name, others) {
  if (/^\d+$/.test(name)) return name;
  for (let length = 1; length < name.length; length++) {
    const start = name.slice(0, length);
    if ([...others].every((other) => other === name || !other.startsWith(start))) return start;
  }
  return name;
}

function cut(text, fits) {
  let kept = text.length;
  const short = () => `${text.slice(0, Math.ceil(kept / 3))}…${text.slice(text.length - Math.floor((2 * kept) / 3))}`;
  while (kept > 2 && !fits(short())) kept--;
  return short();
}
