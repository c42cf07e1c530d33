"""The package as its users import it."""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import lightning_reg
from lightning_reg import callbacks, ensemble, functional, metrics, schedules, tensorboard

ROOMS = [lightning_reg, callbacks, ensemble, functional, metrics, schedules, tensorboard]
CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"


def below(room):
    """Return the path to a room from the package, to be put before a name."""
    return f"{room.__name__}.".removeprefix("lightning_reg.")


PUBLIC = [f"{below(room)}{name}" for room in ROOMS for name in room.__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_change_only_on_purpose(name):
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", CHANGELOG.read_text())


def test_names_that_rooms_list_are_public_in_the_package():
    listed = {*callbacks.__all__, *schedules.__all__} - {"Schedule", "resolve"}

    assert listed <= set(lightning_reg.__all__)
    others = {"Select", "register_layer", "register_lipschitz_rule", "register_step_size"}
    assert set(lightning_reg.__all__) - listed == others
    for room in ROOMS:
        assert room.__all__ == sorted(set(room.__all__))
        assert not any(inspect.ismodule(getattr(room, name)) for name in room.__all__)


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith(("callbacks.", "schedules."))])
def test_a_public_name_shows_how_to_use_it(name):
    item: Any = lightning_reg
    for part in name.split("."):
        item = getattr(item, part)

    assert ">>> " in inspect.getdoc(item).partition("Example:\n")[2]


def test_the_package_tells_type_checkers_that_it_is_typed():
    assert files(lightning_reg).joinpath("py.typed").is_file()


def run_python(code: str) -> str:
    """Return what a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["lightning_reg", "lightning_reg.tensorboard"])
def test_importing_the_package_waits_for_neither_torch_nor_lightning(module):
    assert run_python(f"import sys, {module}; print({{'torch', 'lightning'}} & set(sys.modules))") == "set()"


def names_for_type_checkers(room):
    """Return what type checkers take for public names of a room: `import X as X`, and `*` from where `__all__` is."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(room))):
        if isinstance(node, ast.ImportFrom):
            source = import_module(node.module)
            for alias in node.names:
                if alias.name == "*":
                    listed = re.search(r"^__all__ = (\[.*?\])$", inspect.getsource(source), re.MULTILINE | re.DOTALL)
                    names |= set(ast.literal_eval(listed[1])) if listed else names_for_type_checkers(source)
                elif alias.asname == alias.name:
                    names.add(alias.name)
    return names


@pytest.mark.parametrize("room", [callbacks, functional, schedules], ids=lambda room: room.__name__)
def test_a_room_lists_for_type_checkers_what_it_lists_when_it_runs(room):
    assert names_for_type_checkers(room) == set(room.__all__)


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    assert names_for_type_checkers(lightning_reg) == {*lightning_reg.__all__, "Schedule", "resolve"}


def test_modules_are_attributes_of_the_package_before_they_are_imported():
    # In an order in which none has been imported by the one before.
    modules = ["tensorboard", "schedules", "selection", "functional", "ensemble"]
    modules += ["metrics", "callbacks"]
    names = ", ".join(f"lightning_reg.{module}.__name__" for module in modules)
    assert run_python(f"import lightning_reg; print({names})").split() == [f"lightning_reg.{name}" for name in modules]


@pytest.fixture(scope="module")
def fresh():
    """Return what a fresh Python lists in the package and gets by a star import, and how it tells a misspelt name."""
    code = "import lightning_reg; print(*dir(lightning_reg)); given = {}; exec('from lightning_reg import *', given)"
    code += "; print(*(name for name in given if not name.startswith('_'))); lightning_reg.L1Penalt"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_modules_and_names_are_listed_before_they_are_imported(fresh):
    listed = fresh.stdout.splitlines()[0].split()

    assert {"tensorboard", "schedules", "selection", "functional", "ensemble", "metrics", "callbacks"} <= set(listed)
    assert set(lightning_reg.__all__) <= set(listed)


def test_a_star_import_gives_all_public_names(fresh):
    assert sorted(fresh.stdout.splitlines()[1].split()) == sorted(lightning_reg.__all__)


def test_a_name_that_does_not_exist_is_an_error_that_knows_a_near_one(fresh):
    with pytest.raises(AttributeError, match="module 'lightning_reg' has no attribute 'L1Penalt'"):
        lightning_reg.L1Penalt  # noqa: B018
    assert "Did you mean: 'L1Penalty'?" in fresh.stderr
