"""Constraints on zeros: keep existing zeros, or set all but the largest entries of each group to zero."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.constraints.base import Constraint
from lightning_reg.callbacks.trainer.step_hooks import Turn
from lightning_reg.functional.constraints.pattern import keep_largest_, leave_
from lightning_reg.functional.penalties.counts import check_dim
from lightning_reg.functional.tensors.shards import local_parts
from lightning_reg.schedules import Constant, Piecewise, Schedule
from lightning_reg.schedules.base import check_schedule
from lightning_reg.selection import Select


class ZerosConstraint(Constraint):
    """Base of constraints that keep entries at zero which are exactly zero right before a step.

    Subclasses say in `timetable` when: while it is not 0.
    """

    change = "zeros"
    takes_shards = True
    turn = Turn.ENTRIES

    @override
    def look(self, weights: list[Tensor]) -> None:
        if self._run is not None and self._run.share:
            self._run.left.append([torch.ne(part, 0, out=self._mask_like(part)) for part in local_parts(weights)])

    @override
    def project(self, weights: list[Tensor]) -> None:
        if self._run is not None and self._run.left:
            for part, left in zip(local_parts(weights), self._run.left.pop(0), strict=True):
                leave_(part, left)
                self._run.spare.setdefault((part.shape, part.device), []).append(left)

    def _mask_like(self, part: Tensor) -> Tensor:
        """Return memory for a mask; reuse it from the last step, because allocating costs more than filling."""
        spare = self._run.spare.get((part.shape, part.device)) if self._run is not None else None
        return spare.pop() if spare else torch.empty(part.shape, dtype=torch.bool, device=part.device)


@final
class KeepZeros(ZerosConstraint):
    r"""Keep zeros: from step :math:`t_0` on, an entry that is exactly zero right before a step is zero after it.

    This holds for any optimizer, so the set of zeros only grows. Combine it with a penalty in `mode="proximal"` and a
    schedule that falls to 0 by `start`: the zeros stay, and the penalty no longer shrinks the other weights. The lasso
    then becomes least squares on the selected features.

    Logged: nothing during training. TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        start: :math:`t_0`, the first optimizer step: an int, or a float in (0, 1] as a share of the whole run.
        select: Which weights, see `Constraint`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `start` is negative or not a share in (0, 1], see `Constraint`; when training starts, if it is a
            share of a run of unknown length.
        MisconfigurationException: See `Constraint`.

    Example:
        >>> from lightning_reg import L1Penalty, Piecewise
        >>> callbacks = [L1Penalty(0.1, mode="proximal", schedule=Piecewise((1.0, 0.0), (0.5,))), KeepZeros(0.5)]

    Reference:
        Belloni & Chernozhukov, Least Squares after Model Selection in High-dimensional Sparse Models, 2013,
        arXiv:1001.0188.

    """

    def __init__(self, start: float = 0.5, *, select: str | Sequence[str] | Select | None = None) -> None:
        super().__init__(select=select)
        if isinstance(start, int) and not isinstance(start, bool):
            self.start: float = _checks.count("start", start, 0)
        elif 0 < _checks.number("start", start) <= 1:
            self.start = start
        else:
            msg = f"`start` must be an int >= 0 (steps), or a float in (0, 1] (share of the run), got {start}."
            raise ValueError(msg)

    @override
    def timetable(self) -> Schedule:
        return Piecewise((0.0, 1.0), (self.start,)) if self.start else Constant(1.0)


@final
class NMSparsity(Constraint):
    r"""Keep n of every m entries: after each step, set all but the n largest magnitudes in each group of m to zero.

    A group is m consecutive entries along `dim`: by default, inputs of one output unit. Among equal magnitudes, the
    first stays. With a schedule s, the :math:`m - \mathrm{round}((m - n) s(t))` largest stay, so entries vanish one by
    one. Sparse tensor cores can multiply 2 of 4 (`torch.sparse.to_sparse_semi_structured`).

    Logged: nothing during training. TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        n: Number of entries that stay in each group, >= 1 and below m.
        m: Number of entries in each group.
        dim: The dimension along which groups lie: 1 for input units or channels, 0 for output units, in any layout (see
            `MaxNorm`).
        schedule: :math:`s(t)`, a schedule, or a callable that maps the number of optimizer steps so far to a share in
            [0, 1]. Default: 1.
        select: Which weights, see `Constraint`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Constraint`; when training starts, if m does not divide the
            size of a weight along `dim`.
        MisconfigurationException: See `Constraint`.

    Example:
        The first of 4 entries vanishes after a tenth of the run, the second after half of it:

        >>> from lightning_reg import Piecewise
        >>> callback = NMSparsity(2, 4, select="encoder.*", schedule=Piecewise((0.0, 0.5, 1.0), (0.1, 0.4)))

    Reference:
        Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378.

    """

    change = "zeros"
    takes_shards = True
    turn = Turn.GROUPS

    def __init__(
        self,
        n: int = 2,
        m: int = 4,
        *,
        dim: int = 1,
        schedule: Schedule | Callable[[int], float] | None = None,
        select: str | Sequence[str] | Select | None = None,
    ) -> None:
        super().__init__(select=select)
        self.n, self.m = _checks.count("n", n, 1), _checks.count("m", m, 2)
        if self.n >= self.m:
            msg = f"`n` must be below `m`={m}, got {n}."
            raise ValueError(msg)
        self.dim = _checks.integer("dim", dim)
        if schedule is not None:
            check_schedule(schedule, "from step to share")
        self.schedule = schedule

    @override
    def check(self, name: str, weight: Tensor) -> None:
        check_dim([weight], self.dim)
        if weight.shape[self.dim] % self.m:
            msg = (
                f"NMSparsity: `m` must divide the size of {name!r} along `dim`={self.dim}, got m={self.m} and a size of"
                f" {weight.shape[self.dim]}. To leave the weight out, pass `select=Select(exclude={name!r})`."
            )
            raise ValueError(msg)

    @override
    def timetable(self) -> Schedule | Callable[[int], float] | None:
        return self.schedule

    @override
    def project(self, weights: list[Tensor]) -> None:
        share = 1.0 if self._run is None else self._run.share
        keep = self.m - round((self.m - self.n) * share)
        if keep < self.m:
            keep_largest_(weights, keep, self.m, dim=self.dim)
