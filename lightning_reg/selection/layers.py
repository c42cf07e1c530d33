"""Which parameters are matrices or kernels of layers, and along which dimension of them the output units lie."""

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

# By type, or by the full name of one that is not to be imported; then by the name of the parameter.
_DECLARED: dict[type[nn.Module] | str, dict[str, int | None]] = {"transformers.pytorch_utils.Conv1D": {"weight": 1}}


def register_layer(module_type: type[nn.Module], *, output_dim: int | None, weight: str = "weight") -> None:
    r"""Declare which parameter of a layer is its weight, and along which dimension the output units lie.

    What asks for units (`GroupLassoPenalty(dim=)`, `metrics.Sparsity(dim=)`) counts the dimensions of a weight from
    that of the output units: `dim=0` is that one, `dim=1` the first of the others, and so on, whatever the layout.

    Nothing needs to be declared of the layers of torch and of `Conv1D` of transformers, whose weight has a row for each
    input. In other modules a parameter is the weight of a layer, with output units along dimension 0, if its name has
    "weight" in it, and it is no factor for each channel, of shape (C, 1, 1), or if it has three dimensions and the
    first is the module's `num_experts`. Any other is said to sit in no layer, as
    class tokens, position tables and layer scales do: penalties shrink it as well, unless `select` leaves it out, but
    `SpectralNormalization` and `SpectralConstraint` leave it alone, unless `select` is for nothing else.

    Args:
        module_type: The class of the layer. Subclasses count, too; what was declared before is replaced.
        output_dim: The dimension of the weight along which the output units lie; `None` if it is no matrix or kernel,
            but a scale or a table, say.
        weight: The name of the parameter in that module. Call this once for each, if there are several.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `weight` is no name of a parameter; when training starts, if the weight has no such dimension.

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
        msg = f"`weight` must be the name of a parameter as the module has it, as in 'weight', got {weight!r}."
        raise ValueError(msg)
    _DECLARED.setdefault(module_type, {})[weight] = output_dim


def output_dim(module: nn.Module, name: str, shape: Sequence[int]) -> int | None:
    """Return along which dimension of a parameter the output units of its module lie; `None` if it has none.

    Args:
        module: The one in which the parameter sits directly.
        name: What it is called there.
        shape: Its own.

    Raises:
        ValueError: If it has no dimension as `register_layer` was told.

    """
    found, dim = _declared(type(module), name)
    if found:
        if dim is None or -len(shape) <= dim < len(shape):
            return dim if dim is None else dim % len(shape)
        if not is_parametrized(module, name):
            msg = (
                f"`register_layer` was told that the output units of {name!r} of {type(module).__name__} lie along"
                f" dimension {dim}, which one of shape {tuple(shape)} does not have. Declare it anew."
            )
            raise ValueError(msg)
        return None  # what a parametrization makes a weight of can have any shape
    if isinstance(module, _NORMS) or ("weight" not in name and not _holds_experts(module, shape)):
        return None
    if isinstance(module, _TRANSPOSED):
        # Where each group of channels has one output, a slice along dimension 1 would be the whole kernel.
        return 0 if module.out_channels == module.groups > 1 else 1
    # A factor for each channel, of shape (C, 1, 1), can be called weight, too.
    is_vector = len(shape) != _MATRIX_NDIM and sum(extent != 1 for extent in shape) < _MATRIX_NDIM
    return None if is_vector and not isinstance(module, _TORCHS) else 0


def blocks(module: nn.Module) -> int:
    """Return into how many parts, along dimension 0, a weight falls whose parts have output units of their own.

    Those of a transposed convolution whose channels come in groups; not where a part is one entry, and the unit, too.
    """
    if not isinstance(module, _TRANSPOSED) or module.in_channels == module.out_channels == module.groups:
        return 1
    return module.groups


def is_stack(module: nn.Module, name: str, shape: Sequence[int]) -> bool:
    """Tell whether a parameter is a stack of matrices, experts x out x in, of which each acts on inputs of its own.

    One of three dimensions in a module that is no layer of torch, and of which nobody has declared where its units lie;
    a table of shape (1, positions, channels) is none.
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
    """Return whether somebody has declared a parameter, and what."""
    # The old weight norm keeps a weight as two parameters of the module itself.
    names = name, name.removesuffix("_g"), name.removesuffix("_v")
    for ancestor in module_type.__mro__:
        for key in (ancestor, f"{ancestor.__module__}.{ancestor.__qualname__}"):
            declared = _DECLARED.get(key, {})
            for candidate in names:
                if candidate in declared:
                    return True, declared[candidate]
    return False, None
