"""Replace each layer of low rank by two smaller layers, one after the other."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.spectral.matrices import singular_factors
from lightning_reg.functional.tensors.shards import has_dtensors

__all__ = ["factorize"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
Layer = Any
"""One of `_KINDS`. torch types their attributes too loosely to name them here."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DEFAULT_TOLERANCE = 1e-6


@torch.no_grad()
def factorize(module: nn.Module, *, tolerance: float | None = None) -> nn.Module:
    r"""Return a copy of a network in which two smaller layers replace each layer of low rank, with the same outputs.

    A linear layer (`nn.Linear`, `Conv1D` of transformers) with a weight of rank r becomes an `nn.Sequential` of a layer
    with r outputs and a layer with r inputs: W = B A, by a singular value decomposition in float64. A convolution
    becomes one with r channels for each group of channels, followed by one of kernel size 1. Only layers that get fewer
    parameters are replaced. `bias`, dtype, device, `training` and `requires_grad` stay the same. `module` itself does
    not change. `NuclearNormPenalty` makes ranks low.

    A layer of low rank is not replaced, and a warning names it, if its weight is tied or parametrized, if it has hooks,
    if its class inherits from torch's, or if a module of torch reads its weight without calling the layer, as
    `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` do. Your own code is not known: if it reads
    `layer.weight`, even for the dtype alone, the copy raises AttributeError; if it keeps a method such as
    `layer.forward`, the copy computes with the layer that was replaced. Change it to call `layer(x)`.

    Args:
        module: The network, or one layer. It must not be sharded, or wrapped by DDP or `torch.compile`.
        tolerance: The largest relative error of a weight, :math:`\|W - B A\|_F / \|W\|_F`, in [0, 1]. A larger
            tolerance compresses more and changes the outputs. Default: 1e-6, or one rounding for weights in half
            precision.

    Returns:
        The copy. The parameters of all other layers are copied, too.

    Raises:
        TypeError: If `module` is not a module, or `tolerance` is not a number.
        ValueError: If `module` is wrapped or sharded, or `tolerance` is out of range.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(64, 32)
        >>> _ = torch.nn.init.ones_(layer.weight)  # of rank 1
        >>> factorize(layer)
        Sequential(
          (0): Linear(in_features=64, out_features=1, bias=False)
          (1): Linear(in_features=1, out_features=32, bias=True)
        )

    Reference:
        Denton et al., Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation, 2014,
        arXiv:1404.0736.

    """
    if not isinstance(module, nn.Module):
        msg = f"`module` must be a torch.nn.Module, got {module!r} of type {type(module).__name__}."
        raise TypeError(msg)
    if tolerance is not None:
        tolerance = _checks.in_range("tolerance", tolerance, 0.0, 1.0)
    _refuse_wrappers(module)
    owners = _owners(module)
    factorized: dict[int, Any] = {}
    for name, layer in module.named_modules():
        if not (isinstance(layer, _KINDS) or _has_inputs_first(layer)) or any(
            map(nn.parameter.is_lazy, layer.parameters(recurse=False))
        ):
            continue
        factors = _factors(layer, tolerance)
        if factors is None:
            continue
        reason = _reason(module, layer, owners)
        if reason:
            warnings.warn(f"`factorize` does not replace {name!r}, although its rank is low: {reason}.", stacklevel=2)
        else:
            factorized[id(layer)] = _sequence(layer, *factors)
    # `deepcopy` takes the new layers for copies of the old ones, wherever the network holds them. It cannot copy the
    # tensors that pruning and the old weight norm compute, so their copies are made here.
    computed = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo = factorized | {id(value): value.detach().clone() for value in computed if not value.is_leaf}
    result: nn.Module = copy.deepcopy(module, memo)
    return result


def _refuse_wrappers(module: nn.Module) -> None:
    wrappers = {
        "DistributedDataParallel": ".module",
        "DataParallel": ".module",
        "FullyShardedDataParallel": ".module",
        "OptimizedModule": "._orig_mod",
    }
    for name, part in module.named_modules():
        kind = type(part).__name__
        if kind in wrappers:
            msg = (
                f"`module` must be the plain network, got {kind}{f' at {name!r}' if name else ''}."
                f" Pass the network in its `{wrappers[kind]}`."
            )
            raise ValueError(msg)
    for name, parameter in module.named_parameters():
        if has_dtensors([parameter]):
            msg = f"`module` must hold whole weights, but {name!r} is sharded. Load a checkpoint into a plain network."
            raise ValueError(msg)


def _owners(module: nn.Module) -> dict[int, set[tuple[int, str]]]:
    """Return the owners of each parameter, by its id: the id of each module that holds it, and the name there."""
    owners: dict[int, set[tuple[int, str]]] = {}
    for part in module.modules():
        for leaf, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), set()).add((id(part), leaf))
    return owners


