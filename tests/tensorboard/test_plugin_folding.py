"""Modules that fold to one row of the heatmaps, in headless Chromium."""

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_reg.tensorboard import events, tags
from tests.tensorboard.conftest import Server
from tests.tensorboard.page import NAME, Page

NAMES = [*[f"model.encoder.{index}.{part}" for index in (0, 1) for part in ("query", "key", "value")], "model.head"]
NORMS = np.array([[1.0, 5.0], [2.0, 3.0], [9.0, 4.0], [1.0, np.nan], [2.0, 6.0], [3.0, 7.0], [8.0, 8.5]])


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    with SummaryWriter(str(folder / "run")) as writer:
        events.write(writer, events.network_order(tags.LAYERS, NAMES), 0)
        for step in (0, 1):
            tag = tags.values_of("weight_norm", NAMES)
            events.write(writer, events.layer_values(tag, NORMS[:, step].tolist(), None if step else NAMES), step)
    server = Server(folder)
    try:
        server.until(lambda: [run["version"][-2:] for run in server.get(f"plugin/{NAME}/runs")["runs"]] == ["-1"])
        page = Page(browser, server.url)
        page.load(page.address())
        yield page
        assert not page.errors()
    finally:
        server.close()


def focus(page, path):
    page.run("document.querySelector(`.modules button[data-path='${arguments[0]}']`).focus()", path)


def test_modules_fold_by_keyboard_to_the_median_of_their_layers(page):
    from selenium.webdriver import Keys

    page.run("[...document.querySelectorAll('summary')].find(node => node.textContent === 'Modules').focus()")
    page.press(Keys.ENTER)
    page.until("return document.querySelector('.modules button')")
    # `model` is common to all, and `head` a layer.
    assert page.texts(".modules button") == ["▾ encoder 6 layers", "▾ 0 3 layers", "▾ 1 3 layers"]

    focus(page, "model.encoder.0")
    page.press(Keys.SPACE)
    page.settle()

    assert page.layers("run") == ["model.encoder.0.*", *NAMES[3:]]
    assert page.run("return document.activeElement.dataset.path") == "model.encoder.0"
    assert page.run("return document.activeElement.getAttribute('aria-expanded')") == "false"
    for step in (0, 1):
        said = page.point("run", 0, step, (5, 2))
        assert said.splitlines() == [
            "model.encoder.0.*",
            f"step {step}",
            f"Weight norm: {np.median(NORMS[:3, step]):g}",
        ]
    assert page.text(".heatmap .note") == "7 layers in 5 rows · 2 steps"


def test_a_link_keeps_folded_modules_and_the_outer_module_counts(page):
    page.open(folded='["model.encoder.1", "model.encoder"]')

    assert page.layers("run") == ["model.encoder.*", "model.head"]
    # A NaN of one layer is not lost in the median.
    assert page.point("run", 0, 1, (2, 2)).splitlines()[2] == "Weight norm: NaN"


def test_a_click_on_the_row_of_a_folded_module_unfolds_it(page):
    page.open(folded='["model.encoder.1"]')

    page.point("run", 3, 0, (5, 2), click=True)

    assert page.layers("run") == NAMES
    assert not page.run("return document.querySelector('.curve-panel').checkVisibility()")
