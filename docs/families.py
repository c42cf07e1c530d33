"""The directive `family`: the reference of all public names that come from one room of the package."""

from collections.abc import Iterator
from importlib import import_module
from typing import ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typing_extensions import override

FACES = [
    "lightning_reg",
    *(
        f"lightning_reg.{face}"
        for face in ("ensemble", "functional", "metrics", "schedules", "selection", "tensorboard")
    ),
]
"""The modules that users import from, the one with the shortest path first."""


def public_names(room: str) -> Iterator[tuple[str, bool]]:
    """Yield each name that users import from a room, and whether it is a class."""
    seen = set()
    for face in FACES:
        module = import_module(face)
        for name in module.__all__:
            item = getattr(module, name)
            if f"{item.__module__}.".startswith(f"{room}.") and item not in seen:
                seen.add(item)
                yield f"{face}.{name}", isinstance(item, type)


class Family(SphinxDirective):
    """`.. family:: lightning_reg.callbacks.penalties`.

    A line `Penalty: penalty, remember` below it lists the members of a class to show, also inherited ones: what those
    who subclass it may define. Of other classes, all members are shown that they define themselves.
    """

    required_arguments: ClassVar[int] = 1
    has_content: ClassVar[bool] = True

    @override
    def run(self) -> list[nodes.Node]:
        told = dict(line.split(":", 1) for line in self.content if line)
        lines = []
        for name, is_class in public_names(self.arguments[0]):
            members = f"   :members:{told.pop(name.rpartition('.')[2], '')}" if is_class else ""
            lines += [f".. auto{'class' if is_class else 'function'}:: {name}", members, ""]
        if told:
            raise self.error(f"no class of {self.arguments[0]} is called {', '.join(told)}")
        if not lines:
            raise self.error(f"no public name comes from {self.arguments[0]}")
        within = nodes.section()
        within.document = self.state.document
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, within)
        return within.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directive."""
    app.add_directive("family", Family)
    return {"parallel_read_safe": True}
