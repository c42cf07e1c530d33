// Read again every half minute, because TensorBoard does not notify a plugin's frame of new data.

const EVERY = 30_000;

/** Return whether the page is visible: TensorBoard keeps the frames of other tabs, without a size. */
function seen() {
  return !document.hidden && document.documentElement.clientWidth > 0;
}

/** Call `load` now and every half minute; `shown(status)` gets `{ busy, paused, at, error }` after each change. */
export function poll(load, shown) {
  const status = { busy: false, paused: false, at: null, error: null };
  let timer = 0;
  let overdue = false;
  const tell = (changes) => shown(Object.assign(status, changes));

  async function now() {
    if (status.busy) return;
    clearTimeout(timer);
    overdue = false;
    tell({ busy: true });
    try {
      await load();
      tell({ busy: false, at: new Date(), error: null });
    } catch (error) {
      tell({ busy: false, error });
    }
    schedule();
  }

  function schedule() {
    clearTimeout(timer);
    if (!status.paused) timer = setTimeout(() => (seen() ? now() : (overdue = true)), EVERY);
  }

  const appeared = () => overdue && seen() && now();
  document.addEventListener("visibilitychange", appeared);
  new ResizeObserver(appeared).observe(document.documentElement);
  return {
    now,
    pause(paused) {
      tell({ paused });
      if (paused) clearTimeout(timer);
      else now();
    },
  };
}
