"""Values over time: pure functions of the tick, so that resuming a run needs no state.

A tick counts from 0 in the interval of the callback that holds the schedule (a penalty counts optimizer steps).
A duration is an `int` (ticks) or a `float` in (0, 1] (that share of the whole run). A schedule with shares must know
the length of the run before it can be called: callbacks set it, and so does `Schedule.resolve`.
"""

from typing import TYPE_CHECKING

from lightning_reg.schedules.base import Schedule as Schedule
from lightning_reg.schedules.base import resolve as resolve
from lightning_reg.schedules.pieces import Piecewise as Piecewise
from lightning_reg.schedules.pieces import Sequence as Sequence
from lightning_reg.schedules.ramps import Constant as Constant
from lightning_reg.schedules.ramps import Cosine as Cosine
from lightning_reg.schedules.ramps import Exponential as Exponential
from lightning_reg.schedules.ramps import Linear as Linear
from lightning_reg.schedules.recipes import curriculum_dropout as curriculum_dropout
from lightning_reg.schedules.recipes import early_dropout as early_dropout
from lightning_reg.schedules.recipes import late_dropout as late_dropout

if not TYPE_CHECKING:
    __all__ = sorted(name for name, item in globals().items() if callable(item))
