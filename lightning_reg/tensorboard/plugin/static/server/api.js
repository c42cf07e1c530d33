// Answers of the server, with NaN and infinities as numbers again; `null` is a step where nothing was logged.

const NUMBERS = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

function decoded(value) {
  return typeof value === "string" ? NUMBERS[value] : value;
}

async function get(route, query = {}) {
  // The page's base is the folder of this plugin's routes, whatever prefix TensorBoard is served under.
  const url = new URL(route, document.baseURI);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let answer;
  try {
    answer = await fetch(url, { cache: "no-store" });
  } catch {
    throw new Error("TensorBoard does not answer");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok || body === null) {
    const error = new Error(body?.error ?? `TensorBoard answered with status ${answer.status}`);
    error.missing = answer.status === 404;
    throw error;
  }
  return body;
}

/** Return the runs, each with the names of its metrics and its last numbers. */
export async function runs() {
  const body = await get("runs");
  for (const run of body.runs) {
    run.numbers ??= {};
    for (const numbers of [run.summary, run.numbers]) {
      for (const name of Object.keys(numbers)) numbers[name] = decoded(numbers[name]);
    }
  }
  return body.runs;
}

/** Return a scalar of all runs that have it: run -> `{ last, least, largest }`, each `[step, value]`. */
export async function scalar(tag) {
  const { runs } = await get("scalar", { tag });
  for (const values of Object.values(runs)) {
    for (const name of Object.keys(values)) values[name] = [values[name][0], decoded(values[name][1])];
  }
  return runs;
}

/** Return one metric of one run: a row of values for each layer, one for each step. */
export async function heatmap(run, metric, columns) {
  const body = await get("heatmap", { run, metric, columns });
  body.values = body.values.map((row) => row.map(decoded));
  return body;
}

/** Return one metric of one layer over all runs that have it. */
export async function curves(metric, layer, points) {
  const body = await get("curve", { metric, layer, points });
  return body.curves.map((curve) => ({ ...curve, values: curve.values.map(decoded) }));
}
