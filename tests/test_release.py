"""What is published: a wheel and its sources, and what they do in an environment without extras."""

import re
import runpy
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.installed import GIVEN, ROOT, build, environment, run

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
EXTRAS = {"jsonargparse", "matplotlib", "sklearn"}
TESTS_NEED = ("hypothesis", "pytest", "scipy")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    return str(environment(tmp_path_factory.mktemp("venv"), built[0], *TESTS_NEED))


@pytest.fixture(scope="module")
def sources(built, tmp_path_factory):
    """Return the folder of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(built[1]) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


def test_the_sources_hold_every_file_and_build_the_same_wheel(built, sources, tmp_path):
    tracked = {name for name in run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / name).exists()}
    packed = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    again, _ = build(tmp_path, sources)

    assert tracked <= packed
    with zipfile.ZipFile(built[0]) as one, zipfile.ZipFile(again) as other:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
        (described,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))

    assert tops == {"lightning_reg", f"lightning_reg-{VERSION}.dist-info"}
    assert f"Version: {VERSION}" in described
    assert "License-Expression: Apache-2.0" in described


def test_the_quickstart_runs_without_extras(python, tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    hidden = f"import importlib.util as u; print([name for name in {sorted(EXTRAS)} if u.find_spec(name)])"
    where = "import lightning_reg; print(lightning_reg.__file__)"

    # -E, -P: whatever PYTHONPATH is here, and wherever this is run.
    assert run(python, "-E", "-P", "-c", hidden).strip() == "[]"
    assert run(python, "-E", "-P", "-c", where).startswith(str(Path(python).parent.parent))
    run(python, "-E", "-P", "-c", code, cwd=tmp_path)

    assert list(tmp_path.glob("lightning_logs/version_0/events.out.tfevents.*"))


def test_what_is_installed_is_printed(python):
    printed = run(python, "-E", "-P", "-m", "lightning_reg")

    rows = dict(re.split(r"  +", line) for line in printed.splitlines())
    assert rows["lightning_reg"] == VERSION
    assert rows["torch"] == metadata.version("torch")
    assert rows["page in TensorBoard"] == "registered"
    assert {rows[name] for name in rows if "extra: examples" in name} == {"not installed"}


def test_code_that_is_not_installed_says_so(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)

    with pytest.raises(SystemExit, match=r"not installed.*pip install -e \."):
        runpy.run_module("lightning_reg", run_name="__main__")


def test_the_maths_is_tested_without_extras(python, sources):
    # The tests of the sources, and the package that is installed.
    (sources / "lightning_reg").rename(sources / "not_this_one")
    files = (sources / "tests" / "functional").rglob("test_*.py")
    able = [
        str(file) for file in files if "import sklearn" not in (code := file.read_text()) and "from sklearn" not in code
    ]
    some = able if GIVEN else ["tests/functional/penalties/test_counts.py"]

    done = run(python, "-E", "-m", "pytest", "-q", "-p", "no:cacheprovider", *some, cwd=sources)

    assert re.search(r"\d+ passed", done)
