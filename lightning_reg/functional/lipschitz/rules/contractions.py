r"""Rules of tensor contractions, as in einsum, where one factor depends on the input.

.. math:: y_{bro} = \sum_{k} C_{brk} \sum_s x_{bkso}

where C is the product of all constants. As a map of x, this is a block diagonal matrix. The indices are

- b, in x, C and y: one block for each;
- k, in x and C only: the columns of a block;
- r, in C and y only: the rows of a block;
- s, in x only: these are summed;
- o, in x and y only: these repeat the same map.

Hence the norm is exactly :math:`\max_b \|C_b\| \sqrt{|s|}`. `dot_products` bounds two factors that depend on the input.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.budget import norm_in_time
from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise, times
from lightning_reg.functional.lipschitz.rules.dot_products import dot_products, number_of_products
from lightning_reg.functional.lipschitz.rules.layers import dense
from lightning_reg.functional.lipschitz.rules.registry import for_function, for_functions, for_modules
from lightning_reg.functional.lipschitz.value import Bound, Extent, NoBoundError, Operation, Traced, constant, largest

# Numbers that name dimensions.
Labels = Sequence[int]
# torch's limit on the number of names.
_NAMES = 52
# Sparse matrices with more entries, zeros included, are bounded by row and column sums.
_DENSE = 1 << 22


def contracted(operands: Sequence[tuple[Any, Labels]], output: Labels) -> Bound:
    """Return the bound of a product that is summed over all labels missing from `output`."""
    (argument, mine), *more = [each for each in operands if isinstance(each[0], Traced)]
    both = as_matrices(operands, output) if len(operands) == 1 + len(more) == 2 else None  # noqa: PLR2004  # both vary
    if both is not None:
        return dot_products(both.batches, both.first, both.second)
    constant([each for each, _ in more])
    others = [
        (each if each.layout == torch.strided else each.to_dense(), labels)
        for each, labels in operands
        if each is not argument
    ]
    sizes = _sizes([(argument.value, mine), *others])
    # A dimension of one entry broadcasts, so it does not count.
    columns = {label for label, size in zip(mine, argument.value.shape, strict=True) if size == sizes[label] != 1}
    product, labels = _product(others, columns | {label for label in output if sizes[label] != 1})
    batch = [label for label in labels if label in columns and label in output]
    inner = [label for label in labels if label in columns and label not in output]
    outer = [label for label in labels if label not in columns]
    matrices = product.permute([labels.index(label) for label in (*batch, *outer, *inner)])
    matrices = matrices.reshape(
        math.prod(sizes[label] for label in batch),
        math.prod(sizes[label] for label in outer),
        math.prod(sizes[label] for label in inner),
    )
    copies = math.sqrt(math.prod(sizes[label] for label in columns.difference(output, labels)))
    if copies == 1 and not batch and inner == [*mine[-1:]] and outer == [*output[-1:]] and len(set(mine)) == len(mine):
        return dense(argument.bound, matrices[0])
    before: Bound = argument.bound
    return before.after(_largest_norm(matrices) * copies)


class Matrices(NamedTuple):
    """A product of two tensors, written as a product of matrices."""

    batches: float
    first: Traced
    second: Traced
    rows: Labels
    columns: Labels


def as_matrices(operands: Sequence[tuple[Traced, Labels]], output: Labels) -> Matrices | None:
    """Return a contraction of two tensors as a product of matrices; None if it cannot be written as one."""
    (first, mine), (second, other) = operands
    if second.bound.extent.scores is not None and first.bound.extent.scores is None:
        # Attention weights come first. The transposed product has the same bound.
        (first, mine), (second, other) = (second, other), (first, mine)
    sizes = _sizes([(first.value, mine), (second.value, other)])
    batch = [label for label in output if label in mine and label in other]
    rows = [label for label in output if label in mine and label not in other]
    columns = [label for label in output if label in other and label not in mine]
    summed = [label for label in mine if label in other and label not in output]
    if sorted(mine) != sorted([*batch, *rows, *summed]) or sorted(other) != sorted([*batch, *columns, *summed]):
        return None
    if any([*t.value.shape] != [sizes[label] for label in names] for t, names in ((first, mine), (second, other))):
        return None
    return Matrices(
        math.prod(sizes[label] for label in batch),
        _matrices(first, mine, batch, rows, summed),
        _matrices(second, other, batch, summed, columns),
        rows,
        columns,
    )


def _matrices(each: Traced, labels: Labels, batch: Labels, left: Labels, right: Labels) -> Traced:
    """Return a tensor as a batch of matrices, with what is known of it."""
    tensor = each.value.permute([labels.index(label) for label in (*batch, *left, *right)])
    shape = [math.prod(each.value.shape[labels.index(label)] for label in part) for part in (batch, left, right)]
    extent, along = each.bound.extent, [labels[each.bound.extent.dim]] if labels else []
    radius, dim = next(
        ((extent.radius, dim) for part, dim in ((right, -1), (left, -2)) if part == along), (math.inf, -1)
    )
    scores = extent.scores if [*labels[-2:]] == [*left, *right] else None
    return Traced(tensor.reshape(shape), replace(each.bound, extent=Extent(extent.entries, radius, dim, scores)))


def _sizes(operands: Iterable[tuple[Tensor, Labels]]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for tensor, labels in operands:
        for label, size in zip(labels, tensor.shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
    return sizes


def _product(constants: Sequence[tuple[Tensor, Labels]], kept: set[int]) -> tuple[Tensor, list[int]]:
    """Return the product of constants, summed over the labels that are not kept, and its labels."""
    full = [
        (tensor.squeeze([d for d, size in enumerate(tensor.shape) if size == 1]), _long(tensor, labels))
        for tensor, labels in constants
    ]
    labels = sorted({label for _, names in full for label in names} & kept)
    if len(full) == 1 and sorted(full[0][1]) == labels:
        return full[0][0].permute([full[0][1].index(label) for label in labels]), labels
    if not full:
        return torch.ones((), dtype=torch.float64), []
    if any(tensor.is_complex() for tensor, _ in full):
        full = [(tensor.to(torch.complex128), names) for tensor, names in full]
    # Sums of products are formed in double precision.
    arguments = [part for tensor, names in full for part in (precise(tensor), names)]
    return torch.einsum(*arguments, labels), labels


def _long(tensor: Tensor, labels: Labels) -> list[int]:
    return [label for label, size in zip(labels, tensor.shape, strict=True) if size != 1]


def _largest_norm(matrices: Tensor) -> float:
    if not matrices.numel():
        return 0.0
    if 1 in matrices.shape[1:]:
        # There may be many vectors, and their norms need no decomposition.
        return largest(torch.linalg.vector_norm(precise(matrices), dim=(1, 2)))
    norms = [norm_in_time(matrix) for matrix in matrices]
    return math.nan if any(map(math.isnan, norms)) else max(norms)


def parsed(equation: str, operands: Sequence[Any]) -> tuple[list[Labels], Labels]:
    """Return the labels of each operand and of the result. Dimensions of an ellipsis are counted from its end."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    numbers: dict[str | int, int] = {}
    terms = left.split(",")
    ranks = [(each.value if isinstance(each, Traced) else each).ndim for each in operands]
    extras = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    widest = max((extra for term, extra in zip(terms, extras, strict=True) if "..." in term), default=0)
    if not arrow:
        once = sorted(name for name in set(left) - set(".,") if left.count(name) == 1)
        right = "..." + "".join(once)

    def labels(term: str, extra: int) -> Labels:
        before, dots, after = term.partition("...")
        names: list[str | int] = [*before, *(range(-extra, 0) if dots else ()), *after]
        return [numbers.setdefault(name, len(numbers)) for name in names]

    found = [labels(term, extra) for term, extra in zip(terms, extras, strict=True)], labels(right, widest)
    if len(numbers) > _NAMES:
        msg = f"its rule covers at most {_NAMES} dimensions, got {len(numbers)}"
        raise NoBoundError(msg)
    return found


