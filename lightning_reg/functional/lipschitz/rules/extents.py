"""Rules that bound the size of a value for all inputs. Normalizations give one, and later operations keep it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import UPWARDS, power, precise, times
from lightning_reg.functional.lipschitz.rules.contractions import as_matrices, parsed
from lightning_reg.functional.lipschitz.rules.dot_products import known, number_of_products, products_extent
from lightning_reg.functional.lipschitz.rules.forms import rescaled
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, for_all, for_functions, for_modules, plain
from lightning_reg.functional.lipschitz.value import Bound, Extent, Operation, Scores, Traced, as_tensor, largest


def _length(tensor: Tensor | None, dim: int = -1) -> float:
    if tensor is None:
        return 0.0
    return largest(torch.linalg.vector_norm(precise(tensor), dim=dim)) if tensor.ndim else largest(tensor)


def _kept(op: Operation, bound: Bound, input: Any, *_: Any, **__: Any) -> Extent | None:
    return input.bound.extent if isinstance(input, Traced) else None


def _unless_training(
    op: Operation, bound: Bound, input: Any, p: float = 0.5, training: bool = True, *_: Any, **__: Any
) -> Extent | None:
    return None if training else _kept(op, bound, input)


for_all(
    (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    "contiguous clone detach deepcopy to type float double type_as cpu cuda requires_grad_ positive neg negative",
    _kept,
    EXTENTS,
)
for_functions("dropout dropout1d dropout2d dropout3d feature_dropout", book=EXTENTS)(_unless_training)


def _of_norm(input: Traced, shape: Any, weight: Tensor | None, bias: Tensor | None) -> Extent:
    r"""Return :math:`\sqrt d \max |\gamma| + \|\beta\|`: a normalized vector is at most :math:`\sqrt d` long."""
    count = math.prod(shape) if isinstance(shape, tuple | list | torch.Size) else int(shape)
    length = math.sqrt(count) * UPWARDS
    scale = 1.0 if weight is None else largest(weight)
    shift = 0.0 if bias is None else largest(torch.linalg.vector_norm(precise(bias)))
    largest_shift = 0.0 if bias is None else largest(bias)
    return Extent(length * scale + largest_shift, length * scale + shift)


@for_functions("layer_norm", book=EXTENTS)
@for_modules(nn.LayerNorm, book=EXTENTS, settings="normalized_shape weight bias")
def _layer_norm(
    op: Operation,
    bound: Bound,
    input: Traced,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    *_: Any,
    **__: Any,
) -> Extent:
    return _of_norm(input, normalized_shape, weight, bias)


@for_functions("rms_norm", book=EXTENTS)
@for_modules(nn.RMSNorm, book=EXTENTS, settings="normalized_shape weight")
def _rms_norm(
    op: Operation, bound: Bound, input: Traced, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Extent:
    return _of_norm(input, normalized_shape, weight, None)


@for_functions("group_norm", book=EXTENTS)
@for_modules(nn.GroupNorm, book=EXTENTS, settings="num_groups weight bias")
def _group_norm(
    op: Operation,
    bound: Bound,
    input: Traced,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    *_: Any,
    **__: Any,
) -> Extent:
    count = input.value[:1].numel() / num_groups
    scale = 1.0 if weight is None else largest(weight)
    return Extent(math.sqrt(count) * scale * UPWARDS + (0.0 if bias is None else largest(bias)))


@for_functions("normalize", book=EXTENTS)
def _normalize(
    op: Operation, bound: Bound, input: Traced, p: float = 2.0, dim: Any = 1, *_: Any, **__: Any
) -> Extent | None:
    if p != 2 or not isinstance(dim, int):  # noqa: PLR2004  # the Euclidean norm
        return None
    return Extent(UPWARDS, UPWARDS, dim % input.value.ndim - input.value.ndim)


@for_modules(nn.Linear, book=EXTENTS)
def _linear_layer(op: Operation, bound: Bound, input: Traced) -> Extent:
    return _of_product(bound, input, op.module.bias)


@for_functions("linear", book=EXTENTS)
def _linear(op: Operation, bound: Bound, input: Any, weight: Any, bias: Any = None) -> Extent | None:
    return _of_product(bound, input, bias)


def _of_product(bound: Bound, input: Traced, bias: Tensor | None) -> Extent:
    radius = math.inf if bound.own is None else times(input.radius(), bound.own) + _length(bias)
    return Extent(radius, radius)


@for_functions("addmm", book=EXTENTS)
def _addmm(
    op: Operation, bound: Bound, input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1
) -> Extent | None:
    if isinstance(input, Traced) or not isinstance(mat1, Traced) or isinstance(mat2, Traced):
        return None
    # The rule gives the norm of the matrix only if `alpha` is 1.
    extent = _of_product(bound, mat1, None) if alpha == 1 else Extent()
    shift = _length(input) * abs(beta)
    return Extent(extent.radius + shift, extent.radius + shift)


@for_functions("matmul bmm mm", book=EXTENTS)
def _matmul(op: Operation, bound: Bound, input: Any, other: Any, *_: Any) -> Extent:
    if not isinstance(other, Traced) and other.layout == torch.strided and other.ndim == 2:  # noqa: PLR2004  # a matrix
        products = _products(op, input, known(other, -2))
        length = _of_product(bound, input, None).radius
        return Extent(min(products.entries, length), length, scores=products.scores)
    return _products(op, known(input), known(other, -2))


def _products(op: Operation, first: Traced, second: Traced) -> Extent:
    return products_extent(number_of_products(op.output, first, second), first, second)


@for_functions("einsum", book=EXTENTS)
def _einsum(op: Operation, bound: Bound, equation: Any, *operands: Any) -> Extent | None:
    if not isinstance(equation, str) or len(operands) != 2:  # noqa: PLR2004  # two factors
        return None
    labels, output = parsed(equation, operands)
    named = list(zip(map(known, operands), labels, strict=True))
    matrices = as_matrices(named, output)
    if matrices is None:
        return None
    extent = products_extent(matrices.batches, matrices.first, matrices.second)
    is_last = [*matrices.rows, *matrices.columns] == [*output[-2:]]
    scores = extent.scores if is_last else None
    if len(matrices.columns) != 1:
        return Extent(extent.entries, scores=scores)
    return Extent(extent.entries, extent.radius, output.index(matrices.columns[0]) - len(output), scores)


@for_functions("add sub subtract", book=EXTENTS)
def _add(op: Operation, bound: Bound, input: Any, other: Any, *, alpha: float = 1) -> Extent:
    terms = [(each, abs(factor)) for each, factor in ((input, 1), (other, alpha))]
    traced = [each for each, _ in terms if isinstance(each, Traced)]
    dim = next((each.bound.extent.dim for each in traced if math.isfinite(each.bound.extent.radius)), -1)
    entries = radius = 0.0
    scores: Scores | None = Scores(0.0, 0.0)
    for each, factor in terms:
        if isinstance(each, Traced):
            entries += times(each.bound.extent.entries, factor)
            radius += times(_along(each, dim, op.output), factor)
            scores = _sum(scores, _of_same(each, op.output), factor)
        else:
            value = as_tensor(each, traced[0].value)
            if value.layout != torch.strided:
                return Extent()
            entries += largest(value) * factor
            radius += _length(value.expand(op.output.shape), dim) * factor
    return Extent(entries, radius, dim, scores)


@for_functions("rsub", book=EXTENTS)
def _rsub(op: Operation, bound: Bound, input: Any, other: Any, *, alpha: float = 1) -> Extent:
    return _add(op, bound, other, input, alpha=alpha)


def _along(each: Traced, dim: int, output: Tensor) -> float:
    """Return the largest length of a vector along a dimension after broadcasting."""
    if not output.ndim or each.value.ndim < -dim or each.value.shape[dim] != output.shape[dim]:
        return times(each.bound.extent.entries, math.sqrt(output.shape[dim]) if output.ndim else 1.0)
    return each.radius(dim)


def _of_same(each: Traced, output: Tensor) -> Scores | None:
    """Return the scores of a value; None if they are probabilities already, or broadcast."""
    scores = each.bound.extent.scores
    return None if scores is None or scores.are_shares or each.value.shape != output.shape else scores


def _sum(first: Scores | None, second: Scores | None, factor: float) -> Scores | None:
    if first is None or second is None:
        return None
    return Scores(first.by_row + second.by_row * factor, first.by_column + second.by_column * factor)


@for_functions("mul multiply", book=EXTENTS)
def _mul(op: Operation, bound: Bound, input: Any, other: Any) -> Extent:
    if isinstance(input, Traced) and isinstance(other, Traced):
        known_size = rescaled(op, input, other)
        if known_size is not None:
            return known_size[1]
        first, second = input.bound.extent, other.bound.extent
        dim = first.dim
        radius = min(
            times(_along(input, dim, op.output), second.entries), times(_along(other, dim, op.output), first.entries)
        )
        return Extent(times(first.entries, second.entries), radius, dim)
    argument, constant = (input, other) if isinstance(input, Traced) else (other, input)
    factor = largest(as_tensor(constant, argument.value))
    before, scores = argument.bound.extent, _of_same(argument, op.output)
    radius = times(_along(argument, before.dim, op.output), factor)
    return Extent(times(before.entries, factor), radius, before.dim, _sum(Scores(0.0, 0.0), scores, factor))


@for_functions("div divide true_divide truediv", book=EXTENTS)
def _div(
    op: Operation, bound: Bound, input: Any, other: Any, *, rounding_mode: str | None = None, **_: Any
) -> Extent | None:
    if rounding_mode is not None:  # rounding may enlarge an entry by 1
        return None
    if isinstance(other, Traced):
        known_size = rescaled(op, input, other, is_quotient=True)
        return known_size and known_size[1]
    return _mul(op, bound, input, as_tensor(other, input.value).reciprocal())


@for_functions("pow", book=EXTENTS)
def _pow(op: Operation, bound: Bound, input: Any, exponent: Any) -> Extent | None:
    if not isinstance(input, Traced) or not isinstance(exponent, int | float) or exponent < 1:
        return None
    return Extent(power(input.bound.extent.entries, exponent))


@for_functions("square", book=EXTENTS)
def _square(op: Operation, bound: Bound, input: Traced) -> Extent | None:
    return _pow(op, bound, input, 2)


@for_functions("masked_fill", book=EXTENTS)
def _masked_fill(op: Operation, bound: Bound, input: Traced, mask: Any, value: Any = 0) -> Extent:
    filled = largest(as_tensor(value, input.value))
    filled = math.inf if math.isnan(filled) else filled
    before = input.bound.extent
    size = math.sqrt(op.output.shape[before.dim]) if op.output.ndim else 1.0
    radius = math.hypot(_along(input, before.dim, op.output), filled * size)
    # Filled entries do not change.
    return Extent(max(before.entries, filled), radius, before.dim, _of_same(input, op.output))


@for_functions("where", book=EXTENTS)
def _where(op: Operation, bound: Bound, condition: Any, input: Any, other: Any) -> Extent | None:
    if isinstance(condition, Traced) or isinstance(input, Traced) == isinstance(other, Traced):
        return None
    argument, filled = (input, other) if isinstance(input, Traced) else (other, input)
    return _masked_fill(op, bound, argument, condition, plain(filled))


@for_functions("cat concat concatenate", book=EXTENTS)
def _cat(op: Operation, bound: Bound, tensors: Any, dim: int = 0, *_: Any, **__: Any) -> Extent:
    parts = [known(each) for each in tensors]
    along = parts[0].bound.extent.dim
    lengths = [each.radius(along) for each in parts]
    is_same = dim % op.output.ndim == along % op.output.ndim
    radius = math.hypot(*lengths) if is_same else max(lengths)
    return Extent(max(each.bound.extent.entries for each in parts), radius, along)
