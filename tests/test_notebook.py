"""The tour runs from top to bottom, and what it shows is stored with it."""

import ast
import json
import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


@pytest.fixture
def _as_before():
    before = matplotlib.get_backend()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    matplotlib.use("agg")
    yield
    logger.setLevel(level)
    pyplot.close("all")
    matplotlib.use(before)


def shown(cell, given):
    """Run a cell; return the value of the expression in its last line, which a notebook shows."""
    *body, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), given)
    return last and eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), given)


@pytest.mark.usefixtures("_as_before")
@pytest.mark.one_package("examples are written for `lightning`")
def test_the_tour_shows_a_plan_numbers_a_heatmap_and_a_path(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    given = {}

    with caplog.at_level("INFO"):
        values = [shown(cell.replace("EPOCHS = 20", "EPOCHS = 1"), given) for cell in CODE]

    assert given["EPOCHS"] == 1
    assert "Regularization plan" in caplog.text
    (numbers,) = (value for value in values if isinstance(value, dict))
    assert {"reg/penalty/elastic_net", "reg/weight_norm", "val/accuracy"} <= numbers.keys()
    for picture in (pictures := [value for value in values if isinstance(value, Image.Image)]):
        with picture:
            assert min(picture.size) > 10
    assert len(pictures) == 2
    result = given["path"].result
    assert len(result.strengths) == len(result.scores) == 5
    np.testing.assert_allclose(given["axes"].images[0].get_array()[0, 0], given["pixels"][0, 0])


def test_what_the_tour_shows_is_stored_with_it_without_errors():
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]

    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "Regularization plan" in "".join("".join(output.get("text", "")) for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert NOTEBOOK.stat().st_size < 300_000