def by_equation(equation: str, *operands: Any) -> Bound:
    """Return the bound of an einsum."""
    labels, output = parsed(equation, operands)
    return contracted(list(zip(operands, labels, strict=True)), output)


@for_functions("einsum")
def _einsum(op: Operation, equation: str, *operands: Any) -> Bound:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return by_equation(equation, *operands)


@for_functions("matmul bmm mm mv dot")
def _matmul(op: Operation, input: Any, other: Any, *_: Any) -> Bound:
    if isinstance(input, Traced) and isinstance(other, Traced):
        return dot_products(number_of_products(op.output, input, other), input, other)
    for each in (input, other):
        if isinstance(each, Tensor) and each.layout != torch.strided and each.numel() > _DENSE:
            before: Bound = (other if each is input else input).bound
            return before.after(_sparse_norm(each))
    first, second = _rank(input) > 1, _rank(other) > 1
    equation = f"...{'i' * first}j,...j{'k' * second}->...{'i' * first}{'k' * second}"
    return by_equation(equation, input, other)


for_function(torch.sparse.mm, _matmul)


def _sparse_norm(matrix: Tensor) -> float:
    r"""Return :math:`\sqrt{\|A\|_1 \|A\|_\infty}`, which is at least the norm; NaN if an entry is not finite."""
    entries = matrix.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
    sums = []
    for dim, size in enumerate(matrix.shape):
        each = torch.zeros(size, dtype=torch.float64, device=matrix.device)
        sums.append(largest(each.index_add(0, entries.indices()[dim], precise(entries.values()).abs())))
    return math.sqrt(sums[0]) * math.sqrt(sums[1]) * UPWARDS


