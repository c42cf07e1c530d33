"""Rules of layers with weights: products, convolutions, normalizations."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional._bounds import Bound, NoBoundError, Operation, Traced, constant, smaller
from lightning_reg.functional._convolution import Convolution, Sizes, convolution, convolution_of
from lightning_reg.functional._eclipse import UPWARDS, Chain, norm_upwards, precise, times
from lightning_reg.functional._frequencies import certified_bound
from lightning_reg.functional._lipschitz_rules import for_functions, for_modules, without_bound

_GRID = 16


@for_modules(nn.Linear)
def _linear_layer(op: Operation, input: Traced) -> Bound:
    return dense(input.bound, op.module.weight)


@for_functions("linear")
def _linear(op: Operation, input: Any, weight: Any, bias: Any = None) -> Bound:
    constant([weight, bias])
    # A vector is a matrix of one row, whose output dimension is gone.
    return dense(input.bound, weight) if weight.ndim > 1 else input.bound.after(norm_upwards(weight[None]))


def dense(bound: Bound, weight: Tensor) -> Bound:
    """Return the bound after a product of the last dimension with `weight`, shape (out, in)."""
    norm = norm_upwards(weight)
    chain = (bound.chain or Chain(bound.value)).linear(weight, norm)
    value = times(bound.value, norm)
    return Bound(
        value if chain is None else smaller(value, chain.gain),
        chain,
        lambda scale: dense(bound, precise(weight) * scale[:, None]),
        channels=-1,
        own=norm,
    )


def convolved(bound: Bound, weight: Tensor, layer: Convolution, size: Sizes | None) -> Bound:
    """Return the bound after a convolution of images of `size`; None: of any."""
    norm = float(certified_bound(weight, layer, size, _GRID))

    def scaled(scale: Tensor) -> Bound:
        if layer.transposed:
            groups = weight.unflatten(0, (layer.groups, -1))
            rows = scale.to(weight).view(layer.groups, 1, -1, *(1,) * len(layer.kernel))
            return convolved(bound, (groups * rows).flatten(0, 1), layer, size)
        return convolved(bound, weight * scale.to(weight).view(-1, 1, *(1,) * len(layer.kernel)), layer, size)

    return Bound(times(bound.value, norm), None, scaled, channels=-1 - len(layer.kernel), own=norm)


def _image_size(input: Traced, weight: Tensor) -> Sizes:
    return tuple(input.value.shape[2 - weight.ndim :])


@for_modules(
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)
def _convolutional_layer(op: Operation, input: Traced, output_size: Any = None) -> Bound:
    weight = op.module.weight
    layer = _real(weight) and convolution_of(op.module, weight)
    # A size of the output that is asked for takes the place of the layer's output padding.
    return convolved(input.bound, weight, layer, None if output_size else _image_size(input, weight))


@for_functions("conv1d conv2d conv3d")
def _convolution(  # noqa: PLR0913  # the function's
    op: Operation,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Bound:
    constant([weight, bias])
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _functional(input, weight, settings)


@for_functions("conv_transpose1d conv_transpose2d conv_transpose3d")
def _transposed_convolution(  # noqa: PLR0913  # the function's
    op: Operation,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Bound:
    constant([weight, bias])
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _functional(input, weight, {**settings, "output_padding": output_padding, "transposed": True})


def _functional(input: Traced, weight: Tensor, settings: dict[str, Any]) -> Bound:
    def plain(value: Any) -> Any:
        # torch takes a list of one number for all dimensions.
        return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value

    layer = convolution(weight, **{name: plain(value) for name, value in settings.items()}) if _real(weight) else None
    return convolved(input.bound, weight, layer, _image_size(input, weight))  # type: ignore[arg-type]  # is real


def _real(weight: Tensor) -> bool:
    if weight.is_complex():
        msg = "no rule for complex convolutions"
        raise NoBoundError(msg)
    return True


@for_modules(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def _batch_norm_layer(op: Operation, input: Traced) -> Bound:
    module = op.module
    return _batch_norm(op, input, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)


@for_functions("batch_norm")
def _batch_norm(  # noqa: PLR0913  # the function's
    op: Operation,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,  # noqa: FBT001, FBT002  # the function's
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Bound:
    constant([running_mean, running_var, weight, bias])
    if training or running_var is None:
        msg = "batch normalization by the statistics of the batch, which one sample changes for all others"
        raise NoBoundError(msg)
    scale = (precise(running_var) + eps).rsqrt()
    return _scaled_channels(input, scale if weight is None else scale * precise(weight))


def _scaled_channels(input: Traced, scale: Tensor) -> Bound:
    """Return the bound after a product of each channel, dimension 1, with a number: folded into the layer before it."""
    factor = float(scale.abs().amax()) * UPWARDS
    plain, before = input.bound.after(factor), input.bound
    if before.scaled is None or before.channels + input.value.ndim != 1:
        return Bound(plain.value, own=factor)
    folded = before.scaled(scale)
    return Bound(smaller(plain.value, folded.value), folded.chain, folded.scaled, folded.channels, own=factor)


@for_modules(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm_layer(op: Operation, input: Traced) -> Bound:
    module = op.module
    if module.running_var is None:
        return _normalized(input, module.weight, module.eps)
    scale = (precise(module.running_var) + module.eps).rsqrt()
    factor = float((scale if module.weight is None else scale * precise(module.weight)).abs().amax()) * UPWARDS
    return Bound(input.bound.after(factor).value, own=factor)


@for_functions("instance_norm")
def _instance_norm(  # noqa: PLR0913  # the function's
    op: Operation,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,  # noqa: FBT001, FBT002  # the function's
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Bound:
    constant([running_mean, running_var, weight, bias])
    if use_input_stats:
        return _normalized(input, weight, eps)
    return _batch_norm(op, input, running_mean, running_var, weight, bias, eps=eps)


@for_modules(nn.LayerNorm, nn.GroupNorm)
def _layer_norm_layer(op: Operation, input: Traced) -> Bound:
    return _normalized(input, op.module.weight, op.module.eps)


@for_functions("layer_norm group_norm")
def _layer_norm(  # noqa: PLR0913  # the function's
    op: Operation, input: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Bound:
    constant([weight, bias])
    return _normalized(input, weight, eps)


@for_functions("rms_norm")
def _rms_norm(op: Operation, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Bound:
    constant(weight)
    # torch's default is that of the input's type: the smallest one is that of float64, the largest norm.
    return _normalized(input, weight, torch.finfo(input.value.dtype).eps if eps is None else eps)


@for_modules(nn.RMSNorm)
def _rms_norm_layer(op: Operation, input: Traced) -> Bound:
    return _rms_norm(op, input, None, op.module.weight, op.module.eps)


def _normalized(input: Traced, weight: Tensor | None, eps: float) -> Bound:
    """Return the bound after a division by the deviation: inputs without deviation attain it."""
    largest = 1.0 if weight is None else float(precise(weight).abs().amax())
    factor = largest / math.sqrt(eps) * UPWARDS if eps > 0 else math.inf
    return Bound(input.bound.after(factor).value, own=factor)


_NO_RULES: dict[str, tuple[Callable[..., Any], ...]] = {
    "integers have no Lipschitz constant: measure the part of the network after the embedding": (
        nn.Embedding,
        nn.EmbeddingBag,
    ),
    "dot-product attention has no Lipschitz constant (Kim et al. 2021, arXiv:2006.04710)": (
        nn.MultiheadAttention,
        nn.Transformer,
        nn.TransformerEncoder,
        nn.TransformerEncoderLayer,
        nn.TransformerDecoder,
        nn.TransformerDecoderLayer,
    ),
    "recurrent layers multiply values that depend on the input": (nn.RNNBase, nn.RNN, nn.LSTM, nn.GRU, nn.RNNCellBase),
    "a product of values that depend on the input grows without bound": (nn.Bilinear, nn.GLU),
}
for _reason, _types in _NO_RULES.items():
    for_modules(*_types)(without_bound(_reason))  # type: ignore[arg-type]  # module types
    _names = {"embedding", "embedding_bag"} if nn.Embedding in _types else set()
    _names |= {"scaled_dot_product_attention", "multi_head_attention_forward"} if nn.Transformer in _types else set()
    _names |= {"bilinear", "glu"} if nn.GLU in _types else set()
    for_functions(" ".join(_names))(without_bound(_reason))
