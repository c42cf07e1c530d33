"""Which parameters are matrices or kernels of layers, and along which dimension their output units lie."""

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_reg import _checks

_TRANSPOSED = nn.modules.conv._ConvTransposeNd  # noqa: SLF001  # their common class has no public name
_TORCHS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,  # noqa: SLF001
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_MATRIX_NDIM = 2
_STACK_NDIM = 3

# Keys: the type, or its full name if its package must not be imported here; then the name of the parameter.
_DECLARED: dict[type[nn.Module] | str, dict[str, int | None]] = {"transformers.pytorch_utils.Conv1D": {"weight": 1}}


def register_layer(module_type: type[nn.Module], *, output_dim: int | None, weight: str = "weight") -> None:
    r"""Declare which parameter of a layer is its weight, and along which dimension the output units lie.

    Arguments like `dim` of `GroupLassoPenalty` and `metrics.Sparsity` do not depend on the layout of a weight: `dim=0`
    is the dimension of the output units, `dim=1` the first of the other dimensions, and so on.

    The layers of torch need no declaration, nor does `Conv1D` of transformers, whose weight has a row for each input.
    In other modules, a parameter is the weight of a layer if its name contains "weight" and its shape is not (C, 1, 1),
    a factor for each channel, or if it has three dimensions and the first is the module's `num_experts`. Its output
    units lie along dimension 0. Every other parameter sits in no layer: class tokens, position tables and layer scales.
    Penalties shrink these too, unless `select` leaves them out. `SpectralNormalization` and `SpectralConstraint` leave
    them alone, unless `select` chooses nothing else.

    Args:
        module_type: The class of the layer; its subclasses count too. A second declaration replaces the first.
        output_dim: The dimension of the weight along which the output units lie. `None` for a parameter that is neither
            matrix nor kernel, such as a scale or a table.
        weight: The name of the parameter in the module. Call this once for each weight of the module.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `weight` cannot be the name of a parameter; when training starts, if the weight has no such
            dimension.

    Example:
        >>> import torch
        >>> class Dense(torch.nn.Module):
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.kernel = torch.nn.Parameter(torch.randn(inputs, outputs))
        ...     def forward(self, x):
        ...         return x @ self.kernel
        >>> register_layer(Dense, weight="kernel", output_dim=1)

    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):  # type: ignore[redundant-expr]  # users may be untyped
        msg = f"`module_type` must be a subclass of torch.nn.Module, got {module_type!r}."
        raise TypeError(msg)
    _checks.dimension("output_dim", output_dim)
    if not isinstance(weight, str):
        msg = f"`weight` must be the name of a parameter, got {weight!r} of type {type(weight).__name__}."
        raise TypeError(msg)
    if not weight.isidentifier():
        msg = f"`weight` must be the name of a parameter inside its module, such as 'weight', got {weight!r}."
        raise ValueError(msg)
    _DECLARED.setdefault(module_type, {})[weight] = output_dim


def output_dim(module: nn.Module, name: str, shape: Sequence[int]) -> int | None:
    """Return the dimension of a parameter along which the output units of its module lie; `None` if it has none.

    Args:
        module: The module in which the parameter sits directly.
        name: The name of the parameter in that module.
        shape: The shape of the parameter.

    Raises:
        ValueError: If the parameter lacks the dimension declared with `register_layer`.

    """
    found, dim = _declared(type(module), name)
    if found:
        if dim is None or -len(shape) <= dim < len(shape):
            return dim if dim is None else dim % len(shape)
        if not is_parametrized(module, name):
            msg = (
                f"`register_layer` declared `output_dim={dim}` for {name!r} of {type(module).__name__}, but this weight"
                f" has shape {tuple(shape)}. Declare a dimension that it has."
            )
            raise ValueError(msg)
        return None  # the tensors from which a parametrization computes a weight can have any shape
    if isinstance(module, _NORMS) or ("weight" not in name and not _holds_experts(module, shape)):
        return None
    if isinstance(module, _TRANSPOSED):
        # If each group of channels has one output, a slice along dimension 1 would be the whole kernel.
        return 0 if module.out_channels == module.groups > 1 else 1
    # A factor for each channel, of shape (C, 1, 1), can also be called "weight".
    is_vector = len(shape) != _MATRIX_NDIM and sum(extent != 1 for extent in shape) < _MATRIX_NDIM
    return None if is_vector and not isinstance(module, _TORCHS) else 0


def blocks(module: nn.Module) -> int:
    """Return into how many parts with output units of their own a weight falls along dimension 0.

    One for each group of channels in a transposed convolution, except if every group has one input and one output.
    One in all other layers.
    """
    if not isinstance(module, _TRANSPOSED) or module.in_channels == module.out_channels == module.groups:
        return 1
    return module.groups


def is_stack(module: nn.Module, name: str, shape: Sequence[int]) -> bool:
    """Tell whether a parameter is a stack of matrices, experts x out x in, of which each acts on inputs of its own.

    It has three dimensions, its module is not a layer of torch, and `register_layer` does not declare it. A table of
    shape (1, positions, channels) does not count.
    """
    return (
        len(shape) == _STACK_NDIM and min(shape) > 1 and not is_torchs(module) and not _declared(type(module), name)[0]
    )


def _holds_experts(module: nn.Module, shape: Sequence[int]) -> bool:
    return len(shape) == _STACK_NDIM and getattr(module, "num_experts", None) == shape[0]


def is_torchs(module: nn.Module) -> bool:
    """Tell whether a module is a layer of torch, whatever its parameters."""
    return isinstance(module, (*_TORCHS, *_NORMS))


def _declared(module_type: type[nn.Module], name: str) -> tuple[bool, int | None]:
    """Return whether a parameter was declared, and its declared dimension."""
    # torch's old weight norm stores a weight as two parameters of the module itself.
    names = name, name.removesuffix("_g"), name.removesuffix("_v")
    for ancestor in module_type.__mro__:
        for key in (ancestor, f"{ancestor.__module__}.{ancestor.__qualname__}"):
            declared = _DECLARED.get(key, {})
            for candidate in names:
                if candidate in declared:
                    return True, declared[candidate]
    return False, None
