"""The page "Custom Scalars" as a person sees it, in headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_reg.tensorboard import layout
from tests.tensorboard.conftest import RUNS, Server

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: `make browser`")

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
PICTURES = Path(__file__).parent.parent.parent / "test-results"
_LOAD_SECONDS = 60

pytestmark = pytest.mark.skipif(not all(PROGRAMS.values()), reason="needs chromium and chromedriver: `make browser`")

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


@pytest.fixture
def browser(tmp_path) -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    arguments = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    arguments += ["disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path}"]
    for argument in [*arguments, "window-size=1400,1200"]:
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(PROGRAMS["chromedriver"]))
    yield browser
    browser.quit()


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
        assert charts["Weight norm of layers"] == len(RUNS)
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        PICTURES.mkdir(exist_ok=True)
        browser.save_screenshot(PICTURES / "custom_scalars.png")
        server.close()
