"""Which strength is best, and which layer is odd: what the page says of a sweep, in headless Chromium."""

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_reg.tensorboard import events, tags
from lightning_reg.tensorboard.hparams import hyperparameters
from tests.tensorboard.axe import serious_violations
from tests.tensorboard.conftest import Server
from tests.tensorboard.page import NAME, Page

STRENGTHS = (0.0, 0.001, 0.01, 0.1)
NAMES = [f"encoder.{index}.query" for index in range(6)]


def loss(strength, seed, step):
    """Return a loss that is least at 0.01, at the step before the last."""
    return 0.5 + abs(strength - 0.01) + 0.01 * seed + abs(step - 30) / 100


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    for strength in STRENGTHS:
        for seed in (0, 1):
            run = f"l2={strength:g}_seed={seed}"
            with SummaryWriter(str(folder / run)) as writer:
                settings = {"seed": seed} | ({"l2.strength": strength} if strength else {})
                events.write(writer, hyperparameters(settings), 0)
                for step in range(0, 50, 10):
                    numbers = {"val/loss": loss(strength, seed, step), "reg/weight_norm": 3 - 10 * strength}
                    events.write(writer, events.scalars(numbers), step)
                    norms = [1 + index / 10 + (step if index == 3 else 0) for index in range(6)]
                    tag = tags.values_of("spectral_norm", NAMES)
                    events.write(writer, events.layer_values(tag, norms, NAMES if step == 0 else None), step)
    server = Server(folder)
    try:

        def loaded():
            runs = server.get(f"plugin/{NAME}/runs")["runs"]
            return len(runs) == 8 and all(run["version"].endswith("-40") and run["settings"] for run in runs)

        server.until(loaded)
        page = Page(browser, server.url)
        page.load(page.address())
        page.until("return document.querySelector('.best-line').textContent")
        yield page
        assert not page.errors()
    finally:
        server.close()


def test_the_best_strength_has_the_least_loss_over_the_seeds(page):
    said = page.text(".best-line")

    best = [loss(0.01, seed, 30) for seed in (0, 1)]
    assert said.startswith(
        f"Best: l2.strength = 0.01, val/loss {sum(best) / 2:g} (mean of 2 runs, {best[0]:g} to {best[1]:g})"
    )
    assert "weight norm 2.9" in said
    points = page.run("return [...document.querySelectorAll('.main .point')].map(point => +point.dataset.x)")
    assert points == list(STRENGTHS)  # a run without the penalty is one of strength 0


def test_runs_are_in_the_order_of_their_strengths(page):
    assert page.runs() == [f"l2={strength:g}_seed={seed}" for strength in STRENGTHS for seed in (0, 1)]


def test_the_table_has_the_columns_in_which_runs_differ_and_others_on_request(page):
    assert page.texts(".summary thead th") == ["Run", "val/loss", "l2.strength"]
    page.run("document.querySelector('.columns').open = true")
    page.until("return document.querySelectorAll('.column').length")
    page.click('.column[value="weight_norm"]')

    assert page.texts(".summary thead th") == ["Run", "val/loss", "l2.strength", "Weight norm"]
    norms = [float(text) for text in page.texts(".summary td:nth-child(4)")]
    assert norms == pytest.approx([3 - 10 * strength for strength in STRENGTHS for _ in (0, 1)])


def test_the_layer_that_grows_alone_is_odd_and_its_curve_a_click_away(page):
    assert page.texts(".odd-list button") == ["encoder.3.query"]
    page.click(".odd-list button")

    assert page.text(".curve-panel h2 .strong") == "encoder.3.query"


def test_labels_omit_the_common_parts_and_keep_the_numbers(page):
    labels = page.run(
        "return [...document.querySelector('.heatmap').querySelectorAll('.layer')].map(n => n.textContent)"
    )

    assert labels == [f"{index}.query" for index in range(6)]


def test_the_change_since_the_first_step_is_zero_for_all_layers_but_one(page):
    page.choose("mode", "change")

    shape = (6, 5)
    middle = {(247, 247, 247, 255)}
    run = page.runs()[0]
    assert page.colours(run, 0, 4, shape) == middle
    assert page.colours(run, 3, 0, shape) == middle
    assert page.colours(run, 3, 4, shape) == {(178, 24, 43, 255)}
    page.choose("mode", "value")


TITLES = """
const [names, done] = arguments;
const style = document.querySelector("link[href$='style.css']");
import(new URL("names/titles.js", style.href)).then(({ titlesOf }) => done(titlesOf(names)));
"""


def titles(page, names):
    return page.browser.execute_async_script(TITLES, names)


def test_titles_of_long_runs_omit_the_common_parts(page):
    start, end = "experiments/2026-11-27/resnet50_imagenet_", "_bf16_compiled/version_0"
    settings = [f"l2={strength:g}_seed={seed}" for strength in STRENGTHS for seed in (0, 1)]

    assert titles(page, [start + each + end for each in settings]) == [f"…{each}…" for each in settings]


def test_no_two_titles_are_alike_and_each_has_room(page):
    middles = [f"{number:03}" + "-" * 50 for number in range(20)]
    names = ["a" * 40 + middle + "b" * 40 for middle in middles] + ["short"]

    short = titles(page, names)

    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= 34
    assert short[-1] == "short"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_sweep(page, theme):
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    try:
        page.load(page.address(layer="encoder.3.query"))
        page.until("return document.querySelector('.best-line').textContent")
        page.until("return document.documentElement.dataset.theme === arguments[0]", theme)
        page.click(".columns > summary")

        assert serious_violations(page.browser) == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
