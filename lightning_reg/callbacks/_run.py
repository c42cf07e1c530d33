"""What a penalty knows during one `fit`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg import _checks
from lightning_reg.callbacks._ledger import Ledger
from lightning_reg.callbacks._plan import Plan
from lightning_reg.callbacks._proximal import StepHooks
from lightning_reg.callbacks._targets import Targets
from lightning_reg.selection import Selection


@dataclass
class Run:
    """State of one penalty between the start and the end of `fit`; nothing in it has to survive a resume."""

    name: str
    selection: Selection
    targets: Targets
    acts_at_step: bool
    """Whether the term acts at the optimizer step (its gradient right before, or its operator right after), instead of
    through the loss."""
    schedule: Callable[[int], float] | None = None
    """The user's, with durations in ticks."""
    pending: float = 0.0
    """Share of the coming optimizer step whose backward passes have run, but whose gradient is not yet added."""
    share: float = 0.0
    """Share of the optimizer step that is about to be taken."""
    first_step: bool = True
    has_run_backward: bool = False
    has_stepped: bool = False
    ledger: Ledger = field(default_factory=Ledger)
    quota: Callable[[int], float] | None = None
    """Which share of weights, or groups, the penalty has to make zero at a step, instead of having a strength."""
    strength: Tensor | None = None
    """What that took in the last step."""
    hooks: StepHooks = field(default_factory=StepHooks)

    def factor(self, tick: int) -> float:
        """Return the factor on the strength at `tick`."""
        return 1.0 if self.schedule is None else _checks.non_negative(f"schedule({tick})", self.schedule(tick))

    def plan(self, settings: str, action: str, optimizers: Sequence[Optimizer]) -> Plan:
        """Return what happens to each weight: `action` if it is chosen."""
        trained = set(self.targets.of(optimizers))
        return Plan(
            settings,
            shapes={weight.name: weight.shape for weight in self.selection.weights},
            actions={
                weight.name: action if weight.parameter in trained else f"{action} (not trained at the moment)"
                for weight in self.selection.chosen
            },
            left_out=self.selection.left_out,
        )


def log_name(callback: object, callbacks: Sequence[object]) -> str:
    """Return the name of the callback's class in snake case; `-1`, `-2` ... tell those of one name apart."""
    name = _snake_case(callback)
    position = [other for other in callbacks if _snake_case(other) == name].index(callback)
    return f"{name}-{position}" if position else name


def _snake_case(callback: object) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(callback).__name__.removesuffix("Penalty"))
    return words.lower() or "penalty"
