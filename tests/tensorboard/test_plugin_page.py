"""The page "Regularization" as a person sees it, in headless Chromium."""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_reg.tensorboard import events
from tests.event_files import layers as tensors_of_layers
from tests.event_files import scalars
from tests.tensorboard.axe import serious_violations
from tests.tensorboard.conftest import PICTURES, RUNS, Server
from tests.tensorboard.page import NAME, Page

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
STEPS = 14
LAYERS = 12_000
# Matplotlib's viridis, at every 32nd part.
VIRIDIS = (
    "440154 470d60 48186a 482374 472d7b 453781 424086 3e4989 3b528b 375b8d 33638d 2f6b8e 2c728e 297a8e 26828e 23898e "
    "21908c 1f978b 1f9f88 21a685 27ad81 31b57b 3ebc74 4dc26c 5cc863 6ece58 82d34d 95d840 aadc32 c0df25 d5e21a eae51a "
    "fde725"
)
NEGATIVE_INFINITY, NO_NUMBER = "\N{MINUS SIGN}\N{INFINITY}", "\N{EN DASH}"
LIGHT, DARK = "rgb(245, 245, 245)", "rgb(48, 48, 48)"


def odd_values() -> Mapping[str, list[float | None]]:
    """Return what a bad day logs for each layer."""
    values = [1.0 + step / 4 for step in range(STEPS)]
    return {
        "body.0": [*values[:5], *[math.nan] * 9],
        "body.1": [*values[:8], *[math.inf] * 6],
        "body.2": [*[None] * 7, *values[7:]],
        HOSTILE: [*values[:10], *[-math.inf] * 4],
    }


def write_odd(folder: Path) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in range(STEPS):
            now = {layer: values[step] for layer, values in odd_values().items()}
            summary = {f"reg.spectral_norm/{layer}": value for layer, value in now.items() if value is not None}
            events.write(writer, events.scalars(summary | {"reg/lipschitz_log10": 2.0}), step)


def wait_for(server: Server, run: str, metric: str, steps: int) -> None:
    def loaded() -> bool:
        described = {each["name"]: each["metrics"] for each in server.get(f"plugin/{NAME}/runs")["runs"]}
        return (
            metric in described.get(run, [])
            and server.get(f"plugin/{NAME}/heatmap", run=run, metric=metric)["total_steps"] >= steps
        )

    server.until(loaded)


