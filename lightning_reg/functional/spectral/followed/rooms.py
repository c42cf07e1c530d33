r"""The distance that matrices may still move below a bound, measured without a copy of the old matrices.

With k random rows S whose entries have variance 1 / k, :math:`\|S \Delta\|_F` is about :math:`\|\Delta\|_F`, and
:math:`\sigma(W + \Delta) \le \sigma(W) + \|\Delta\|_F`. The difference between the bound and the norm is the room of
a matrix. The matrix stays inside the bound while its sketch S W, k vectors, moves by at most an eighth of the room.
The check costs one product with a few vectors per step.

It is least certain for a change of rank one. Then :math:`\|S \Delta\|_F^2 / \|\Delta\|_F^2` has the distribution
:math:`\chi^2_k / k`. With k = 8 it is below :math:`8^{-2}` with a probability of 6e-7. S never changes, and the weights
do not depend on it.

Reference: Woodruff, Sketching as a Tool for Numerical Linear Algebra, 2014, arXiv:1411.4357.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.spectral.followed.subspaces import start_basis

_ROWS = 8
_CERTAIN = 8.0
# Where matrices leave their room in fewer steps than the first number, 1, 2, 4, ... steps pass before the next one, at
# most as many as the second: a room is certified, which costs as much as a few steps of following.
_WORTH, _LONGEST = 4, 16


class _Room(NamedTuple):
    sketch: Tensor  # (matrices, vectors, columns), from when the room was noted; no vectors during a pause
    room: Tensor  # (matrices,)
    waits: Tensor  # (2,): the steps until the next sketch, below 0 those since it, and the last pause


class Rooms:
    """The room of matrices below a bound, by name. It works only on a CPU, where reading values is free."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}

    def is_inside(self, name: str, matrices: Tensor) -> bool:
        """Tell whether matrices, shape (matrices, rows, columns), are almost certainly still within their room."""
        known = self._rooms.get(name)
        if known is None or not known.sketch.numel() or matrices.device.type != "cpu":
            return False
        sketch = _sketch(matrices)
        if sketch.shape != known.sketch.shape:  # the state belongs to other weights
            return False
        moved = torch.linalg.vector_norm(sketch - known.sketch, dim=(-2, -1)) * _CERTAIN
        is_inside = all((moved <= known.room).tolist())  # NaN counts as outside
        if is_inside:
            self._rooms[name] = known._replace(waits=known.waits - torch.tensor([1, 0]))
        return is_inside

    def is_due(self, name: str) -> bool:
        """Tell whether `note` will take the matrices as known to be inside, so that they had better be certified."""
        return self._waits(name)[0] <= 0

    def note(self, name: str, matrices: Tensor, room: Tensor) -> None:
        """Note the present room of matrices, shaped as in `is_inside`."""
        if matrices.device.type != "cpu":
            return
        left, pause = self._waits(name)
        sketch = _sketch(matrices) if left <= 0 else matrices.new_zeros(len(matrices), 0, matrices.shape[-1])
        self._rooms[name] = _Room(sketch, room, torch.tensor([left, pause]))

    def _waits(self, name: str) -> tuple[int, int]:
        """Return the steps until the next sketch (0 or less: now) and the pause, for matrices that are not inside."""
        known = self._rooms.get(name)
        if known is None:
            return 0, 0
        left, pause = known.waits.tolist()
        if not known.sketch.numel():
            return left - 1, pause
        pause = 0 if -left >= _WORTH else min(max(1, 2 * pause), _LONGEST)
        return pause, pause

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state for `load`, by name."""
        return {name: {key: part.clone() for key, part in room._asdict().items()} for name, room in self._rooms.items()}

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Continue from an entry of the result of `state`. Anything else is ignored."""
        parts = [state.get(key) for key in _Room._fields]
        sketch, room, waits = (part if isinstance(part, Tensor) else torch.empty(0) for part in parts)
        count = sketch.shape[:1]
        if sketch.ndim == 3 and room.shape == count and waits.shape == (2,) and waits.dtype == torch.long:  # noqa: PLR2004
            self._rooms[name] = _Room(sketch.clone(), room.clone(), waits.clone())


def _sketch(matrices: Tensor) -> Tensor:
    sketch: Tensor = _random_rows(matrices.shape[-2], matrices.dtype, matrices.device) @ matrices
    return sketch


@lru_cache(maxsize=16)
def _random_rows(entries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = min(_ROWS, entries)
    return start_basis(rows, entries, dtype=dtype, device=device) * math.sqrt(entries / rows)
