// Titles of runs, short enough for the narrowest place that has one, and no two alike.

const MOST = 30; // letters
const SEPARATORS = /[/\\,_ -]/;

/** Return a title for each name, which is the name itself unless it is long: then what it shares with the others goes first. */
export function titlesOf(names) {
  if (names.every((name) => name.length <= MOST)) return names;
  const start = sharedStart(names);
  const end = sharedEnd(names, start);
  const titles = names.map((name) => {
    if (name.length <= MOST) return name;
    const middle = name.slice(start, name.length - end);
    return cut(`${start ? "…" : ""}${middle}${end ? "…" : ""}`);
  });
  const uses = new Map();
  for (const title of titles) uses.set(title, (uses.get(title) ?? 0) + 1);
  return titles.map((title, place) => (uses.get(title) > 1 ? `${place + 1}: ${title}` : title));
}

/** Return how many letters all names begin with, up to a separator; 0 if too few to be worth a sign of omission. */
function sharedStart(names) {
  if (names.length < 2) return 0;
  const most = Math.min(...names.map((name) => name.length));
  let [count, kept] = [0, 0];
  while (count < most && names.every((name) => name[count] === names[0][count])) {
    count++;
    if (SEPARATORS.test(names[0][count - 1])) kept = count;
  }
  return kept > 1 ? kept : 0;
}

/** Return how many letters all names end with, from a separator on, of what `start` letters leave. */
function sharedEnd(names, start) {
  if (names.length < 2) return 0;
  const most = Math.min(...names.map((name) => name.length)) - start;
  let [count, kept] = [0, 0];
  while (count < most - 1 && names.every((name) => name.at(-count - 1) === names[0].at(-count - 1))) {
    count++;
    if (SEPARATORS.test(names[0].at(-count))) kept = count;
  }
  return kept > 1 ? kept : 0;
}

/** Leave out letters of the middle. */
function cut(text) {
  if (text.length <= MOST) return text;
  const head = Math.ceil(MOST / 3);
  return `${text.slice(0, head)}…${text.slice(text.length - (MOST - head - 1))}`;
}
