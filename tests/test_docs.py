"""The documentation: every public name has its place, code runs, links lead somewhere. `make docs` builds it."""

import importlib.util
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(ROOT) for path in [ROOT / "README.md", *DOCS.rglob("*.md")] if "_build" not in path.parts
)


def text(page):
    return (ROOT / page).read_text("utf-8")


def families():
    """Import the extension of Sphinx as Sphinx does."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("families", DOCS / "families.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_once():
    module = families()
    rooms = [room for page in PAGES for room in re.findall(r"^\.\. family:: (\S+)", text(page), flags=re.MULTILINE)]
    shown = Counter(name for room in rooms for name, _ in module.public_names(room))
    public = {f"{face}.{name}" for face in module.FACES for name in import_module(face).__all__}

    assert set(shown) <= public
    assert set(shown.values()) == {1}
    # A name that two modules export is shown under the shorter path.
    assert {name.rpartition(".")[2] for name in shown} == {name.rpartition(".")[2] for name in public}


CODE = {page: re.findall(r"^```python\n(.*?)^```", text(page), flags=re.DOTALL | re.MULTILINE) for page in PAGES}


@pytest.mark.parametrize("page", [page for page, blocks in CODE.items() if blocks], ids=str)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    given = {"__name__": "__main__"}

    with caplog.at_level("INFO"):
        for block in CODE[page]:
            exec(compile(block, str(page), "exec"), given)

    if page.name == "README.md":  # the quickstart
        assert list(tmp_path.glob("lightning_logs/version_0/events.out.tfevents.*"))
        (plan,) = re.findall(r"```text\n(Regularization plan\n.*?)```", text("docs/start.md"), flags=re.DOTALL)
        assert plan in caplog.text


@pytest.mark.parametrize("page", [*PAGES, Path("examples/README.md"), Path("CONTRIBUTING.md")], ids=str)
def test_links_and_pictures_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", text(page)) + re.findall(
        r"^```\{(?:image|include|literalinclude)\} (\S+)", text(page), flags=re.MULTILINE
    )
    for link in links:
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if target.name == "gallery.md":  # the page belongs to the examples
            target = ROOT / "examples" / "README.md"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}, link


def test_every_test_that_the_documentation_names_exists():
    named = [each for page in PAGES for each in re.findall(r"\[`(\w+)`\]\(\.\./(tests/\S+\.py)\)", text(page))]

    assert len(named) > 15
    for name, file in named:
        assert re.search(rf"^def {name}\(", text(file), flags=re.MULTILINE), f"{file} has no {name}"


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^(?:\w+ <)?((?:\w+/)?\w+)>?$", text("docs/index.md"), flags=re.MULTILINE)

    assert {f"docs/{name}.md" for name in listed} == {str(page) for page in PAGES} - {"README.md", "docs/index.md"}


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= 150
