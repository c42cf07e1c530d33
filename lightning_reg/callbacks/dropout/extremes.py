"""Random numbers at the ends of their range, so that events of small probability happen."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Events of smaller probability are not found. In low precision, numbers so close to 1 round to 1.
_RARE = 1e-3
_ROUNDINGS = 4


def push_(drawn: Any, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, is_large: bool) -> None:
    """Move what a random function of torch has drawn, in place, towards the large or the small end of its range.

    Uniform numbers stay different from one another, and inside of their range. As if made of such numbers, Bernoulli
    variables are 0 for large ones, and 1 for small ones, unless their probability is 1 or 0. Others do not change.

    Args:
        drawn: The result.
        function: The function, as a dispatch mode gets it.
        args: Its arguments.
        kwargs: Its keyword arguments.
        is_large: Which end.

    """
    name = function.overloadpacket.__name__
    if not isinstance(drawn, Tensor) or not drawn.is_floating_point():
        return
    if name in {"rand", "rand_like"}:
        _push_uniform_(drawn, 0.0, 1.0, is_large=is_large)
    elif name in {"uniform", "uniform_"}:
        low, high = (*args[1:3], *(kwargs.get(key, default) for key, default in _RANGE[len(args[1:3]) :]))
        _push_uniform_(drawn, low, high, is_large=is_large)
    elif name in {"bernoulli", "bernoulli_"}:
        probability = args[0] if function._overloadname == "default" else _probability(args, kwargs)  # noqa: SLF001
        inside = torch.as_tensor(probability, device=drawn.device)
        drawn.copy_((inside >= 1 if is_large else inside > 0).to(drawn.dtype).expand_as(drawn))


_RANGE = (("from", 0.0), ("to", 1.0))


def _probability(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("p", 0.5)


def _push_uniform_(drawn: Tensor, low: float, high: float, *, is_large: bool) -> None:
    share = max(_RARE, _ROUNDINGS * torch.finfo(drawn.dtype).eps)
    start = high - 2 * share * (high - low) if is_large else low
    drawn.sub_(low).mul_(share).add_(start)
