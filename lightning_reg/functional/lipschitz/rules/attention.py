"""Rules of attention as one function or layer. `dot_products` derives the bound."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.budget import norm_in_time
from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise, times
from lightning_reg.functional.lipschitz.rules.dot_products import (
    UNBOUNDED_ROWS,
    attended,
    known,
    mean_deviation,
    scores_of,
)
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, for_functions, for_modules, without_bound
from lightning_reg.functional.lipschitz.value import (
    Bound,
    Extent,
    NoBoundError,
    Operation,
    Scores,
    Traced,
    constant,
    larger,
    largest,
    together,
)

for_functions("multi_head_attention_forward")(
    without_bound("no rule covers it; use `nn.MultiheadAttention` or `scaled_dot_product_attention`")
)


@for_functions("scaled_dot_product_attention")
def _attention(
    op: Operation,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Bound:
    constant(attn_mask)
    if dropout_p:
        msg = "a `dropout_p` above 0 makes it random, so it has no fixed Lipschitz constant"
        raise NoBoundError(msg)
    queries, keys, values = known(query), known(key), known(value)
    if scale is None:
        scale = 1 / math.sqrt(queries.value.shape[-1])
    rows, width = op.output.shape[-2:]
    batches = op.output.numel() / max(rows * width, 1)
    scores = scores_of(batches, queries, keys, scale)
    # Heads may share values, and batches broadcast.
    there = math.sqrt(batches * width * values.value.shape[-2] / max(values.value.numel(), 1))
    bound = attended(scores, rows, values.radius(), values.bound.value * there)
    if math.isinf(bound) and math.inf in {each.radius() for each in (queries, keys, values)}:
        raise NoBoundError(UNBOUNDED_ROWS)
    return Bound(bound * UPWARDS)


@for_functions("scaled_dot_product_attention", book=EXTENTS)
def _attention_extent(op: Operation, bound: Bound, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Extent:
    return Extent(known(value).bound.extent.entries, known(value).radius())


@for_modules(nn.MultiheadAttention)
def _attention_layer(
    op: Operation,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Bound:
    constant([key_padding_mask, attn_mask])
    inputs = known(query), known(key), known(value)
    # The constant of the layer alone is its bound for inputs that change by 1.
    alone = [
        replace(each, bound=replace(each.bound, value=1.0 if isinstance(given, Traced) else 0.0))
        for each, given in zip(inputs, (query, key, value), strict=True)
    ]
    norms = _norms(op.module)
    own = _of_heads(op, norms, (alone[0], alone[1], alone[2]), need_weights, average_attn_weights)
    if math.isinf(own):
        raise NoBoundError(UNBOUNDED_ROWS)
    return Bound(_of_heads(op, norms, inputs, need_weights, average_attn_weights), own=own)


class _Norms(NamedTuple):
    """The norms of the weights of a layer."""

    projections: list[float]
    """For queries, keys and values."""
    heads: list[Tensor]
    """For the same, of each head, shape (heads,), float64."""
    output: float


def _norms(module: nn.MultiheadAttention) -> _Norms:
    weights, width = _projections(module), module.embed_dim // module.num_heads
    heads = [_head_norms(weight, width) for weight in weights]
    return _Norms([norm_in_time(weight) for weight in weights], heads, norm_in_time(module.out_proj.weight))


def _head_norms(weight: Tensor, width: int) -> Tensor:
    heads = precise(weight).view(-1, width, weight.shape[1])
    return torch.tensor([norm_in_time(head) for head in heads], dtype=torch.float64)


def _of_heads(
    op: Operation, norms: _Norms, inputs: tuple[Traced, Traced, Traced], has_weights: bool, is_mean: bool
) -> float:
    module = op.module
    width = module.embed_dim // module.num_heads
    radii = [
        _lengths(heads, bias, each, width)
        for heads, bias, each in zip(norms.heads, _biases(module), inputs, strict=True)
    ]
    for index, extra in ((1, module.bias_k), (2, module.bias_v)):
        if extra is not None:  # one more row, which is the same for all inputs
            lengths = torch.linalg.vector_norm(precise(extra).view(-1, width), dim=-1)
            radii[index] = torch.maximum(radii[index], lengths.to(radii[index]))
    changes = [times(each.bound.value, norm) for each, norm in zip(inputs, norms.projections, strict=True)]
    rows = inputs[0].value.shape[-2 if module.batch_first or inputs[0].value.ndim == 2 else 0]  # noqa: PLR2004  # no batch
    scale = 1 / math.sqrt(width)
    # The scores of the worst head, for probabilities. Then the same, times the radius of the head's values.
    alone = Scores(times(changes[0], _most(radii[1])) * scale, times(changes[1], _most(radii[0])) * scale)
    valued = Scores(
        times(changes[0], _most(radii[1] * radii[2])) * scale, times(changes[1], _most(radii[0] * radii[2])) * scale
    )
    out = times(attended(valued, rows, 1.0, changes[2]), norms.output) * UPWARDS
    if not has_weights:
        return out
    return larger(out, mean_deviation(alone, rows) / (math.sqrt(module.num_heads) if is_mean else 1.0))


def _most(values: Tensor) -> float:
    return float(values.amax())


def _projections(module: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    if module.kdim == module.vdim == module.embed_dim:
        first, second, third = module.in_proj_weight.chunk(3)
        return first, second, third
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight


def _biases(module: nn.MultiheadAttention) -> tuple[Tensor | None, ...]:
    bias: Tensor | None = module.in_proj_bias
    return (None, None, None) if bias is None else bias.chunk(3)


def _lengths(norms: Tensor, bias: Tensor | None, value: Traced, width: int) -> Tensor:
    """Return the largest length of a row of each head, shape (heads,), float64."""
    radius = value.radius()
    lengths = torch.full_like(norms, math.inf) if math.isinf(radius) else norms.mul(radius)
    if bias is None:
        return lengths
    shifts: Tensor = torch.linalg.vector_norm(precise(bias).view(-1, width), dim=-1)
    return lengths + shifts.to(lengths) * UPWARDS


@for_modules(nn.MultiheadAttention, book=EXTENTS)
def _attention_layer_extent(
    op: Operation, bound: Bound, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> Extent | None:
    module = op.module
    weight, bias = _projections(module)[2], _biases(module)[2]
    width = module.embed_dim // module.num_heads
    radii = _lengths(_head_norms(weight, width), bias, known(value), width)
    if module.bias_v is not None:
        extra = torch.linalg.vector_norm(precise(module.bias_v).view(len(radii), -1), dim=-1)
        radii = torch.maximum(radii, extra.to(radii))
    radius = together(radii.tolist()) * norm_in_time(module.out_proj.weight)
    if module.out_proj.bias is not None:
        radius += largest(torch.linalg.vector_norm(precise(module.out_proj.bias)))
    # The layer also returns attention weights, which are at most 1.
    return Extent(max(radius, 1.0), max(radius, 1.0)) if math.isfinite(radius) else None
