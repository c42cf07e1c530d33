"""The state of a constraint during one fit, and the form in which it gets the weights."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer.guarded_steps import Guard
from lightning_reg.callbacks.trainer.held_weights import has_gradient
from lightning_reg.callbacks.trainer.plan import Plan, plan_of
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps, step_happens
from lightning_reg.callbacks.trainer.timetable import factor_at
from lightning_reg.functional.tensors.shards import has_dtensors, local_part, local_parts, local_slice, whole
from lightning_reg.selection import Selection, Weight

Act = Callable[[list[Tensor]], None]


@dataclass
class Run:
    """A constraint between the start and the end of one fit; a resume needs nothing of it."""

    selection: Selection
    guard: Guard
    takes_shards: bool
    """Whether the constraint works on DTensors; else it gets them whole, one at a time."""
    steps: AroundSteps | None = None
    schedule: Callable[[int], float] | None = None
    """A schedule from tick to share, with durations in ticks."""
    tick: int = 0
    """The tick of the current step."""
    left: list[list[Tensor]] = field(default_factory=list)
    """Masks of the entries that were not zero before the current step, call by call, for `KeepZeros`."""
    spare: dict[tuple[torch.Size, torch.device], list[Tensor]] = field(default_factory=dict)
    """The masks of the previous step, whose memory is reused."""

    @property
    def share(self) -> float:
        """The value of the schedule at the current step; 1 without a schedule."""
        return factor_at(self.schedule, self.tick, is_share=True)

    @torch.no_grad()
    def show(self, act: Act, optimizer: Optimizer, tick: int) -> None:
        """Pass the weights of `optimizer` to `act`, which only reads them."""
        self.tick = tick
        weights = self.guard.trained([optimizer]) if has_gradient([optimizer]) else []
        for tensors, _ in self._as_wanted(weights):
            act(tensors)

    @torch.no_grad()
    def project(self, act: Act, optimizer: Optimizer, moved: AbstractSet[Tensor], tick: int) -> None:
        """Have `act` change the weights of `optimizer`, which has just moved `moved`."""
        self.guard.unseen.see(optimizer, has_gradient=bool(moved))
        self.tick = tick
        weights = self.guard.trained([optimizer]) if moved else []
        happens = step_happens(optimizer)
        parts = [] if happens is None else local_parts([weight.parameter.detach() for weight in weights])
        before = [part.clone() for part in parts]
        for tensors, put_back in self._as_wanted(weights):
            act(tensors)
            put_back()
        for part, old in zip(parts, before, strict=True):
            part.copy_(torch.where(torch.as_tensor(happens), part, old))

    def plan(self, settings: str, action: str, optimizers: Sequence[Optimizer]) -> Plan:
        """Return what happens to each weight: `action` if it is chosen."""
        trained = {weight.parameter for weight in self.guard.trained(optimizers)}
        return plan_of(settings, self.selection, trained, lambda _: action)

    def _as_wanted(self, weights: Sequence[Weight]) -> Iterator[tuple[list[Tensor], Callable[[], None]]]:
        """Yield lists of tensors with output units first, each with a function that writes back changes of copies."""
        plain: list[Tensor] = []
        others: list[Weight] = []
        for weight in weights:
            tensor = weight.parameter.detach()
            is_gathered = has_dtensors([tensor]) and (weight.blocks > 1 or not self.takes_shards)
            if is_gathered or weight.mask is not None:
                others.append(weight)
            else:
                plain += weight.by_units(tensor)
        if plain:
            yield plain, _nothing
        for weight in others:
            # One by one, because all of them at once may not fit.
            yield _copied(weight)


def _nothing() -> None:
    """Do nothing: the change is in place."""


def _copied(weight: Weight) -> tuple[list[Tensor], Callable[[], None]]:
    """Return a whole copy of an effective weight, and a function that writes it back; collective if it is sharded."""
    parameter = weight.parameter.detach()
    mask = None if weight.mask is None else whole(weight.mask)
    copy = whole(parameter) if mask is None else whole(parameter) * mask

    def put_back() -> None:
        part, new = local_part(parameter), local_slice(copy, parameter)
        part.copy_(new if mask is None else torch.where(local_slice(mask, parameter) != 0, new, part))

    return weight.by_units(copy), put_back
