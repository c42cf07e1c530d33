"""The page that is one file, in headless Chromium."""

import numpy as np
import pytest

from lightning_reg.tensorboard.heatmap import heatmap
from tests.tensorboard.axe import serious_violations

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">DATA"
LAYERS = ["body.0", HOSTILE, "head"]
STEPS = [0, 10, 50]
# The ends and the middle of Matplotlib's viridis.
LOW, MIDDLE, HIGH = [68, 1, 84, 255], [33, 145, 140, 255], [253, 231, 37, 255]
COLOUR = """
const canvas = document.getElementById('cells');
const [row, share] = arguments;
const rows = document.querySelectorAll('#names li').length;
const place = [share * canvas.width, (row + 0.5) / rows * canvas.height].map(Math.floor);
return [...canvas.getContext('2d').getImageData(...place, 1, 1).data];
"""


@pytest.fixture
def page(browser, tmp_path):
    norms = np.array([[0.0, 2.0, 4.0], [0.0, np.nan, np.inf], [1.5, 1.5, 4.0]])
    shares = np.array([[0.0, 0.0, 0.0], [0.25, 0.5, 0.5], [1.0, 1.0, 1.0]])
    file = tmp_path / "reg.html"
    file.write_text(heatmap({"weight_norm": norms, "sparsity": shares}, LAYERS, STEPS), "utf-8")
    browser.switch_to.default_content()
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(file.as_uri())
    return browser


def choose(page, metric):
    page.find_element("css selector", f"#metric option[value={metric}]").click()


def reading(page):
    return page.find_element("id", "reading").text


def test_rows_are_layers_and_columns_reach_to_the_next_step(page):
    # Of steps 0, 10 and 50, the last as wide as the one before: edges at 0, 1/9, 5/9.
    assert [page.execute_script(COLOUR, 0, share) for share in (0.05, 0.2, 0.5, 0.7)] == [LOW, MIDDLE, MIDDLE, HIGH]
    strange = page.execute_script(COLOUR, 1, 0.3)
    assert strange == page.execute_script(COLOUR, 1, 0.9)
    assert strange not in [LOW, MIDDLE, HIGH]
    assert page.find_element("id", "range").text.split() == ["0", "4"]

    choose(page, "sparsity")

    assert [page.execute_script(COLOUR, row, 0.9) for row in range(3)] == [LOW, MIDDLE, HIGH]
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def test_one_outlier_does_not_use_up_the_colours_and_is_reported(browser, tmp_path):
    file = tmp_path / "reg.html"
    values = np.append(np.linspace(1, 2, 99), 1e6).reshape(100, 1)
    file.write_text(heatmap({"weight_norm": values}, list(map(str, range(100))), [0]), "utf-8")
    browser.switch_to.default_content()
    browser.get(file.as_uri())

    low, high = np.quantile(values, [0.02, 0.98], method="nearest")
    assert browser.find_element("id", "range").text.split() == ["≤", f"{low:.4g}", "≥", f"{high:.4g}"]
    colours = {tuple(browser.execute_script(COLOUR, row, 0.5)) for row in range(0, 99, 7)}
    assert len(colours) == 15


def test_the_cell_that_keys_lead_to_is_in_sight(browser, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    file = tmp_path / "reg.html"
    file.write_text(heatmap({"weight_norm": np.ones((400, 1))}, list(map(str, range(400))), [0]), "utf-8")
    browser.switch_to.default_content()
    browser.get(file.as_uri())
    for keys in (Keys.TAB * 3 + Keys.ARROW_DOWN, Keys.ARROW_DOWN * 200, Keys.ARROW_UP * 200):
        ActionChains(browser).send_keys(keys).perform()

        cell, header = (
            browser.execute_script("return document.querySelector(arguments[0]).getBoundingClientRect()", selector)
            for selector in ("#mark", "header")
        )
        assert header["bottom"] <= cell["top"] <= cell["bottom"] <= browser.execute_script("return innerHeight")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, theme):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    try:
        assert serious_violations(page) == []
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_names_are_text_and_choose_rows(page):
    assert page.execute_script("return [...document.querySelectorAll('#names li')].map(each => each.title)") == LAYERS
    assert page.title == "Regularization"

    page.find_element("id", "filter").send_keys("HEAD")

    assert [each.text for each in page.find_elements("css selector", "#names li")] == ["head"]
    assert page.execute_script(COLOUR, 0, 0.9) == HIGH


def test_every_value_is_read_by_keys_and_by_pointer(page):
    from selenium.webdriver import ActionChains, Keys

    ActionChains(page).send_keys(Keys.TAB * 3, Keys.ARROW_DOWN).perform()
    assert reading(page) == "body.0, step 50: 4"
    ActionChains(page).send_keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN).perform()
    assert reading(page) == f"{HOSTILE}, step 10: NaN"
    choose(page, "sparsity")
    assert reading(page) == f"{HOSTILE}, step 10: 0.5"

    canvas = page.find_element("id", "cells")
    right, down = canvas.size["width"] * 0.45, canvas.size["height"] / 3
    ActionChains(page, duration=0).move_to_element_with_offset(canvas, int(right), int(down)).perform()

    assert reading(page) == "head, step 50: 1"


@pytest.mark.parametrize("metrics", [3, 5])
def test_two_hundred_layers_stay_below_a_megabyte_with_the_first_and_the_last_step(metrics):
    layers = [f"model.encoder.blocks.{index}.attention.self.query_projection" for index in range(200)]
    values = np.random.default_rng(0).normal(size=(200, 400))

    page = heatmap({f"metric_{index}": values for index in range(metrics)}, layers, list(range(400)))

    assert len(page.encode()) < 1_000_000
    assert '"steps": [0, ' in page
    assert ", 399]" in page
