r"""A bound of margins as a product of the layers' constants, which is differentiable.

`margin_bounds` is a number. It cannot be differentiated, because it bounds several layers together. Without that, the
walk multiplies the constants of successive operations. The result is never smaller:

.. math:: M_{ij} = c \prod_l L_l^{n_l} \, \|w_i - w_j\|_2

Whether it is such a product shows in two walks on copies with random weights. They use upper bounds of norms that
multiply exactly. The bound divided by the constants of all layers is c in both walks, or the bound is not a product:
`forward` has a sum, as in residual networks, or it uses a weight in another way.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.bound import findings_at
from lightning_reg.functional.lipschitz.budget import cheap_norm, within
from lightning_reg.functional.lipschitz.stand_in import stand_in
from lightning_reg.functional.spectral.convolution import convolution_of
from lightning_reg.functional.spectral.frequencies import reshaped_bound

# Far above the rounding of the bounds, and far below the difference of two random weights.
_ROUNDING = 1e-6
_NAMED = 5
# Their constant is the largest entry of the scale, times a number.
_NORMALIZATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class NoProductError(Exception):
    """The reason why the bound is not a product of the layers' constants."""


class Factor(NamedTuple):
    """The constant L of a layer before the last one, to the power n."""

    weight: str
    """The name of its weight in the module."""
    calls: int
    """How often `forward` calls the layer: n."""
    gain: float | None
    """For a normalization layer, L divided by the largest entry of its scale. For others None: L is the norm."""


class MarginProduct(NamedTuple):
    """The bounds of margins as a product, see the file's docstring."""

    constant: float
    """c: what activations, pooling and other operations without weights contribute."""
    factors: tuple[Factor, ...]
    last: str
    """The name of the weight of the last layer, which has the rows w."""


class _Measured(NamedTuple):
    layers: list[tuple[str, float]]
    """The weight and the constant of each layer, in the order of the calls."""
    constant: float
    gains: dict[str, float | None]


def margin_product(module: nn.Module, inputs: Sequence[Any]) -> MarginProduct:
    """Return the bounds of margins of `module`, in eval mode, as a product.

    Args:
        module: A classifier whose last layer is linear.
        inputs: The arguments of its `forward`. Their sizes matter, their values do not.

    Raises:
        NoProductError: If the bounds are not a product, or infinite, or follow the data.

    """
    for name, part in module.named_modules():
        if getattr(part, "running_var", None) is not None:
            msg = f"the scale of {name!r}, a {type(part).__name__}, follows the data during training"
            raise NoProductError(msg)
    network = stand_in(module)
    names = [name for name, weight in network.named_parameters() if weight.is_floating_point()]
    first, second = _measured(network, inputs, ()), _measured(network, inputs, names)
    if not _equal(first.constant, second.constant):
        raise NoProductError(_without_factor(network, inputs, names, first.constant))
    calls = Counter(name for name, _ in first.layers[:-1])
    for name in calls:
        gain = first.gains[name]
        if gain is not None and not _equal(gain, second.gains[name] or math.nan):
            raise NoProductError(_unknown(network, name))
    factors = tuple(Factor(name, count, first.gains[name]) for name, count in calls.items())
    return MarginProduct(first.constant, factors, first.layers[-1][0])


def _measured(network: nn.Module, inputs: Sequence[Any], changed: Collection[str]) -> _Measured:
    """Return the constants under random weights. The weights in `changed` are random in another way."""
    for number, (name, weight) in enumerate(network.named_parameters()):
        if weight.is_floating_point():
            generator = torch.Generator().manual_seed(2 * number + (name in changed))
            # Positive, so that nothing cancels, and of a norm of about 1.
            entries = torch.rand(weight.shape, generator=generator, dtype=torch.float64) + 0.5
            weight.data = (entries / math.sqrt(max(1, weight.numel()))).to(weight)
    with within(-1.0):  # no time: norms are the cheap ones, and each layer is bounded alone
        findings, _ = findings_at(network, tuple(inputs), fold=False)
    if findings.unbounded:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in findings.unbounded[:_NAMED])
        msg = f"no bound is known ({reasons})"
        raise NoProductError(msg)
    weights = dict(network.named_parameters())
    layers = [(_weight_of(network, name), own) for name, own in findings.layers]
    last = layers[-1][0] if layers else ""
    if findings.last is None or last not in weights or not _is_same(findings.last[0], weights[last]):
        msg = "its last operation is not a linear layer with a weight of its own"
        raise NoProductError(msg)
    constants = [findings.last[1].value, *(own for _, own in layers[:-1])]
    if not all(constants):
        msg = "its output does not depend on its input"
        raise NoProductError(msg)
    # Sums of logarithms do not overflow.
    logarithm = math.log(constants[0]) - sum(map(math.log, constants[1:]))
    gains = {name: _gain(network, name, own) for name, own in layers[:-1]}
    return _Measured(layers, math.exp(logarithm), gains)


def _weight_of(network: nn.Module, layer: str) -> str:
    """Return the name of the weight of a layer in a report: the first one of a weight that several layers share."""
    weights = dict(network.named_parameters(remove_duplicate=False))
    # A network that is a single layer is reported under the name of its class.
    name = next((name for name in (f"{layer}.weight", layer, "weight") if name in weights), None)
    return layer if name is None else next(other for other, weight in weights.items() if weight is weights[name])


def _gain(network: nn.Module, name: str, own: float) -> float | None:
    """Return the gain of a factor, see `Factor`.

    Raises:
        NoProductError: If the constant of the layer is neither the norm of its weight nor a multiple of its scale.

    """
    owner = network.get_submodule(name.rpartition(".")[0])
    weight = dict(network.named_parameters()).get(name)
    if weight is not None and isinstance(owner, _NORMALIZATIONS):
        return own / float(weight.abs().amax())
    if weight is None or not _equal(own, _norm(owner, weight)):
        raise NoProductError(_unknown(network, name))
    return None


def _norm(owner: nn.Module, weight: Tensor) -> float:
    """Return the norm of a matrix or a zero-padded kernel; NaN for other weights."""
    convolution = convolution_of(owner, weight)
    if convolution is None:
        return cheap_norm(weight) if weight.ndim == 2 else math.nan  # noqa: PLR2004  # a matrix
    return float(reshaped_bound(weight, convolution, None)) if convolution.padding_mode == "zeros" else math.nan


def _unknown(network: nn.Module, name: str) -> str:
    path, _, _ = name.rpartition(".")
    kind = type(network.get_submodule(path)).__name__
    return (
        f"the constant of {path or name!r}, a {kind}, is not the norm of its weight as a matrix or zero-padded kernel"
    )


def _without_factor(network: nn.Module, inputs: Sequence[Any], names: Sequence[str], constant: float) -> str:
    """Name the layers to which the bound is not proportional."""
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(name.rpartition(".")[0] or name, []).append(name)
    found = [path for path, own in owners.items() if not _equal(_measured(network, inputs, own).constant, constant)]
    rest = len(found) - _NAMED
    return (
        f"it is not proportional to the constants of {', '.join(map(repr, found[:_NAMED]))}"
        f"{f' and {rest} more' if rest > 0 else ''}, as in a sum (residual networks), in attention, or if `forward`"
        " uses a parameter in another way"
    )


def _is_same(matrix: Tensor, weight: Tensor) -> bool:
    return matrix.shape == weight.shape and bool(torch.equal(matrix, weight))


def _equal(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=_ROUNDING)