@pytest.fixture(scope="module")
def folder(logs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for run in RUNS:
        shutil.copytree(logs / run, folder / run)
    write_odd(folder / "odd")
    return folder


@pytest.fixture(scope="module")
def page_server(folder) -> Iterator[Server]:
    server = Server(folder, "--reload_interval=1")
    try:
        server.wait_for(RUNS)
        wait_for(server, "odd", "spectral_norm", STEPS)
        yield server
    finally:
        server.close()


@pytest.fixture
def page(browser, page_server) -> Iterator[Page]:
    """Return the page in its default view, without errors so far; there must be none afterwards."""
    browser.get_log("browser")
    page = Page(browser, page_server.url)
    page.open()
    yield page
    assert not page.errors()


def colour(position: float) -> np.ndarray:
    anchors = np.array([[int(each[start : start + 2], 16) for start in (0, 2, 4)] for each in VIRIDIS.split()])
    place = round(position * 255) / 255 * 32
    return np.array([np.interp(place, range(33), anchors[:, channel]) for channel in range(3)])


def logged(folder: Path, metric: str) -> dict[str, dict[str, dict[int, float]]]:
    """Return run -> layer -> step -> value, from the event files."""
    start = f"reg.{metric}/"
    return {
        run.name: tensors_of_layers(run).get(metric, {})
        | {tag.removeprefix(start): values for tag, values in scalars(run).items() if tag.startswith(start)}
        for run in folder.iterdir()
    }


def finite(values) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def every_value(layers: Mapping[str, Mapping[int, float]]) -> list[float]:
    return finite(value for values in layers.values() for value in values.values())


def assert_colours(page: Page, run: str, layers: Mapping[str, Mapping[int, float]], low: float, high: float) -> None:
    """Check some finite cells of a run, corners among them, against a linear scale from `low` to `high`."""
    rows = page.layers(run)
    assert set(rows) == set(layers)
    steps = sorted(set().union(*layers.values()))
    for row, layer in enumerate(rows):
        for column in (0, 4, 9, STEPS - 1):
            value = layers[layer].get(steps[column], math.nan)
            if not math.isfinite(value):
                continue
            (seen,) = page.colours(run, row, column, (len(rows), STEPS))
            assert seen[3] == 255
            np.testing.assert_allclose(seen[:3], colour((value - low) / (high - low)), atol=1.01)


def test_the_tab_opens_from_tensorboards_bar_with_a_heatmap_for_each_run(browser, page_server):
    page = Page(browser, page_server.url)
    browser.get(page_server.url)
    page.until("return document.querySelector('[role=tab][aria-selected=true]')")
    find = "return [...document.querySelectorAll('[role=tab]')].find(tab => /regularization/i.test(tab.innerText))"
    page.until(find).click()
    page.enter()

    assert page.runs() == ["odd", "small", "sparse"]
    assert page.text("h1") == "Spectral norm of each layer"
    assert page.text(".state").startswith("Read at ")
    assert page.run("return getComputedStyle(document.querySelector('main')).display") == "flex"  # has its style
    assert not page.errors()
    browser.save_screenshot(PICTURES / "regularization_light.png")


@pytest.mark.parametrize("metric", ["spectral_norm", "weight_norm", "sparsity"])
def test_cells_have_the_colours_of_the_numbers_in_the_event_files(page, folder, metric):
    page.choose("metric", metric)

    runs = logged(folder, metric)
    shown = {run: layers for run, layers in runs.items() if layers}
    together = [value for layers in shown.values() for value in every_value(layers)]
    for run, layers in shown.items():
        # Shares are comparable only if all is from 0 to 1.
        low, high = (0, 1) if metric == "sparsity" else (min(together), max(together))
        assert_colours(page, run, layers, low, high)


def test_both_norms_of_a_convolution_name_their_images(page):
    page.open(metric="spectral_norm")
    assert "images of any size" in page.text(".meaning")
    page.choose("metric", "lipschitz")
    assert "the size of the images in a batch" in page.text(".meaning")
    page.choose("metric", "sparsity")
    assert not page.text(".meaning")


def test_each_run_can_have_its_own_colours(page, folder):
    page.choose("range", "run")

    for run, layers in logged(folder, "spectral_norm").items():
        assert_colours(page, run, layers, min(every_value(layers)), max(every_value(layers)))


def test_a_logarithmic_scale_spreads_small_numbers(page, folder):
    page.choose("scale", "log")

    runs = logged(folder, "spectral_norm")
    together = np.log([value for layers in runs.values() for value in every_value(layers)])
    logs = {
        layer: dict(zip(values, np.log(list(values.values())), strict=True)) for layer, values in runs["small"].items()
    }
    assert_colours(page, "small", logs, together.min(), together.max())


def test_the_colours_grow_lighter_all_the_way_for_everyone(page):
    shades = page.browser.execute_async_script(
        "const [done] = arguments;"
        "import(new URL('static/drawing/colours.js', document.baseURI)).then(module => done(module.shades))"
    )

    linear = np.array(shades) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    assert len(shades) == 256
    # CIE 1931; and without red-green vision, where red and green are one channel (Viénot et al. 1999).
    for weights in ([0.2126, 0.7152, 0.0722], [0.1124, 0.8876, 0.0]):
        lightness = 116 * np.cbrt(np.maximum(linear @ weights, 216 / 24389)) - 16
        assert np.diff(lightness).min() > -0.1  # the rounding of colours
        assert lightness[-1] - lightness[0] > 70


def test_nan_infinities_and_blanks_are_marked_each_in_its_own_way(page):
    shape = (len(odd_values()), STEPS)
    rows = page.layers("odd")
    cell = {layer: page.colours("odd", rows.index(layer), STEPS - 1, shape) for layer in odd_values()}
    blank = page.colours("odd", rows.index("body.2"), 0, shape)

    on_the_map = {tuple(map(round, colour(position))) for position in np.linspace(0, 1, 256)}
    assert blank == {(0, 0, 0, 0)}
    kinds = [frozenset(cell[layer]) for layer in ("body.0", "body.1", HOSTILE)]
    assert len(set(kinds)) == 3
    assert all(len(kind) > 1 for kind in kinds)  # hatched
    assert not any({seen[:3] for seen in kind} & on_the_map for kind in kinds)
    assert page.texts(".key") == ["NaN", "\N{INFINITY}", NEGATIVE_INFINITY, "nothing logged"]


def test_the_tooltip_says_layer_step_and_value(page, folder):
    layers = logged(folder, "spectral_norm")["small"]
    rows = page.layers("small")
    for row, step in [(0, 0), (1, 9), (len(rows) - 1, STEPS - 1)]:
        said = page.point("small", row, step, (len(rows), STEPS)).splitlines()

        assert said[:2] == [rows[row], f"step {step}"]
        assert said[2].startswith("Spectral norm: ")
        assert float(said[2].split()[-1]) == pytest.approx(layers[rows[row]][step], rel=1e-5)

    odd = page.layers("odd")
    assert page.point("odd", odd.index("body.0"), 9, (4, STEPS)).splitlines()[1:] == ["step 9", "Spectral norm: NaN"]
    assert page.point("odd", odd.index(HOSTILE), 13, (4, STEPS)).endswith(NEGATIVE_INFINITY)
    assert page.point("odd", odd.index("body.2"), 0, (4, STEPS)).endswith("nothing logged")


def test_a_layer_with_markup_for_a_name_is_text(page):
    row = page.layers("odd").index(HOSTILE)
    page.point("odd", row, 3, (4, STEPS), click=True)

    assert page.text(".tooltip .strong") == HOSTILE
    assert page.text(".curve-panel h2 .strong") == HOSTILE
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.run("return document.title") == "Regularization"


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("BODY", {"body.0", "body.1", "body.2"}),
        ("*.1", {"body.1"}),
        ("*.?", {"body.0", "body.1", "body.2"}),  # and not the name that has a dot elsewhere
        (r"/\.[02]$/", {"body.0", "body.2"}),
    ],
)
def test_layers_are_filtered_by_a_part_a_glob_or_a_regular_expression(page, pattern, left):
    page.type("#filter", pattern)

    assert set(page.layers("odd")) == left
    assert not page.text("#filter-error")
    assert page.text('.heatmap[data-run="odd"] .note').startswith(f"{len(left)} of 4 layers")


