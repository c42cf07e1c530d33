// Which layers are shown: part of a name, a glob over the whole name, or /a regular expression/.

/** Return `{ source, matches, error }`: a test of names, or the error in the pattern. */
export function compile(pattern) {
  const source = pattern.trim();
  return { source, ...compiled(source) };
}

function compiled(text) {
  if (!text) return { matches: () => true, error: "" };
  const slashes = /^\/(.*)\/(i?)$/s.exec(text);
  if (slashes) return regular(slashes[1], slashes[2]);
  if (/[*?]/.test(text)) return regular(`^${globSource(text)}$`, "is");
  const part = text.toLowerCase();
  return { matches: (name) => name.toLowerCase().includes(part), error: "" };
}

function globSource(glob) {
  return glob
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
}

function regular(source, flags) {
  try {
    const expression = new RegExp(source, flags);
    return { matches: (name) => expression.test(name), error: "" };
  } catch (problem) {
    return { matches: null, error: `Not a regular expression: ${reason(problem, source)}` };
  }
}

function reason(problem, source) {
  // Browsers repeat the expression before the error.
  return problem.message.split(`${source}/: `).at(-1).split(": ").at(-1);
}
