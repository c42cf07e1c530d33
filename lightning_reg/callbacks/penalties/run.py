"""The state of a penalty on weights during one fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.penalties.ledger import TermRun
from lightning_reg.callbacks.penalties.quota import Quota
from lightning_reg.callbacks.penalties.rounding import RoundedAway
from lightning_reg.callbacks.penalties.targets import Targets
from lightning_reg.callbacks.trainer.plan import Plan, plan_of
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.callbacks.trainer.unseen_steps import UnseenSteps
from lightning_reg.selection.weights import Selection


@dataclass
class Run(TermRun):
    """State of one penalty between the start and the end of `fit`; a resume needs nothing of it."""

    selection: Selection
    targets: Targets
    unit_dims: Mapping[Tensor, int]
    """The dimension of each chosen weight along which its units lie; empty if each entry is a unit."""
    stacks: frozenset[Tensor] = field(default_factory=frozenset, kw_only=True)
    """The chosen weights that are stacks of matrices, for terms of matrices."""
    acts_at_step: bool
    """Whether the term acts at the optimizer step (its gradient right before, or its operator right after), instead of
    through the loss."""
    are_sharded: bool
    """Whether the optimizers hold parts of weights, as FSDP leaves them on each rank."""
    unseen: UnseenSteps
    told: str = ""
    """The planned strengths, if another callback sets the strength. The plan shows this text instead of a number."""
    strength: float = 0.0
    """The strength in the current step, times the schedule."""
    pending: float = 0.0
    """Share of the coming optimizer step whose backward passes have run, but whose gradient is not yet added."""
    share: float = 0.0
    """Share of the next optimizer step."""
    quota: Quota | None = None
    """The share of weights, or groups, to make zero, instead of a fixed strength."""
    needed: Tensor | dict[Tensor, Tensor] | None = None
    """The strength for the quota in the last step, or one strength for each weight."""
    rounded_away: RoundedAway = field(default_factory=RoundedAway)
    hooks: AroundSteps | None = None
    """The hooks that take proximal steps after the steps of the optimizers."""

    def action(self, strength: float) -> str:
        """Return the entry of the plan for a weight: the term and its strength."""
        return f"{self.name} {self.told or f'{strength:g}'}"

    @override
    def forget(self) -> None:
        self.pending = 0.0
        super().forget()

    def take_share(self, *, automatic: bool) -> float:
        """Return, once, the share of a full gradient in the last step.

        A step that Lightning did not announce has the shares of the backward passes before it.
        """
        share = (self.share or self.pending) if automatic else 1.0
        self.share = self.pending = 0.0
        return share

    def strength_at(self, strength: float, tick: int) -> float:
        """Return `strength` times the factor at `tick`, and store it for the formulas."""
        self.strength = strength * self.factor(tick)
        return self.strength

    def largest_factor(self, tick: int) -> float:
        """Return the largest factor on the strength, as far as it is known at `tick`."""
        return self.factor(tick) if self.schedule is None else max(self.factor(tick), self.schedule.peak)

    def plan(self, settings: str, action: str, optimizers: Sequence[Optimizer]) -> Plan:
        """Return what happens to each weight: `action` if it is chosen."""
        return plan_of(settings, self.selection, set(self.targets.of(optimizers)), lambda _: action)