def test_a_bad_pattern_is_reported_and_changes_no_layers(page):
    page.type("#filter", "/body(/")

    assert page.text("#filter-error").startswith("Not a regular expression: ")
    assert len(page.layers("odd")) == 4

    page.type("#filter", "no such layer")

    assert not page.text("#filter-error")
    assert page.text('.heatmap[data-run="odd"] .message') == "No layer of this run matches no such layer"


def test_runs_are_searched_and_chosen(page):
    page.type(".runs .search", "SPAR")

    assert page.texts(".run") == ["sparse"]

    page.click('.run input[value="sparse"]')
    page.type(".runs .search", "")

    assert page.runs() == ["odd", "small"]
    assert page.texts(".summary tbody th") == ["odd", "small"]


def test_the_table_holds_the_last_numbers_and_sorts(page, folder):
    def numbers(column: int) -> dict[str, str]:
        return dict(zip(page.texts(".summary tbody th"), page.texts(f".summary td:nth-child({column})"), strict=True))

    last = {run: {tag: values[max(values)] for tag, values in scalars(folder / run).items()} for run in RUNS}
    shown = numbers(2)
    for run in RUNS:
        assert float(shown[run].removesuffix(" %")) == pytest.approx(100 * last[run]["reg/sparsity"], rel=5e-3)
        assert float(numbers(4)[run]) == pytest.approx(last[run]["reg/penalty_ratio"], rel=5e-3)
    assert shown["odd"] == NO_NUMBER
    assert numbers(3)["odd"] == "100"  # of which the logarithm was written
    assert float(numbers(5)["small"]) == pytest.approx(last["small"]["reg/dropout"], rel=5e-3)

    for order in (["sparse", "small", "odd"], ["small", "sparse", "odd"]):
        page.click(".summary th:nth-child(2) button")
        assert page.texts(".summary tbody th") == order
    page.click(".summary th:nth-child(1) button")
    assert page.texts(".summary tbody th") == ["odd", "small", "sparse"]


def test_a_click_on_a_row_shows_the_layers_curve_over_all_runs(page, folder):
    runs = {run: layers for run, layers in logged(folder, "spectral_norm").items() if "network.head" in layers}
    page.point("small", page.layers("small").index("network.head"), 3, (3, STEPS), click=True)
    page.until("return document.querySelectorAll('.curve g').length")

    assert page.text(".curve-panel h2") == "network.head spectral norm over all runs"
    names = page.run("return [...document.querySelectorAll('.curve g')].map(line => line.dataset.run)")
    assert sorted(names) == sorted(runs) == ["small", "sparse"]
    for run, layers in runs.items():
        line = page.browser.find_element("css selector", f".curve g[data-run='{run}'] path").get_attribute("d")
        heights = [float(point.split()[1].removesuffix("h0")) for point in line[1:].split("L")]
        values = [layers["network.head"][step] for step in range(STEPS)]
        # A line of the picture is one of the numbers, upside down.
        assert np.corrcoef(heights, values)[0, 1] == pytest.approx(-1, abs=1e-3)
    page.browser.save_screenshot(PICTURES / "regularization_curve.png")

    page.press("\ue00c")  # Escape

    page.until("return document.querySelector('.curve-panel').hidden")


