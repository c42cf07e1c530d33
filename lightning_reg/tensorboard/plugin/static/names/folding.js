// Modules as a tree by their paths, and layers of folded modules as one row.

/** Return the modules that hold several layers, as `{ path, label, count, children }`; what all have in common is left out. */
export function modulesOf(names) {
  const root = node("", "");
  for (const name of names) {
    let at = root;
    at.count++;
    for (const part of name.split(".").slice(0, -1)) {
      const path = at.path ? `${at.path}.${part}` : part;
      if (!at.children.has(part)) at.children.set(part, node(path, part));
      at = at.children.get(part);
      at.count++;
    }
  }
  return branches(lastAlone(root));
}

function node(path, label) {
  return { path, label, count: 0, children: new Map() };
}

/** Go down to where modules part: a module that holds one module and nothing else is that module. */
function lastAlone(module) {
  let at = module;
  let label = module.label;
  for (;;) {
    const [child] = at.children.values();
    if (at.children.size !== 1 || child.count !== at.count) return { ...at, label };
    at = child;
    label = label ? `${label}.${child.label}` : child.label;
  }
}

function branches(module) {
  const several = [...module.children.values()].filter((child) => child.count > 1).map(lastAlone);
  return several.map((child) => ({ ...child, children: branches(child) }));
}

/** Return the rows of layers: `{ name, members }`, the places of one layer or of all in a folded module. */
export function rowsOf(names, folded) {
  const paths = new Set(folded);
  const rows = new Map();
  names.forEach((name, place) => {
    const path = paths.size ? outermost(name, paths) : null;
    const row = path === null ? name : rowName(path);
    if (!rows.has(row)) rows.set(row, []);
    rows.get(row).push(place);
  });
  return [...rows].map(([name, members]) => ({ name, members }));
}

/** Return how the row of a folded module is called. */
export function rowName(path) {
  return `${path}.*`;
}

function outermost(name, paths) {
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
    if (paths.has(name.slice(0, dot))) return name.slice(0, dot);
  }
  return null;
}

/** Return one number for the values of several layers: their median, but what is no number is never lost in it. */
export function joined(values, median) {
  if (values.length === 1) return values[0];
  const strange = values.find((value) => value !== null && !Number.isFinite(value));
  if (strange !== undefined) return strange;
  return values.some((value) => value !== null) ? median(values) : null;
}
