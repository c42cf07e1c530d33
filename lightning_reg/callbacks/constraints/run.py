"""The state of a constraint during one fit, and the form in which it gets the weights."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg import _checks
from lightning_reg.callbacks.trainer.guarded_steps import Guard
from lightning_reg.callbacks.trainer.held_weights import with_gradient
from lightning_reg.callbacks.trainer.plan import Plan, describe
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
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
        if self.schedule is None:
            return 1.0
        return _checks.in_range(f"schedule({self.tick})", self.schedule(self.tick), 0, 1)

    @torch.no_grad()
    def show(self, act: Act, optimizer: Optimizer, tick: int) -> None:
        """Pass the weights of `optimizer` to `act`, which only reads them."""
        self.tick = tick
        for tensors, _ in self._as_wanted(self._trained(optimizer, with_gradient(optimizer))):
            act(tensors)

    @torch.no_grad()
    def project(self, act: Act, optimizer: Optimizer, moved: AbstractSet[Tensor], tick: int) -> None:
        """Have `act` change the weights of `optimizer`, which has just moved `moved`."""
        self.guard.unseen.see(optimizer, moved)
        self.tick = tick
        weights = self._trained(optimizer, moved)
        # Fused optimizers check themselves, inside `step`, whether gradients are finite. So only the device knows
        # whether this step was skipped.
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
        parts = local_parts([weight.parameter.detach() for weight in weights]) if found_inf is not None else []
        before = [part.clone() for part in parts]
        for tensors, put_back in self._as_wanted(weights):
            act(tensors)
            put_back()
        for part, old in zip(parts, before, strict=True):
            part.copy_(torch.where(torch.as_tensor(found_inf == 0), part, old))

    def plan(self, settings: str, action: str, optimizers: Sequence[Optimizer]) -> Plan:
        """Return what happens to each weight: `action` if it is chosen."""
        held = self.guard.held.of(optimizers)
        return Plan(
            settings,
            shapes={weight.name: describe(weight) for weight in self.selection.weights},
            actions={
                weight.name: action
                if weight.parameter in held and weight.parameter.requires_grad
                else f"{action} (not trained at the moment)"
                for weight in self.selection.chosen
            },
            left_out=self.selection.left_out,
        )

    def _trained(self, optimizer: Optimizer, moved: AbstractSet[Tensor]) -> list[Weight]:
        """Return the weights of a step of `optimizer`; none if it moves nothing."""
        if not moved:
            return []
        held = self.guard.held.of([optimizer])
        return [
            weight for weight in self.selection.chosen if weight.parameter in held and weight.parameter.requires_grad
        ]

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
