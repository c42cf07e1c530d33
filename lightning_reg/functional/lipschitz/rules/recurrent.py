r"""Rules of plain recurrent layers over a fixed number of steps.

Let :math:`h_t = \phi(W x_t + U h_{t-1} + b)`, where the slopes of the activation lie in [0, 1] (tanh, ReLU). Changes of
the states satisfy

.. math:: \|\delta h_t\| \le \sum_{s \le t} \|U\|^{t-s} \|W\| \|\delta x_s\| + \|U\|^{t+1} \|\delta h_{-1}\|.

Let K be the lower triangular matrix with the entries :math:`\|U\|^{t-s}`. If the initial state is fixed, the vector of
state norms is at most :math:`\|W\| K` times the vector of input norms. So the norm of the layer is at most
:math:`\|W\| \|K\|`. The bounds of stacked layers multiply. The bounds of both directions of a layer combine by the root
of the sum of squares.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.budget import norm_in_time
from lightning_reg.functional.lipschitz.rounding import UPWARDS, norm_upwards, times
from lightning_reg.functional.lipschitz.rules.registry import for_modules
from lightning_reg.functional.lipschitz.value import Bound, NoBoundError, Operation, Traced, larger, together

Norms = Callable[[str, int], list[float]]
"""Maps the name of a weight and its number of gates to the norm of each gate's part."""

# For more steps than this, the norm of K is bounded by the sum of its first column.
_STEPS = 1024


def _repeated(norm: float, steps: int) -> tuple[float, float, float]:
    """Return bounds of the norms of K and of its last row, and the effect of the initial state on the last one."""
    powers = torch.tensor(norm, dtype=torch.float64).pow(torch.arange(steps, dtype=torch.float64))
    if not bool(powers.isfinite().all()):
        return (math.nan if math.isnan(norm) else math.inf,) * 3
    left = float(powers[-1]) * norm * UPWARDS
    last = float(torch.linalg.vector_norm(powers)) * UPWARDS
    if steps > _STEPS:
        return float(powers.sum()) * UPWARDS, last, left
    # The diagonal of an entry determines its power.
    places = torch.arange(steps)
    lags = places[:, None] - places
    return norm_upwards(powers[lags.clamp(min=0)] * (lags >= 0)), last, left


def steps_of(module: nn.RNNBase, input: Any) -> int:
    """Return the length of the sequences."""
    value = input.value if isinstance(input, Traced) else input
    if not isinstance(value, Tensor):
        msg = "its rule does not cover packed sequences"
        raise NoBoundError(msg)
    is_batch = value.ndim == 3  # noqa: PLR2004  # a sequence alone has two
    return int(value.shape[1 if is_batch and module.batch_first else 0])


def weights_of(module: nn.RNNBase) -> dict[str, Any]:
    """Return the weights of a layer by name. They come from the list that `forward` uses."""
    return dict(zip(module._flat_weights_names, module._flat_weights, strict=True))  # noqa: SLF001  # no public name


def norms_of(weights: Mapping[str, Tensor]) -> Norms:
    """Return the norms of `weights`, each computed once, although a layer is bounded in two settings."""
    return cache(lambda name, gates: [norm_in_time(part) for part in weights[name].chunk(gates)])


@for_modules(nn.RNN)
def _recurrent_layer(op: Operation, input: Any, hx: Any = None) -> Bound:
    norms = norms_of(weights_of(op.module))
    bound = _states(op.module, norms, input, input.bound.value if isinstance(input, Traced) else 0.0, hx)
    alone = _states(op.module, norms, input, 1.0, None)
    return Bound(bound, own=alone)


def _states(module: nn.RNN, norms: Norms, input: Any, bound: float, hx: Any) -> float:
    """Return the larger of two bounds: all outputs, and all last states together."""
    steps = steps_of(module, input)
    # The initial states of all layers and directions are stacked; each is one part.
    start = hx.bound.value if isinstance(hx, Traced) else 0.0
    finals = []
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            (inner,), (again,) = (norms(f"weight_{kind}_l{layer}{suffix}", 1) for kind in ("ih", "hh"))
            whole, last, left = _repeated(again, steps)
            entered = times(bound, inner)
            outputs.append(times(entered, whole) + times(start, times(again, last)))
            finals.append(times(entered, last) + times(start, left))
        bound = together(outputs)
    return larger(bound, together(finals))


@for_modules(nn.RNNCell)
def _recurrent_cell(op: Operation, input: Any, hx: Any = None) -> Bound:
    weights = op.module.weight_ih, op.module.weight_hh
    terms = [
        (each.bound.value, weight)
        for each, weight in zip((input, hx), weights, strict=True)
        if isinstance(each, Traced)
    ]
    own = norm_in_time(torch.cat([weight for _, weight in terms], dim=1))
    return Bound(times(together(value for value, _ in terms), own), own=own)