def _has_inputs_first(layer: nn.Module) -> bool:
    """Tell whether a layer is the `Conv1D` of transformers, whose weight has a row for each input."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" == "transformers.pytorch_utils.Conv1D"


def _reason(module: nn.Module, layer: Layer, owners: dict[int, set[tuple[int, str]]]) -> str:
    """Return why a layer cannot be replaced, with the remedy if there is one; an empty string if it can."""
    if is_parametrized(layer):
        return "a parametrization computes its weight. Call `torch.nn.utils.parametrize.remove_parametrizations` first"
    if type(layer) not in _KINDS and not _has_inputs_first(layer):
        return f"other code may depend on its class, {type(layer).__name__}"
    if any(getattr(layer, kind) for kind in _HOOKS):
        return "it has hooks, for example from pruning. Remove them first"
    if any(len(owners[id(parameter)]) > 1 for parameter in layer.parameters()):
        return "it shares its weight or bias with another module. Give each module its own first"
    blocks = [part for part in module.modules() if isinstance(part, nn.TransformerEncoderLayer)]
    if any(layer in (block.linear1, block.linear2) for block in blocks):
        return "its nn.TransformerEncoderLayer reads its weight"
    return ""


def _factors(layer: Layer, tolerance: float | None) -> tuple[Tensor, Tensor] | None:
    """Return B and A, shapes (groups, outputs, rank) and (groups, rank, inputs); None if they have more parameters."""
    # A parametrization may change itself when it is asked in training.
    weight = (copy.deepcopy(layer).eval() if is_parametrized(layer) else layer).weight
    matrices = _matrices(layer, weight.to(torch.complex128 if weight.is_complex() else torch.float64))
    _, rows, columns = matrices.shape
    if not matrices.isfinite().all():
        return None
    if rows + columns >= rows * columns and matrices.any():
        return None
    if tolerance is None:
        tolerance = max(_DEFAULT_TOLERANCE, torch.finfo(weight.dtype).eps if weight.dtype.itemsize <= 2 else 0.0)  # noqa: PLR2004  # bytes: half precision
    parts = [singular_factors(matrix) for matrix in matrices]
    rank = max(_rank(s, tolerance) for _, s, _ in parts)
    if rank * (rows + columns) >= rows * columns:
        return None
    roots = [s[:rank].sqrt() for _, s, _ in parts]
    left = [u[:, :rank] * root for (u, _, _), root in zip(parts, roots, strict=True)]
    right = [root[:, None] * vh[:rank] for (_, _, vh), root in zip(parts, roots, strict=True)]
    return torch.stack(left).to(weight.dtype), torch.stack(right).to(weight.dtype)


def _rank(values: Tensor, tolerance: float) -> int:
    """Return how many of the largest singular values hold all of them, up to a relative error in the 2-norm."""
    # Squares of float64 numbers may leave its range.
    shares = values / values[:1].clamp(min=torch.finfo(values.dtype).tiny)
    left_out = shares.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((left_out > tolerance * left_out[:1]).sum())


def _matrices(layer: Layer, weight: Tensor) -> Tensor:
    """Return the matrix of each group of channels, shape (groups, outputs, inputs times taps)."""
    if _has_inputs_first(layer):
        return weight.mT[None]
    if isinstance(layer, nn.Linear):
        return weight[None]
    if isinstance(layer, _TRANSPOSED):
        inputs, outputs = weight.shape[:2]
        return weight.reshape(layer.groups, inputs // layer.groups, outputs, -1).transpose(1, 2).flatten(2)
    return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)


def _sequence(layer: Layer, left: Tensor, right: Tensor) -> nn.Sequential:
    """Return two layers that apply A, then B, with the settings of `layer`."""
    groups, _, rank = left.shape
    bias = None if layer.bias is None else nn.Parameter(layer.bias.clone(), requires_grad=layer.bias.requires_grad)
    parts: tuple[nn.Module, ...]
    if isinstance(layer, nn.Linear) or _has_inputs_first(layer):
        parts = (_with(_linear(right[0]), right[0], layer), _with(_linear(left[0]), left[0], layer, bias))
    elif not rank:  # torch has no convolution without channels
        parts = (ZeroConvolution(layer, bias),)
    else:
        taps = tuple(layer.kernel_size)
        kernels = right.reshape(groups, rank, -1, *taps)
        inner = (kernels.transpose(1, 2) if isinstance(layer, _TRANSPOSED) else kernels).flatten(0, 1)
        mix = _CONVOLUTIONS[len(taps) - 1]
        outer = mix(groups * rank, layer.out_channels, 1, groups=groups, bias=False, device="meta")
        parts = (
            _with(_resized(layer, layer.in_channels, groups * rank, groups), inner, layer),
            _with(outer, left.flatten(0, 1).view(outer.weight.shape), layer, bias),
        )
    return nn.Sequential(*parts).train(layer.training)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.out_features, layer.in_features = weight.shape  # set here, because torch warns of weights without entries
    return layer


def _resized(layer: Any, inputs: int, outputs: int, groups: int) -> Any:
    """Return a convolution like `layer` with other channels, without a bias, on the meta device."""
    settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    if isinstance(layer, _TRANSPOSED):
        settings["output_padding"] = layer.output_padding
    return type(layer)(inputs, outputs, layer.kernel_size, groups=groups, bias=False, device="meta", **settings)


def _with(part: Any, weight: Tensor, layer: Layer, bias: nn.Parameter | None = None) -> nn.Module:
    part.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    part.bias = bias
    return part  # type: ignore[no-any-return]  # a linear layer or a convolution


class ZeroConvolution(nn.Module):
    """A convolution whose kernel is zero: it returns its bias, as images of the right size."""

    def __init__(self, layer: Any, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_channels: int = layer.out_channels
        self.bias = bias
        self.size = _resized(layer, 1, 1, 1)
        del self.size.weight
        zeros = layer.weight.new_zeros(1, 1, *layer.kernel_size)
        self.size.register_buffer("weight", zeros, persistent=False)

    @override
    def forward(self, images: Tensor) -> Tensor:
        dims = len(self.size.kernel_size)
        empty: Tensor = self.size(images.narrow(-1 - dims, 0, 1))
        bias = empty.new_zeros(self.out_channels) if self.bias is None else self.bias
        return empty + bias.view(-1, *(1,) * dims)
