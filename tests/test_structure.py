"""The rules of the house that import-linter cannot hold: names, and what the `__init__.py` of a room may do."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import WITHOUT_TRAINER

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_reg"
FACES = {"lightning_reg", "callbacks", "ensemble", "functional", "metrics", "schedules", "selection", "tensorboard"}
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [path for path in FILES if path.name == "__init__.py"]


def relative(path):
    return str(path.relative_to(PACKAGE))


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """Yield the modules that a file imports from the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_with_an_underscore_is_imported_in_its_own_folder_only(path):
    room = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    for module in imported(path):
        owner, _, name = module.rpartition(".")
        is_private_file = name.startswith("_") and (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()
        # The private files of the ground floor are every storey's.
        assert not is_private_file or owner in {room, "lightning_reg"}, module


@pytest.mark.parametrize("path", ROOMS, ids=relative)
def test_only_public_faces_do_anything_and_the_others_describe_the_room(path):
    if path.parent.name in FACES and path.parent.parent in {PACKAGE, ROOT}:
        return
    docstring, *rest = ast.parse(path.read_text()).body

    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value.value, str)
    # Rules of Lipschitz bounds are registered by importing their files.
    assert not rest or (path.parent.name == "rules" and all(isinstance(node, ast.Import) for node in rest))


INNER = [path for path in ROOMS if path.parent.parent.name in {"callbacks", "functional"}]


@pytest.mark.parametrize("path", INNER, ids=relative)
def test_a_room_names_all_its_files(path):
    named = set(re.findall(r"`(\w+)`", ast.get_docstring(ast.parse(path.read_text()))))

    assert {other.stem for other in path.parent.glob("*.py") if other != path} <= named


@pytest.mark.parametrize("path", ROOMS, ids=relative)
def test_no_module_is_shadowed_by_a_name_of_its_package(path):
    room = import_module(dotted(path))
    modules = [other.stem if other.suffix else other.name for other in path.parent.iterdir() if other != path]

    for name in modules:
        item = getattr(room, name, None)
        assert item is None or inspect.ismodule(item), name


def test_the_picture_of_the_house_has_a_line_for_every_room():
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text().partition("## The house")
    picture = rest.split("```")[1].strip().splitlines()
    drawn = {line.split()[0].rstrip("/") for line in picture}

    assert len(picture) <= 40
    rooms = {path.parent.name for path in ROOMS} - {"rules"}
    assert rooms | {"tests", "examples", "benchmarks"} <= drawn


WITHOUT_TRAINER_FILES = sorted(
    path
    for name in WITHOUT_TRAINER
    for path in ([ROOT / "tests" / name] if name.endswith(".py") else (ROOT / "tests" / name).rglob("*.py"))
)


@pytest.mark.parametrize("path", WITHOUT_TRAINER_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_test_that_need_not_run_for_the_twin_of_lightning_has_no_trainer(path):
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}

    assert not names & {"Trainer", "fit", "trainer_of"}
