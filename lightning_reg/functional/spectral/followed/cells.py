"""A grid of all frequencies of a convolution, sorted into cells.

A cell is a part of the frequencies in which the norm has few maxima. Opposite frequencies have conjugate responses, so
one of the two is enough.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# The number of cells along an axis is the degree of the response plus the first number, or the second if it is the only
# axis, but at least the third. The fourth number limits all cells together.
_MORE_CELLS, _MORE_CELLS_ALONE, _LEAST_CELLS = 3, 10, 4
_MOST_CELLS = 20
# Points of the grid along an axis of a cell, at least and at most, and along a whole axis for each degree.
_POINTS, _MOST_POINTS, _POINTS_FOR_DEGREE = 2, 3, 3


class Taps(NamedTuple):
    """The positions of the taps, for all kernels of one kind."""

    positions: tuple[tuple[int, ...], ...]
    """One position for each tap, with a number for each spatial dimension."""
    phases: tuple[int, ...]
    """The phase of the stride for each tap."""

    @classmethod
    def of(cls, kernel: tuple[int, ...], steps: tuple[int, ...]) -> "Taps":
        """Return the taps of a kernel. `steps` is the stride without its common factor with the dilation."""
        places = torch.cartesian_prod(*(torch.arange(size) for size in kernel)).view(-1, len(kernel)).tolist()
        positions = [tuple(tap // step for tap, step in zip(place, steps, strict=True)) for place in places]
        phases = [_index([tap % step for tap, step in zip(place, steps, strict=True)], steps) for place in places]
        ranks = {phase: rank for rank, phase in enumerate(sorted(set(phases)))}
        return cls(tuple(positions), tuple(ranks[phase] for phase in phases))


class Cells(NamedTuple):
    """The grid of a kind of kernels. A kernel's response is the sum of its taps times their waves."""

    positions: Tensor  # of the taps, shape (taps, dims)
    phases: Tensor  # of the stride, ones and zeros, shape (taps, phases)
    points: Tensor  # (cells, points, dims)
    spacing: Tensor  # of the points, shape (dims,)
    point_waves: Tensor  # (cells * points, taps)

    @staticmethod
    @lru_cache(maxsize=64)
    def of(taps: Taps, dtype: torch.dtype, device: torch.device) -> "Cells":
        """Return the cells for such kernels."""
        degrees = [max(places) - min(places) for places in zip(*taps.positions, strict=True)]
        more = _MORE_CELLS if sum(map(bool, degrees)) > 1 else _MORE_CELLS_ALONE
        counts = [max(degree + more, _LEAST_CELLS) if degree else 1 for degree in degrees]
        while math.prod(counts) > 2 * _MOST_CELLS:
            counts[counts.index(max(counts))] -= 1
        places = torch.cartesian_prod(*(torch.arange(count) for count in counts)).view(-1, len(counts)).tolist()
        opposite = [[-number % count for number, count in zip(place, counts, strict=True)] for place in places]
        half = [pair[0] for pair in zip(places, opposite, strict=True) if pair[0] <= pair[1]]
        numbers = [_points(degree, count) for degree, count in zip(degrees, counts, strict=True)]
        widths = 2 * math.pi / torch.tensor(counts, dtype=torch.float64) * (torch.tensor(degrees) > 0)
        inner = ((torch.arange(number, dtype=torch.float64) - (number - 1) / 2) / number for number in numbers)
        offsets = torch.cartesian_prod(*inner).view(-1, len(counts))
        points = (torch.tensor(half, dtype=torch.float64)[:, None] + offsets) * widths
        positions = torch.tensor(taps.positions, dtype=torch.float64)
        phases = torch.nn.functional.one_hot(torch.tensor(taps.phases), max(taps.phases) + 1)
        return Cells(
            positions.to(device, dtype),
            phases.to(device, dtype),
            points.to(device, dtype),
            (widths / torch.tensor(numbers)).to(device, dtype),
            _waves(points.flatten(0, 1), positions).to(dtype=dtype.to_complex(), device=device),
        )

    def waves(self, at: Tensor) -> Tensor:
        """Return exp(-i <p_t, w>) for frequencies of shape (..., dims), shape (..., taps)."""
        return _waves(at, self.positions)


def _waves(at: Tensor, positions: Tensor) -> Tensor:
    angles = at @ positions.mT
    return torch.polar(torch.ones_like(angles), -angles)


def _points(degree: int, cells: int) -> int:
    """Return the number of points of the grid along an axis of a cell."""
    if not degree:
        return 1
    return min(max(_POINTS, math.ceil(_POINTS_FOR_DEGREE * degree / cells)), _MOST_POINTS)


def _index(place: list[int], sizes: tuple[int, ...]) -> int:
    index = 0
    for number, size in zip(place, sizes, strict=True):
        index = index * size + number
    return index
