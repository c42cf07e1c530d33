// Read heatmaps: first the heatmaps in view, then all others, because the shared colours need them. An answer stays
// until a newer one arrives, so a refresh does not flicker.

import * as api from "./api.js";

const AT_ONCE = 2;

/** Make a loader that calls `changed()` after each answer. */
export function loader(changed) {
  const answers = new Map(); // run -> { data, error, version }
  const due = new Set();
  const asked = new Map(); // run -> the metric that is being read
  const inView = new Set();
  let wanted = { metric: "", runs: [], columns: 0 };
  let busy = 0;
  let waiting = [];
  let versions = new Map(); // run -> the server's name for its state

  function next() {
    const runs = wanted.runs.filter((run) => due.has(run));
    const rank = (run) => (inView.has(run) ? 0 : 2) + (answers.has(run) ? 1 : 0);
    return runs.sort((one, other) => rank(one) - rank(other))[0];
  }

  async function read(run) {
    const { metric, columns } = wanted;
    // The version is taken before the answer: an old one causes a needless reading, but a new one would hide numbers.
    const version = versions.get(run);
    let answer;
    try {
      answer = { data: await api.heatmap(run, metric, columns), error: null, version };
    } catch (error) {
      answer = { data: error.missing ? null : (answers.get(run)?.data ?? null), error, version };
    }
    // Another metric may have been chosen and requested meanwhile.
    if (asked.get(run) === metric) asked.delete(run);
    if (metric === wanted.metric) answers.set(run, answer);
  }

  function work() {
    // The first picture appears sooner if the server works on nothing else.
    while (busy < (answers.size ? AT_ONCE : 1) && next() !== undefined) {
      const run = next();
      due.delete(run);
      asked.set(run, wanted.metric);
      busy++;
      read(run).then(() => {
        busy--;
        changed();
        work();
      });
    }
    if (busy) return;
    for (const done of waiting.splice(0)) done();
  }

  return {
    answer: (run) => answers.get(run),
    /** How many of the wanted heatmaps have been answered. */
    answered: () => wanted.runs.filter((run) => answers.has(run)).length,
    /** Set the wanted metric, runs and versions; missing answers will be read. */
    want(metric, runs, columns) {
      if (metric !== wanted.metric) answers.clear();
      wanted = { metric, runs: runs.map((run) => run.name), columns };
      versions = new Map(runs.map((run) => [run.name, run.version]));
      for (const run of wanted.runs) if (!answers.has(run) && asked.get(run) !== metric) due.add(run);
      work();
    },
    /** Read answers of other versions again; resolves when they have arrived. */
    refresh() {
      for (const run of wanted.runs) {
        const answer = answers.get(run);
        const old = !answer || answer.error || answer.version !== versions.get(run);
        if (old && asked.get(run) !== wanted.metric) due.add(run);
      }
      return new Promise((done) => {
        waiting.push(done);
        work();
      });
    },
    /** Set whether the heatmap of a run is in view. */
    see: (run, visible) => (visible ? inView.add(run) : inView.delete(run)),
  };
}