@for_functions("linear")
def _linear(op: Operation, input: Any, weight: Any, bias: Any = None) -> Bound:
    factors = any(isinstance(each, Traced) for each in (input, weight))
    bound = (
        by_equation("...i,oi->...o" if _rank(weight) > 1 else "...i,i->...", input, weight) if factors else Bound(0.0)
    )
    if not isinstance(bias, Traced):
        return bound
    copies = math.sqrt(op.output.numel() / max(bias.value.numel(), 1))
    return Bound(bound.value + times(bias.bound.value, copies))


def _rank(tensor: Any) -> int:
    return int((tensor.value if isinstance(tensor, Traced) else tensor).ndim)


@for_functions("tensordot")
def _tensordot(op: Operation, a: Any, b: Any, dims: Any = 2, out: Any = None) -> Bound:
    ranks = _rank(a), _rank(b)
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = range(ranks[0] - dims, ranks[0]), range(dims)
    pairs = list(zip(*([dim % rank for dim in each] for each, rank in zip(dims, ranks, strict=True)), strict=True))
    first = list(range(ranks[0]))
    second = list(range(ranks[0], ranks[0] + ranks[1]))
    for left, right in pairs:
        second[right] = first[left]
    summed = {first[left] for left, _ in pairs}
    return contracted([(a, first), (b, second)], [label for label in (*first, *second) if label not in summed])


@for_functions("inner")
def _inner(op: Operation, input: Any, other: Any) -> Bound:
    ranks = _rank(input), _rank(other)
    first, second = [*range(ranks[0])], [*range(ranks[0], sum(ranks))]
    if 0 not in ranks:
        second[-1] = first[-1]
        return contracted([(input, first), (other, second)], [*first[:-1], *second[:-1]])
    return contracted([(input, first), (other, second)], [*first, *second])


@for_functions("outer ger kron")
def _all_products(op: Operation, input: Any, other: Any) -> Bound:
    ranks = _rank(input), _rank(other)
    first, second = [*range(ranks[0])], [*range(ranks[0], sum(ranks))]
    # The result of `kron` has other dimensions, but the same entries.
    bound = contracted([(input, first), (other, second)], [*first, *second])
    return Bound(bound.value)


@for_functions("vdot")
def _vdot(op: Operation, input: Any, other: Any) -> Bound:
    return by_equation("i,i->", input, other)


@for_functions("chain_matmul")
def _chain_matmul(op: Operation, *matrices: Any, out: Any = None) -> Bound:
    return contracted([(each, [i, i + 1]) for i, each in enumerate(matrices)], [0, len(matrices)])


@for_functions("bilinear")
def _bilinear(op: Operation, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Bound:
    constant([weight, bias])
    return by_equation("...i,oij,...j->...o", input1, weight, input2)


@for_modules(nn.Bilinear)
def _bilinear_layer(op: Operation, input1: Any, input2: Any) -> Bound:
    first, second = (Traced(x.value, Bound(1.0)) if isinstance(x, Traced) else x for x in (input1, input2))
    own = _bilinear(op, first, second, op.module.weight).value
    return replace(_bilinear(op, input1, input2, op.module.weight), own=own)


def _cross(op: Operation, input: Any, other: Any, dim: int | None = None, out: Any = None) -> float:
    argument, factor = (input, other) if isinstance(input, Traced) else (other, input)
    factor = precise(constant(factor))
    if dim is None:
        dim = argument.value.shape.index(3)
    # In three dimensions, the product with c rotates the part orthogonal to c and scales it by the length of c.
    squares = factor.abs().square().sum(dim, keepdim=True).movedim(dim, 0)
    shape = op.output.movedim(dim, 0).shape[1:]
    met = squares.expand(1, *shape).sum_to_size(1, *argument.value.movedim(dim, 0).shape[1:])
    return largest(met.sqrt())


for_functions("cross")(_cross)
for_function(torch.linalg.cross, lambda op, input, other, *, dim=-1, out=None: _cross(op, input, other, dim))
