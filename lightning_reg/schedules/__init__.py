"""Value over time: pure functions of the tick, so that resuming a run needs no state.

A tick counts from 0 in the interval of the callback that holds the schedule (for a penalty: optimizer steps).
A duration is an `int` (ticks) or a `float` in (0, 1] (that share of the whole run). A schedule with shares has to
learn how long the run is before it can be called: callbacks do that, and so does `Schedule.resolve`.
"""

from lightning_reg.schedules.base import Schedule, resolve
from lightning_reg.schedules.pieces import Piecewise, Sequence
from lightning_reg.schedules.ramps import Constant, Cosine, Exponential, Linear
from lightning_reg.schedules.recipes import curriculum_dropout, early_dropout, late_dropout

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Schedule",
    "Sequence",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
    "resolve",
]
