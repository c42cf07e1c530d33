// Titles of runs, short enough for the narrowest place on the page, and all different.

const MOST = 30; // letters
const SEPARATORS = /[/\\,_ -]/;

/** Return a title for each name: the name itself if it is short, otherwise without the parts shared with other names. */
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

/** Return the number of common letters at the start, up to a separator; 0 if omitting them would save too little. */
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

/** Return the number of common letters at the end, from a separator on, not counting the first `start` letters. */
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