def test_the_curve_of_a_layer_is_gone_as_soon_as_another_is_chosen(page):
    page.click(".status button:nth-of-type(2)")  # Pause: the page asks for nothing by itself
    page.point("small", 0, 3, (3, STEPS), click=True)
    page.until("return document.querySelectorAll('.curve g').length")
    page.run("window.fetch = () => new Promise(() => {})")  # a server that takes its time
    page.point("small", 1, 3, (3, STEPS), click=True)

    assert page.text(".curve-panel h2 .strong") == page.layers("small")[1]
    assert not page.run("return document.querySelectorAll('.curve g, .curve-names li').length")
    page.load(page.address())


def test_a_link_reproduces_the_view(page):
    page.choose("metric", "weight_norm")
    page.choose("scale", "log")
    page.choose("range", "run")
    page.type("#filter", "network.*")
    page.click('.run input[value="odd"]')
    page.click(".summary th:nth-child(2) button")
    page.point("small", 2, 3, (3, STEPS), click=True)
    layer = page.text(".curve-panel h2 .strong")
    link = page.link()
    page.load(link)

    assert f"#{NAME}&" in link
    assert page.text("h1") == "Weight norm of each layer"
    checked = "return [...document.querySelectorAll('input:checked')].map(input => input.value)"
    assert page.run(checked) == ["weight_norm", "value", "log", "run", "step", "small", "sparse"]
    assert page.run("return document.querySelector('#filter').value") == "network.*"
    assert page.runs() == ["small", "sparse"]
    assert page.texts(".summary tbody th") == ["sparse", "small"]
    assert page.text(".curve-panel h2 .strong") == layer


def test_the_button_copies_the_link(page):
    copied = "window.copied = null; navigator.clipboard.writeText = async text => { window.copied = text; }"
    page.run(copied)
    page.choose("scale", "log")
    page.click(".status button:nth-of-type(3)")

    assert page.until("return window.copied") == page.link()
    assert page.text(".status button:nth-of-type(3)") == "Copied"


def test_a_broken_link_shows_the_default_view(page):
    page.open(metric="none such", scale="cubic", runs="[1", layer="gone", sort="height")

    assert page.text("h1") == "Spectral norm of each layer"
    assert page.runs() == ["odd", "small", "sparse"]
    assert "No run has this layer." in page.until("return document.querySelector('.curve-panel .message').textContent")
    assert page.errors()  # that the layer was not found
    page.open()


def test_the_arrow_keys_move_over_the_cells_and_enter_opens_the_curve(page, folder):
    page.load(page.address())  # anew: no click has set the cursor
    layers = logged(folder, "spectral_norm")["small"]
    rows = page.layers("small")
    page.press("\ue004")  # Tab: from here on, the keyboard has the focus
    page.run("document.querySelector('.heatmap[data-run=\"small\"] .grid').focus()")
    page.press("\ue013", "\ue015", "\ue012", "\ue012")  # up, down, left, left
    spoken = page.text("#spoken").split(", ")

    assert spoken[:2] == [rows[1], f"step {STEPS - 3}"]
    assert float(spoken[2]) == pytest.approx(layers[rows[1]][STEPS - 3], rel=1e-5)
    assert page.run("return document.querySelector('.heatmap[data-run=\"small\"] .cell-mark').hidden") is False
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"

    page.press("\ue007")  # Enter
    page.settle()

    assert page.text(".curve-panel h2 .strong") == rows[1]


def test_everything_that_can_be_clicked_has_a_name_and_a_place_in_the_tab_order(page):
    unnamed = page.run(
        """
        const named = node =>
          node.textContent.trim() || node.getAttribute('aria-label') || node.labels?.[0]?.textContent;
        return [...document.querySelectorAll('button, input, [tabindex]')]
          .filter(node => !named(node) || node.tabIndex < 0).map(node => node.outerHTML);
        """
    )

    assert unnamed == []


