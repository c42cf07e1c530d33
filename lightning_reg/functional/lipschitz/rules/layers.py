"""Rules of layers with weights: products, convolutions, normalizations."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_reg.functional.lipschitz.budget import cheap_norm, in_time
from lightning_reg.functional.lipschitz.chain import Chain
from lightning_reg.functional.lipschitz.rounding import UPWARDS, norm_and_gram, norm_work, precise, smaller, times
from lightning_reg.functional.lipschitz.rules.registry import (
    Rule,
    for_all,
    for_function,
    for_functions,
    for_modules,
    without_bound,
)
from lightning_reg.functional.lipschitz.value import (
    PRODUCT,
    Bound,
    NoBoundError,
    Operation,
    Traced,
    constant,
    largest,
)
from lightning_reg.functional.spectral.convolution import Convolution, Sizes, convolution, convolution_of
from lightning_reg.functional.spectral.frequencies import GRID, bound_work, certified_bound, reshaped_bound

INTEGERS = "integers have no Lipschitz constant; measure the part of the network after the embedding"
_SPATIAL = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


@for_modules(nn.Linear)
def _linear_layer(op: Operation, input: Traced) -> Bound:
    return dense(input.bound, op.module.weight)


def dense(bound: Bound, weight: Tensor) -> Bound:
    """Return the bound after multiplying the last dimension by `weight`, shape (out, in)."""

    def exact() -> tuple[float, Chain | None]:
        norm, gram = norm_and_gram(weight)
        return norm, (bound.chain or Chain.after(bound.value)).linear(weight, norm, gram)

    norm, chain = in_time(exact, lambda: (cheap_norm(weight), None), norm_work(weight), weight.device)
    value = times(bound.value, norm)
    return Bound(
        value if chain is None else smaller(value, chain.least),
        chain,
        lambda scale: dense(bound, precise(weight) * scale[:, None]),
        channels=-1,
        own=norm,
        last=(weight, bound),
    )


def convolved(bound: Bound, weight: Tensor, layer: Convolution, size: Sizes | None) -> Bound:
    """Return the bound after a convolution of images of `size`; None stands for any size."""
    norm = in_time(
        lambda: float(certified_bound(weight, layer, size, GRID)),
        lambda: float(reshaped_bound(weight, layer, size)),
        bound_work(weight, layer, size, GRID),
        weight.device,
    )

    def scaled(scale: Tensor) -> Bound:
        if layer.transposed:
            groups = weight.view(layer.groups, -1, *weight.shape[1:])
            rows = scale.to(weight).view(layer.groups, 1, -1, *(1,) * len(layer.kernel))
            return convolved(bound, (groups * rows).flatten(0, 1), layer, size)
        return convolved(bound, weight * scale.to(weight).view(-1, 1, *(1,) * len(layer.kernel)), layer, size)

    return Bound(
        times(bound.value, norm),
        None,
        scaled,
        channels=-1 - len(layer.kernel),
        own=norm,
        entries=(lambda: _filters(weight, layer) * bound.value) if layer.padding_mode == "zeros" else None,
    )


def _filters(weight: Tensor, layer: Convolution) -> Tensor:
    """Return the norm of each filter, shape (channels, 1, ...). It bounds the change of each entry of a channel."""
    if layer.transposed:
        weight = weight.view(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    norms: Tensor = torch.linalg.vector_norm(precise(weight).flatten(1), dim=1) * UPWARDS
    return norms.view(-1, *(1,) * len(layer.kernel))


def _image_size(input: Traced, weight: Tensor) -> Sizes:
    return tuple(input.value.shape[2 - weight.ndim :])


@for_modules(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _convolutional_layer(op: Operation, input: Traced, output_size: Any = None) -> Bound:
    weight = _real(op.module.weight)
    layer = cast(Convolution, convolution_of(op.module, weight))
    # A requested output size replaces the layer's output padding.
    return convolved(input.bound, weight, layer, None if output_size else _image_size(input, weight))


def _functional(order: str, *, transposed: bool = False) -> Rule:
    """Return the rule of functions that take settings in this order after the bias."""

    def rule(op: Operation, input: Traced, weight: Tensor, bias: Any = None, *settings: Any, **named: Any) -> Bound:
        constant([weight, bias])
        named |= zip(order.split(), settings, strict=False)
        plain = {name: _single(value) for name, value in named.items()}
        layer = convolution(_real(weight), transposed=transposed, **plain)
        return convolved(input.bound, weight, layer, _image_size(input, weight))

    return rule


def _single(value: Any) -> Any:
    """Return the number in a list of one, which torch takes for all dimensions."""
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value


for_functions("conv1d conv2d conv3d")(_functional("stride padding dilation groups"))
for_functions("conv_transpose1d conv_transpose2d conv_transpose3d")(
    _functional("stride padding output_padding groups dilation", transposed=True)
)


def _real(weight: Tensor) -> Tensor:
    if weight.is_complex():
        msg = "its rule does not cover complex convolutions"
        raise NoBoundError(msg)
    return weight


# `training` counts, because `forward` of a larger module may have set the mode.
@for_modules(
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    settings="running_mean running_var weight bias training eps",
)
def _batch_norm(
    op: Operation,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Bound:
    constant([running_mean, running_var, weight, bias])
    if training or running_var is None:
        msg = "it normalizes by batch statistics, so a sample changes the results of others; use running statistics"
        raise NoBoundError(msg)
    scale = (precise(running_var) + eps).rsqrt()
    return _scaled_channels(input, scale if weight is None else scale * precise(weight))


def _scaled_channels(input: Traced, scale: Tensor) -> Bound:
    """Return the bound after scaling each channel, dimension 1. The layer before absorbs the scales if it can."""
    factor = largest(scale)
    plain, before = input.bound.after(factor), input.bound
    if before.scaled is None or before.channels + input.value.ndim != 1:
        return Bound(plain.value, own=factor)
    folded = before.scaled(scale)
    value = smaller(plain.value, folded.value)
    return Bound(value, folded.chain, folded.scaled, folded.channels, own=factor, entries=folded.entries)


@for_modules(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm_layer(op: Operation, input: Traced) -> Bound:
    module = op.module
    if module.running_var is None or module.training:
        dims = next(dims for kind, dims in _SPATIAL.items() if isinstance(module, kind))
        return _normalized(input, module.weight, module.eps, lambda value: _centered(value.flatten(-dims)))
    scale = (precise(module.running_var) + module.eps).rsqrt()
    factor = largest(scale if module.weight is None else scale * precise(module.weight))
    return Bound(input.bound.after(factor).value, own=factor)


def _instance_norm(
    op: Operation,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Bound:
    constant([running_mean, running_var, weight, bias])
    if use_input_stats:
        return _normalized(input, weight, eps, lambda value: _centered(value.flatten(2)))
    return _batch_norm(op, input, running_mean, running_var, weight, bias, eps=eps)


# `torch.batch_norm` and `torch.instance_norm` take their arguments in another order.
for_function(functional.batch_norm, _batch_norm)
for_function(functional.instance_norm, _instance_norm)


@for_functions("layer_norm")
@for_modules(nn.LayerNorm, settings="normalized_shape weight eps")
def _layer_norm(  # the arguments of torch's function
    op: Operation,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Bound:
    constant([weight, bias])
    return _normalized(input, weight, eps, lambda value: _centered(value.flatten(-len(normalized_shape))))


@for_functions("group_norm")
@for_modules(nn.GroupNorm, settings="num_groups weight eps")
def _group_norm(  # the arguments of torch's function
    op: Operation,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Bound:
    constant([weight, bias])
    return _normalized(input, weight, eps, lambda value: _centered(value.reshape(len(value), num_groups, -1)))


@for_functions("rms_norm")
@for_modules(nn.RMSNorm, settings="normalized_shape weight eps")
def _rms_norm(op: Operation, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Bound:
    constant(weight)
    epsilon = torch.finfo(input.value.dtype).eps if eps is None else eps
    return _normalized(input, weight, epsilon, lambda value: value.flatten(-len(normalized_shape)))


def _normalized(input: Traced, weight: Tensor | None, eps: float, rows: Callable[[Tensor], Tensor]) -> Bound:
    """Return the bound after dividing rows by their root mean square. Inputs with rows of zero attain it."""
    scale = 1.0 if weight is None else largest(weight)
    count = rows(input.value).shape[-1] if input.value.numel() else 1
    smallest = math.hypot(math.sqrt(max(eps, 0.0)), input.shortest(rows) / math.sqrt(count))
    factor = scale / smallest * UPWARDS if smallest > 0 else math.inf
    return Bound(input.bound.after(factor).value, own=factor)


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


for_all(
    (nn.Embedding, nn.EmbeddingBag),
    "embedding_bag",
    without_bound(INTEGERS),
)


@for_functions("glu")
@for_modules(nn.GLU, settings="dim")
def _glu(op: Operation, input: Traced, dim: int = -1) -> float:
    # GLU multiplies one half by the sigmoid of the other. The sigmoid is at most 1, and its slope at most 1/4.
    if math.isinf(input.bound.extent.entries):
        raise NoBoundError(PRODUCT)
    return math.hypot(1.0, input.bound.extent.entries / 4)
