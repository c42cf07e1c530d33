"""Docstrings are the reference: what each must say."""

import inspect
import re

import pytest
from lightning.pytorch import Callback

import lightning_reg
from lightning_reg import functional, metrics

EXPORTED = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (lightning_reg, functional, metrics)
    for name in module.__all__
}
CALLBACKS = {name: item for name, item in EXPORTED.items() if inspect.isclass(item) and issubclass(item, Callback)}


def section(item, title):
    """Return the lines of one section of a docstring, without their indent."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", inspect.getdoc(item) + "\n", flags=re.MULTILINE)
    return re.sub("^    ", "", found[1], flags=re.MULTILINE) if found else ""


@pytest.mark.parametrize("item", EXPORTED.values(), ids=list(EXPORTED))
def test_every_argument_is_described_in_the_order_of_the_signature(item):
    sections = section(item, "Args") + section(item, "Attributes")  # the latter of what users are given
    described = re.findall(r"^\**(\w+): ", sections, flags=re.MULTILINE)

    assert described == list(inspect.signature(item).parameters)


@pytest.mark.parametrize("item", CALLBACKS.values(), ids=list(CALLBACKS))
def test_a_callback_describes_its_formula_logs_errors_and_has_an_example(item):
    text = inspect.getdoc(item)

    assert ":math:" in text
    assert re.search(r"logged|are written", text, flags=re.IGNORECASE)
    assert re.search(r"`reg/[\w<]", text)
    assert {"TypeError", "ValueError"} <= set(re.findall(r"^(\w+): ", section(item, "Raises"), flags=re.MULTILINE))
    assert ">>> " in section(item, "Example")
