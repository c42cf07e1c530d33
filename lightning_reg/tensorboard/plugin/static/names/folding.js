// The tree of modules by their paths, and the rows of layers when modules are folded.

/** Return the modules with several layers, as `{ path, label, count, children }`; labels omit the common start. */
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

/** Go down to the first branch: a module that holds one module and nothing else is replaced by that module. */
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

/** Return the rows of layers as `{ name, members }`: the indices of one layer, or of all layers in a folded module. */
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

/** Return the name of the row of a folded module. */
export function rowName(path) {
  return `${path}.*`;
}

function outermost(name, paths) {
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
    if (paths.has(name.slice(0, dot))) return name.slice(0, dot);
  }
  return null;
}
