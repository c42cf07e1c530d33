// The page "Regularization": TensorBoard calls `render()` in an empty frame.

import { comparison } from "./compare/compare.js";
import { curvePanel } from "./curve/curve.js";
import { controls } from "./frame/controls.js";
import { advice } from "./frame/empty.js";
import { moduleTree } from "./frame/modules.js";
import { assembled, styled } from "./frame/page.js";
import { runList } from "./frame/runs.js";
import { statusBar } from "./frame/status.js";
import { table } from "./frame/table.js";
import { borrowFont, followReload, followTheme } from "./frame/theme.js";
import { tooltip } from "./frame/tooltip.js";
import { heatmaps } from "./heatmap/heatmaps.js";
import { oddLayers } from "./odd/odd.js";
import { rowName } from "./names/folding.js";
import * as api from "./server/api.js";
import { loader } from "./server/heatmap_loader.js";
import { poll } from "./server/poll.js";
import { compile } from "./state/filter.js";
import * as link from "./state/link.js";
import { fromEntries, store, toEntries } from "./state/state.js";
import { firstRuns, viewOf } from "./state/view.js";

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Regularization";
  window.frameElement?.setAttribute("title", "Regularization");
  const looks = styled();
  borrowFont();

  const choices = store(fromEntries(link.read()));
  let catalogue = null;
  let dark = false;
  let filter = compile("");
  let due = false;

  const tip = tooltip();
  const load = loader(() => repaint());
  let picked = null; // the card in which a row was chosen, until its curve is also in view
  const pick = (layer, card) => {
    const folded = choices.get().folded ?? [];
    const left = folded.filter((path) => rowName(path) !== layer);
    if (left.length < folded.length) return choices.set({ folded: left.length ? left : null });
    picked = card;
    const closes = layer === choices.get().layer;
    choices.set({ layer: closes ? "" : layer });
    tip.say(closes ? "Curve closed" : `The curve of ${layer} is shown below`);
  };
  const maps = heatmaps(load, { tip, pick });
  const curve = curvePanel(tip, () => choices.set({ layer: "" }));
  const compare = comparison((changes) => choices.set(changes));
  const odd = oddLayers((layer) => choices.set({ layer }));
  const summary = table((changes) => choices.set(changes));
  const runs = runList((names) => choices.set({ runs: sameAsFirst(names) ? null : names }));
  const settings = controls((changes) => choices.set(changes));
  const modules = moduleTree((folded) => choices.set({ folded: folded.length ? folded : null }));
  const status = statusBar({ refresh: () => reading.now(), pause: (paused) => reading.pause(paused), copy: link.copy });
  const page = assembled({ settings, modules, runs, status, compare, summary, odd, maps, curve });

  const sameAsFirst = (names) => JSON.stringify(names) === JSON.stringify(firstRuns(catalogue));

  /** Show the current state, at most once in a frame. */
  function repaint() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      paint();
    });
  }

  function paint() {
    if (!catalogue) return;
    const state = choices.get();
    const view = viewOf(state, catalogue);
    const compiled = compile(state.filter);
    if (!compiled.error && compiled.source !== filter.source) filter = compiled;
    page.show(view, advice(catalogue, view.metrics));
    settings.show(view, state, compiled.error);
    runs.show(view, dark);
    compare.show(view, state).then(() => summary.show(view.shown, state, compare.scores(), dark), failedQuietly);
    summary.show(view.shown, state, compare.scores(), dark);
    if (!view.metric) return;
    maps.arrange(view.shown);
    load.want(view.metric, view.readable, maps.columns());
    maps.show(view, state, filter, dark);
    const layers = new Set(view.readable.flatMap(({ name }) => load.answer(name)?.data?.layers ?? []));
    modules.show([...layers], state.folded);
    odd.show(view.readable.flatMap(({ name, title }) => (load.answer(name)?.data ? [[title, load.answer(name).data]] : [])));
    curve.show(view, state, dark);
    if (picked && state.layer) curve.leaveInSight(picked.querySelector(".row-mark"));
    picked = null;
  }

  /** The next reading fails for the same reason, and shows it. */
  function failedQuietly() {}

  const reading = poll(
    async () => {
      [catalogue] = await Promise.all([api.runs(), looks]);
      paint();
      const view = viewOf(choices.get(), catalogue);
      await load.refresh();
      await compare.show(view, choices.get(), true);
      await curve.show(view, choices.get(), dark, true);
      const failed = view.shown.map((run) => load.answer(run.name)?.error).find((error) => error && !error.missing);
      if (failed) throw failed;
    },
    (now) => status.show(now),
  );

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target.type === "search") return;
    tip.hide();
    if (choices.get().layer) choices.set({ layer: "" });
  });
  followReload(() => reading.now());
  followTheme((isDark) => {
    dark = isDark;
    repaint();
  });
  choices.listen((state) => {
    link.write(toEntries(state));
    repaint();
  });
  link.follow(() => {
    const state = fromEntries(link.read());
    if (JSON.stringify(state) !== JSON.stringify(choices.get())) choices.set(state);
  });
  looks.then(() => document.body.append(page.element));
  await reading.now();
}
