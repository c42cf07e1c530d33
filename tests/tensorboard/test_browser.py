"""The page "Custom Scalars" as a person sees it, in headless Chromium."""

from lightning_reg.tensorboard import layout
from tests.tensorboard.conftest import PICTURES, RUNS, Server

_LOAD_SECONDS = 300  # at most, because the machine may be busy

# Charts sit in shadow roots, which selectors do not look into.
_CHARTS = """
const charts = {};
const walk = (node, title) => {
  for (const root of [node.shadowRoot, node].filter(Boolean)) {
    for (const child of root.children || []) {
      if (child.tagName === 'TF-CARD-HEADING') charts[title.name = child.displayName] = 0;
      if (child.tagName === 'CANVAS' && title.name) title.canvas = child;
      const matches = child.children.length ? null : child.textContent.match(/Matches \\((\\d+)\\)/);
      if (matches && title.name) charts[title.name] = Number(matches[1]);
      walk(child, title);
    }
  }
};
walk(document, {});
return charts;
"""


def test_every_chart_shows_its_data_and_the_console_no_error(browser, logs):
    from selenium.webdriver.support.wait import WebDriverWait

    expected = {title: kind for title, (kind, _) in layout()["Regularization"].items()}
    server = Server(logs)
    try:
        server.wait_for(RUNS)
        browser.get(f"{server.url}/#custom_scalars")

        charts = WebDriverWait(browser, _LOAD_SECONDS).until(
            lambda browser: (found := browser.execute_script(_CHARTS)) and min(found.values()) > 0 and found
        )

        assert set(charts) == set(expected)
        assert charts["Loss and penalties"] == 7  # of both runs: loss and sum; three penalties
        assert charts["Validation"] == len(RUNS)
        assert charts["Weight norm of layers"] == len(RUNS)
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.save_screenshot(PICTURES / "custom_scalars.png")
        server.close()
