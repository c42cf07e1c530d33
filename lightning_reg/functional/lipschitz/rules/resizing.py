r"""Rules of interpolation. Each mode multiplies by one matrix along each dimension in turn.

The norm of :math:`A_1 \otimes A_2 \otimes \dots` is exactly :math:`\prod \|A_i\|`. The matrices are torch's results
for unit vectors. They are computed in the dtype of the input, which rounds positions in the same way.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightning_reg.functional.lipschitz.budget import norm_in_time
from lightning_reg.functional.lipschitz.rules.pooling import positive
from lightning_reg.functional.lipschitz.rules.registry import for_functions, for_modules
from lightning_reg.functional.lipschitz.value import NoBoundError, Operation, Traced


def _resized(op: Operation, input: Any, sizes: Any, scales: Any, mode: str, settings: dict[str, Any]) -> float:
    images = input.value
    dims = images.ndim - 2
    # Other dimensions keep at most two entries. A single output column stays single, because antialiasing on a CPU then
    # weights all rows alike, as it does in the network.
    kept = [min(2, size) for size in op.output.shape[2:]]
    norms = []
    for dim in range(dims):
        alone: dict[str, Any] = {}
        if sizes is not None:
            alone["size"] = [op.output.shape[2 + place] if place == dim else kept[place] for place in range(dims)]
        if scales is not None:
            scale = scales[dim] if isinstance(scales, Sequence) else scales
            alone["scale_factor"] = [scale if place == dim else 1.0 for place in range(dims)]
        count = images.shape[dim + 2]
        units = images.new_zeros(count, 1, *(count if place == dim else kept[place] for place in range(dims)))
        line = (slice(None), 0, *(slice(None) if place == dim else 0 for place in range(dims)))
        units[line] = torch.eye(count, dtype=images.dtype, device=images.device)
        norms.append(norm_in_time(functional.interpolate(units, mode=mode, **alone, **settings)[line]))
    return math.prod(norms)


@for_functions("interpolate upsample")
@for_modules(
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    settings="size scale_factor mode align_corners recompute_scale_factor",
)
def _interpolate(
    op: Operation,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> float:
    settings = {
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
        "antialias": antialias,
    }
    return _resized(op, input, size, scale_factor, mode, settings)


@for_functions("upsample_nearest")
def _upsample_nearest(op: Operation, input: Any, size: Any = None, scale_factor: Any = None) -> float:
    return _resized(op, input, size, scale_factor, "nearest", {})


@for_functions("upsample_bilinear")
def _upsample_bilinear(op: Operation, input: Any, size: Any = None, scale_factor: Any = None) -> float:
    return _resized(op, input, size, scale_factor, "bilinear", {"align_corners": True})


@for_functions("grid_sample")
def _grid_sample(
    op: Operation,
    input: Any,
    grid: Any,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> float:
    if isinstance(grid, Traced):
        msg = "its positions depend on the input, and an image may change by any amount between two positions"
        raise NoBoundError(msg)
    if mode == "bicubic":
        msg = "its rule does not cover `mode='bicubic'`"
        raise NoBoundError(msg)
    # The weights of the samples are never negative.
    return positive(op, input, grid.double(), mode=mode, padding_mode=padding_mode, align_corners=align_corners)
