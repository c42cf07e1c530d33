"""Arguments of a wrong kind, one at a time, to all that is public: refused early, in our words, or right."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

import lightning_reg
from tests.public_calls import CALLS, PUBLIC, parameters_of

PACKAGE = Path(lightning_reg.__file__).parent

# Wrong arguments as they come from a configuration file, another library or a typing error.
KINDS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "'False'": lambda: "False",
    "b'x'": lambda: b"x",
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "1e39": lambda: 1e39,  # infinite in float32
    "10**400": lambda: 10**400,  # larger than any float
    "1j": lambda: 1j,
    "object": object,
    "list": list,
    "dict": dict,
    "set": set,
    "[object]": lambda: [object()],
    "{'a': tensor}": lambda: {"a": torch.ones(2, 2)},
    "lambda": lambda: lambda x: x,
    "module": nn.Identity,
    "tensor": lambda: torch.ones(2, 2),
    "scalar tensor": lambda: torch.tensor(0.5),
    "whole tensor": lambda: torch.ones(2, 2, dtype=torch.int64),
    "complex tensor": lambda: torch.full((2, 2), 1j),
    "[tensor]": lambda: [torch.ones(2, 2)],
    "[[tensor]]": lambda: [[torch.ones(2, 2)]],
    "generator": lambda: (torch.ones(2, 2) for _ in range(1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_all_arguments_of_public_names_are_here(name):
    call, arguments = CALLS[name]

    assert name.partition(".")[0] in PUBLIC
    assert set(arguments) == set(parameters_of(call))


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_a_good_one_before_an_argument_is_replaced(name):
    call, arguments = CALLS[name]

    call(**{argument: given.value for argument, given in arguments.items()})


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]
)
def test_an_argument_of_a_wrong_kind_is_refused_by_name(name, argument):
    call, arguments = CALLS[name]
    values = {other: given.value for other, given in arguments.items()}

    faults = {}
    for kind, make in KINDS.items():
        given = arguments[argument]
        is_good = None if given.also is None else kind in given.also
        names = (argument, *given.names)
        fault = fault_of(call, {**values, argument: make()}, names, is_good=is_good, is_empty=kind in ("list", "set"))
        if fault:
            faults[kind] = fault

    assert not faults


def fault_of(call, values, names, is_good, is_empty):
    """Return what is wrong with the answer to `values`, if anything is."""
    try:
        result = call(**values)
    except Exception as error:
        if is_good is True:
            return f"refused: {error!r}"
        if not isinstance(error, (TypeError, ValueError, MisconfigurationException)):
            return f"not one of our errors: {error!r}"
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not raised_in.is_relative_to(PACKAGE):
            return f"raised in {raised_in}: {error!r}"
        return "" if any(f"`{name}`" in str(error) for name in names) else f"without its name: {error!r}"
    if is_good is False:
        return f"accepted: {result!r}"
    is_nan = any(tensor.isnan().any() for tensor in tensors_in(result)) and not is_empty  # a share of nothing is NaN
    return f"not a number: {result!r}" if is_nan else ""


def tensors_in(result):
    if isinstance(result, Tensor):
        return [result]
    return [tensor for item in result for tensor in tensors_in(item)] if isinstance(result, (list, tuple)) else []