def test_new_steps_appear_by_themselves_every_half_minute(page, folder):
    # The page asks the browser for half a minute; the browser of this test has shorter ones.
    hurry = (
        "const later = window.setTimeout; window.asked = [];"
        "window.setTimeout = (call, wait, ...rest) => {"
        " if (wait >= 1000) window.asked.push(wait); return later(call, wait === 30000 ? 500 : wait, ...rest); };"
    )
    script = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hurry})
    try:
        page.load(page.address())
        note = '.heatmap[data-run="sparse"] .note'
        assert page.text(note).endswith(" · 14 steps")

        with SummaryWriter(str(folder / "sparse")) as writer:
            events.write(writer, events.scalars({"reg.spectral_norm/network.head": 99.0}), STEPS)

        page.until("return document.querySelector(arguments[0]).textContent.endsWith(' · 15 steps')", note)
        assert set(page.run("return window.asked")) == {30000}
        page.settle()
        rows = page.layers("sparse")
        (seen,) = page.colours("sparse", rows.index("network.head"), STEPS, (3, STEPS + 1))
        np.testing.assert_allclose(seen[:3], colour(1), atol=1.01)  # the largest of all by now

        page.click(".status button:nth-of-type(2)")
        assert page.text(".state").startswith("Paused")
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    page.load(page.address())


def test_an_error_is_shown_and_goes_away_again(page):
    page.run("window.kept = window.fetch; window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.click(".status button:nth-of-type(1)")

    assert page.text(".state") == "TensorBoard does not answer. Trying again every 30 s."
    assert page.runs() == ["odd", "small", "sparse"]  # what was read stays

    page.run("window.fetch = window.kept")
    page.click(".status button:nth-of-type(1)")

    assert page.text(".state").startswith("Read at ")


def test_axe_finds_nothing_serious(page):
    page.load(page.address(layer="network.head", folded="network"))

    assert serious_violations(page.browser) == []


def test_the_page_is_dark_when_tensorboard_is(page):
    background = "return getComputedStyle(document.body).backgroundColor"
    assert page.run(background) == LIGHT
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        page.load(page.address(layer="network.head"))
        page.until(f"return getComputedStyle(document.body).backgroundColor === '{DARK}'")
        page.browser.save_screenshot(PICTURES / "regularization_dark.png")
        assert serious_violations(page.browser) == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.load(page.address())
    assert page.run(background) == LIGHT


def test_a_narrow_window_has_everything_and_no_overflow(page):
    size = {"width": 500, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.load(page.address(layer="network.head"))

        assert page.overflow() == 0
        assert page.run("return document.querySelector('.side').open") is False
        page.browser.save_screenshot(PICTURES / "regularization_narrow.png")
        page.click(".side > summary")
        page.choose("metric", "weight_norm")
        assert page.text("h1") == "Weight norm of each layer"
        assert page.overflow() == 0
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.load(page.address())


def test_without_numbers_the_page_says_what_to_do(browser, tmp_path):
    server = Server(tmp_path)
    try:
        page = Page(browser, server.url)
        page.load(page.address())

        assert "RegularizationMonitor()" in page.text(".advice code")
        assert serious_violations(browser) == []
        assert not page.errors()
    finally:
        server.close()


def test_a_half_written_file_and_more_than_ten_thousand_layers_are_shown(browser, folder, tmp_path):
    (whole,) = (folder / "small").glob("events.out.tfevents.*")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / whole.name).write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with SummaryWriter(str(tmp_path / "many")) as writer:
        for step in range(3):
            values = {f"reg.spectral_norm/blocks.{layer}": layer + step for layer in range(LAYERS)}
            events.write(writer, events.scalars(values), step)
    server = Server(tmp_path)
    try:
        wait_for(server, "many", "spectral_norm", 3)
        wait_for(server, "half", "spectral_norm", 1)
        page = Page(browser, server.url)
        page.load(page.address())

        assert page.runs() == ["half", "many"]
        assert page.text('.heatmap[data-run="many"] .note') == f"{LAYERS} layers · 3 steps"
        np.testing.assert_allclose(
            next(iter(page.colours("many", LAYERS - 1, 2, (LAYERS, 3))))[:3], colour(1), atol=1.01
        )
        height = page.run("return document.querySelector('.heatmap[data-run=\"many\"] canvas').height")
        assert height <= 32_767 / 2  # Firefox draws nothing on a higher one, and screens can be twice as fine
        page.type("#filter", "blocks.77")
        assert page.text('.heatmap[data-run="many"] .note') == f"111 of {LAYERS} layers · 3 steps"
        assert not page.errors()
    finally:
        server.close()
