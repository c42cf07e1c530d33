"""Rules of further functions that are linear in one argument. Each computes the function's matrix, if it is small."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_reg.functional.lipschitz.budget import norm_in_time
from lightning_reg.functional.lipschitz.rules.registry import for_function, for_functions, plain
from lightning_reg.functional.lipschitz.value import PRODUCT, NoBoundError, Operation, Traced, traced_in

# The most entries and the most columns of a matrix. Each column takes one call of the function.
_ENTRIES, _COLUMNS = 1 << 22, 2048


def _by_matrix(place: int, name: str) -> Callable[..., float]:
    """Return the rule of a function that is affine in one argument, which `place` and `name` determine."""

    def rule(op: Operation, *args: Any, **named: Any) -> float:
        argument = args[place] if len(args) > place else named.get(name)
        if not isinstance(argument, Traced) or len(list(traced_in([args, named]))) > 1:
            raise NoBoundError(PRODUCT)
        value = argument.value
        count = value.numel() * (2 if value.is_complex() else 1)
        entries = count * op.output.numel()
        if entries > _ENTRIES or count > _COLUMNS:
            msg = (
                f"its matrix of {entries} entries and {count} columns is too large for its rule, which covers at most"
                f" {_ENTRIES} entries and {_COLUMNS} columns"
            )
            raise NoBoundError(msg)

        def applied(tensor: Tensor) -> Tensor:
            result = op.apply(
                *(tensor if each is argument else plain(each) for each in args),
                **{key: tensor if each is argument else plain(each) for key, each in named.items()},
            )
            return (torch.view_as_real(result.resolve_conj()) if result.is_complex() else result).flatten()

        start = applied(torch.zeros_like(value))
        units = torch.eye(value.numel(), dtype=value.dtype, device=value.device)
        units = torch.cat([units, 1j * units]) if value.is_complex() else units
        columns = [applied(unit.view(value.shape)) - start for unit in units]
        return norm_in_time(torch.stack(columns)) if columns else 0.0

    return rule


_LINEAR_IN: dict[Callable[..., Any], tuple[int, str]] = {
    torch.linalg.solve: (1, "B"),
    torch.linalg.solve_triangular: (1, "B"),
    torch.cholesky_solve: (0, "input"),
    torch.lu_solve: (0, "input"),
    torch.linalg.lu_solve: (2, "B"),
    torch.cumulative_trapezoid: (0, "y"),
    torch.stft: (0, "input"),
    torch.istft: (0, "input"),
    functional.affine_grid: (0, "theta"),
    torch.conv_tbc: (0, "input"),
}
for _function, (_place, _name) in _LINEAR_IN.items():
    for_function(_function, _by_matrix(_place, _name))
for_functions("stft istft cholesky_solve lu_solve")(_by_matrix(0, "input"))
