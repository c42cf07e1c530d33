"""The package as it is installed: TensorBoard finds its page by itself."""

import subprocess
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.event_files import layers
from tests.installed import ROOT, build, environment
from tests.tensorboard.conftest import RUNS, Server

STATIC = "lightning_reg/tensorboard/plugin/static"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))[0]


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """Return the Python of a fresh environment, with the wheel and what it requires."""
    return environment(tmp_path_factory.mktemp("venv"), wheel)


def test_the_wheel_holds_every_file_of_the_page(wheel):
    files = {file.relative_to(ROOT).as_posix() for file in (ROOT / STATIC).rglob("*") if file.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith(STATIC)}

    assert {f"{STATIC}/index.js", f"{STATIC}/server/api.js"} <= packed
    assert packed == files


def test_the_wheel_holds_the_page_that_is_one_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert "lightning_reg/tensorboard/heatmap.html" in archive.namelist()


def test_a_fresh_environment_has_the_tab_the_page_and_the_numbers(python, wheel, logs):
    # -E: whatever PYTHONPATH is here.
    where = [str(python), "-E", "-c", "import lightning_reg; print(lightning_reg.__file__)"]
    installed = subprocess.run(where, check=True, capture_output=True, text=True, cwd=logs).stdout
    assert installed.startswith(str(python.parent.parent))

    server = Server(logs, python=str(python), environment={"PYTHONPATH": ""})
    try:
        server.wait_for(RUNS)
        assert server.get("plugins_listing")["lightning_reg_page"]["enabled"]
        for file in (file for file in (ROOT / STATIC).rglob("*") if file.is_file()):
            path = file.relative_to(ROOT / STATIC).as_posix()
            with urlopen(f"{server.url}/data/plugin/lightning_reg_page/static/{path}") as answer:
                assert answer.read() == file.read_bytes()
        heatmap = server.get("plugin/lightning_reg_page/heatmap", run="small", metric="weight_norm")
    finally:
        server.close()

    assert heatmap["values"][-1] == list(layers(logs / "small")["weight_norm"]["network.head"].values())
