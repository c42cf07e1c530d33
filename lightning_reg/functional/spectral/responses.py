r"""The largest norm of a convolution's frequency response on a grid, exactly, and with few eigenvalue problems.

At frequency :math:`\omega` the response is :math:`K(\omega) = \sum_t K_t e^{i \omega p_t}`, a matrix between channels.
A large response is compared with c, the largest norm so far. :math:`c^2 - K K^*` has a Cholesky factor exactly if the
norm of K is below c. This test takes a quarter of the time of eigenvalues. If it fails, the eigenvalues are computed,
and c grows. In random order, n frequencies set about log n records: five or six for 130.

The Gram matrices need only one product for each pair of taps, and none for each frequency:

.. math:: K K^* = \sum_t K_t K_t^T + \sum_{t < t'} \cos(\omega d) (P + P^T) + i \sin(\omega d) (P - P^T)

with :math:`P = K_{t'} K_t^T` and :math:`d = p_{t'} - p_t`; pairs at the same distance are summed once. For 3 x 3
taps, 45 real products and 13 distances replace 130 complex products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_reg.functional.spectral.matrices import eigenvalue_work, largest_singular_value

# The number of complex entries in one batch of frequencies.
_ENTRIES = 1 << 22
# For smaller matrices, eigenvalues take less time than the search.
_LARGE = 64
# The square of a skipped norm may exceed the square of c by this share. The result includes the share.
_PASSED_OVER = 1e-5


@dataclass(frozen=True, slots=True)
class Axis:
    """The sampling of one spatial dimension: the phase and the grid position of each tap that counts."""

    taps: list[int]
    phases: list[int]
    positions: list[int]
    points: int
    factor: float  # factor on the bound, for the grid and the padding


def largest_response(weight: Tensor, groups: int, axes: Sequence[Axis]) -> Tensor:
    """Return the largest norm over all frequencies of the grid and all groups, times the factors of the axes."""
    for dim, axis in enumerate(axes, start=2):
        if len(axis.taps) < weight.shape[dim]:
            weight = weight.index_select(dim, torch.tensor(axis.taps, dtype=torch.long, device=weight.device))
    weight = weight.flatten(2)
    response = _Response(weight.view(groups, weight.shape[0] // groups, *weight.shape[1:]), axes)
    with torch.no_grad():
        if groups == 1 and response.size > _LARGE:
            largest, best, above = _searched(response)
        else:
            norms = torch.cat([largest_singular_value(response.at(some)) for some in response.batches()])
            largest, best, above = norms.max(), norms.argmax().view(1), 1.0
            best = response.frequencies[best // groups] * groups + best % groups
    if torch.is_grad_enabled() and weight.requires_grad:
        # Only one frequency has a gradient. A graph of the others would hold all their matrices.
        matrix = response.at(best // groups).index_select(1, best % groups)
        largest = largest_singular_value(matrix).squeeze()
    return largest * above * math.prod(axis.factor for axis in axes)


def response_work(shape: Sequence[int], taps: int, points: int) -> float:
    """Return about how many operations `largest_response` takes for one group, at the speed of products."""
    short, long = sorted(shape)
    if short <= _LARGE:
        return points * (2.0 * eigenvalue_work((short, long)))
    # Half of the points count, because opposite ones are conjugate. Each takes a complex factorization, and sums of
    # complex matrices.
    return taps * (taps + 1) * float(short) ** 2 * long + points * float(short) ** 2 * (2 * short + 8 * taps)


class _Response:
    """The matrices between channels at the frequencies of a grid."""

    def __init__(self, taps: Tensor, axes: Sequence[Axis]) -> None:
        self.taps = taps  # (groups, outputs, inputs, taps)
        self._points = [axis.points for axis in axes]
        device = taps.device
        positions = torch.cartesian_prod(
            *(torch.tensor(axis.positions, dtype=torch.long, device=device) for axis in axes)
        )
        self.positions = positions.view(-1, len(axes))
        phase = torch.zeros(1, dtype=torch.long, device=device)
        self.phases = 1
        for axis in axes:
            count = 1 + max(axis.phases, default=0)
            phase = (phase[:, None] * count + torch.tensor(axis.phases, dtype=torch.long, device=device)).flatten()
            self.phases *= count
        self.phase_of_tap = phase
        self._in_phase = torch.nn.functional.one_hot(phase, self.phases).to(taps.dtype)  # (taps, phases)
        self.size = min(taps.shape[1], taps.shape[2] * self.phases)
        # Opposite frequencies have conjugate matrices, so one of the two is enough.
        every = torch.arange(math.prod(self._points), device=device)
        opposite, rest, unit = torch.zeros_like(every), every, 1
        for points in reversed(self._points):
            opposite += (-rest % points) * unit
            rest, unit = rest // points, unit * points
        self.frequencies = every[every <= opposite]

    def batches(self) -> Sequence[Tensor]:
        """Return the indices of all frequencies up to conjugates, in parts that fit into memory."""
        entries = math.prod(self.taps.shape[:-1]) * self.phases
        return torch.split(self.frequencies, max(_ENTRIES // max(entries, 1), 1))

    def at(self, indices: Tensor) -> Tensor:
        """Return the matrices at frequencies, shape (frequencies, groups, outputs, inputs * phases)."""
        turns = self.turns(indices, self.positions)
        waves = torch.polar(torch.ones_like(turns), 2 * math.pi * turns)  # (frequencies, taps)
        waves = waves[..., None] * self._in_phase
        response = self.taps.to(waves.dtype) @ waves.transpose(0, 1).flatten(1)
        return response.view(*response.shape[:3], len(turns), self.phases).movedim(3, 0).flatten(3)

    def turns(self, indices: Tensor, positions: Tensor) -> Tensor:
        """Return the phase in full turns at frequencies and positions, shape (frequencies, positions)."""
        turns = torch.zeros((), dtype=self.taps.dtype, device=self.taps.device)
        for dim in reversed(range(len(self._points))):
            points = self._points[dim]
            # Whole numbers keep the angle exact even for large kernels.
            turns = turns + ((indices % points)[:, None] * positions[:, dim] % points).to(turns.dtype) / points
            indices = indices // points
        return turns


def _searched(response: _Response) -> tuple[Tensor, Tensor, float]:
    """Return the largest norm found, its frequency, and the factor by which other norms may exceed it."""
    order = response.frequencies.cpu()
    # The order is always the same, so all ranks agree.
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))].to(response.taps.device)
    best, above = order[:1], math.sqrt(1 + _PASSED_OVER)
    largest = largest_singular_value(response.at(best)).squeeze()
    if len(order) == 1 or not bool(largest.isfinite()):
        return largest, best, above
    grams_at = _grams(response, len(order))
    for batch in torch.split(order[1:], max(_ENTRIES // response.size**2, 1)):
        some, rest = batch, grams_at(batch).neg_()
        diagonals = rest.diagonal(dim1=-2, dim2=-1).clone()
        while len(some):
            rest.diagonal(dim1=-2, dim2=-1).copy_(diagonals + (1 + _PASSED_OVER) * largest.square())
            is_open = torch.linalg.cholesky_ex(rest)[1] != 0
            some, rest, diagonals = some[is_open], rest[is_open], diagonals[is_open]
            if len(some):
                norm = largest_singular_value(response.at(some[:1])).squeeze()
                if bool(norm > largest):
                    largest, best = norm, some[:1]
                some, rest, diagonals = some[1:], rest[1:], diagonals[1:]
    return largest, best, above


def _grams(response: _Response, frequencies: int) -> Callable[[Tensor], Tensor]:
    """Return a function that maps frequencies to Gram matrices of the responses' shorter sides, or to conjugates."""
    outputs, inputs, count = response.taps.shape[1:]
    by_rows = outputs <= inputs * response.phases
    # A complex product takes four real ones.
    if (by_rows or response.phases == 1) and 0 < count * (count + 1) // 2 <= 4 * frequencies:
        return _from_pairs(response, by_rows=by_rows)

    def multiplied(some: Tensor) -> Tensor:
        parts = []
        for one in torch.split(some, max(_ENTRIES // (outputs * inputs * response.phases), 1)):
            matrices = response.at(one)[:, 0]
            parts.append(matrices @ matrices.mH if by_rows else matrices.mH @ matrices)
        return torch.cat(parts)

    return multiplied


def _from_pairs(response: _Response, *, by_rows: bool) -> Callable[[Tensor], Tensor]:
    taps = response.taps[0].permute(2, 0, 1)
    taps = (taps if by_rows else taps.mT).contiguous()
    positions, phases = response.positions.tolist(), response.phase_of_tap.tolist()
    even: dict[tuple[int, ...], Tensor] = {}
    odd: dict[tuple[int, ...], Tensor] = {}
    for second, place in enumerate(positions):
        for first in range(second + 1):
            if phases[first] != phases[second]:
                continue
            product = taps[second] @ taps[first].mT
            distance = tuple(a - b for a, b in zip(place, positions[first], strict=True))
            if first == second:
                even[distance] = even[distance].add_(product) if distance in even else product
                continue
            for sums, part in ((even, product + product.mT), (odd, product - product.mT)):
                sums[distance] = sums[distance].add_(part) if distance in sums else part
    odd = odd or {distance: torch.zeros_like(some) for distance, some in even.items()}  # a single tap has no odd part
    reals, imaginaries = (torch.stack(list(sums.values())).flatten(1) for sums in (even, odd))
    device, size = response.taps.device, response.size
    even_steps, odd_steps = (torch.tensor(list(sums), dtype=torch.long, device=device) for sums in (even, odd))

    def assembled(some: Tensor) -> Tensor:
        real = (2 * math.pi * response.turns(some, even_steps)).cos() @ reals
        imaginary = (2 * math.pi * response.turns(some, odd_steps)).sin() @ imaginaries
        return torch.complex(real, imaginary).view(-1, size, size)

    return assembled
