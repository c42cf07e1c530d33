"""The state of weight decay during one fit: the chosen weights, and the reference learning rates."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.decay.kinds import Kind, Rates, found_rate, share_of, shrink_, shrink_cautiously_
from lightning_reg.callbacks.trainer.decays import time_scale
from lightning_reg.callbacks.trainer.guarded_steps import Guard
from lightning_reg.callbacks.trainer.plan import Plan, plan_of
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps, step_happens
from lightning_reg.callbacks.trainer.timetable import factor_at
from lightning_reg.functional.tensors.chunks import NumberOrTensor, alike
from lightning_reg.functional.tensors.shards import local_parts
from lightning_reg.selection import Selection


@dataclass
class Run:
    """Weight decay between the start and the end of one fit."""

    name: str
    value: float
    kind: Kind
    selection: Selection
    guard: Guard
    schedule: Callable[[int], float] | None = None
    """The user's schedule, with durations in ticks."""
    steps: AroundSteps | None = None
    rates: dict[tuple[int, int], Rates] = field(default_factory=dict)
    """By the positions of optimizer and parameter group."""
    shares: list[NumberOrTensor] = field(default_factory=list)
    """The share that the current optimizer step took, for each parameter group."""
    first_step: bool = True
    _copies: dict[Tensor, Tensor] = field(default_factory=dict)
    """For "cautious" decay: memory for copies of weights, kept because new memory costs more than a copy."""
    _waiting: list[tuple[list[Tensor], list[Tensor], NumberOrTensor]] = field(default_factory=list)
    """For "cautious" decay: weights, their copies from before the current update, and the share to take."""

    def strength(self, tick: int) -> float:
        """Return the strength of the decay at `tick`."""
        return self.value * factor_at(self.schedule, tick)

    def members(self, optimizer: Optimizer) -> Iterator[tuple[int, dict[str, Any], list[Tensor]]]:
        """Yield the parameter groups of `optimizer` that hold chosen weights, with their position and those weights."""
        chosen: set[Tensor] = {weight.parameter for weight in self.selection.chosen}
        for position, group in enumerate(optimizer.param_groups):
            weights = [weight for weight in group["params"] if weight in chosen and weight.requires_grad]
            if weights:
                yield position, group, weights

    @torch.no_grad()
    def before_update(self, position: int, optimizer: Optimizer, tick: int) -> None:
        """Shrink the weights that `optimizer`, at that position, is about to update; or copy them."""
        strength = self.strength(tick)
        happens = step_happens(optimizer)
        for index, group, weights in self.members(optimizer):
            share = self._share(position, index, group, strength)
            self.shares.append(share)
            owners = [weight for weight in weights if weight.grad is not None]
            if not owners or (not isinstance(share, Tensor) and not share):
                continue
            share = share if happens is None else share * happens
            parts = local_parts([weight.detach() for weight in owners])
            if self.kind == "cautious":
                copies = [self._copy_of(weight, part) for weight, part in zip(owners, parts, strict=True)]
                torch._foreach_copy_(copies, parts)
                self._waiting.append((parts, copies, share))
            else:
                shrink_(parts, share)

    @torch.no_grad()
    def after_update(self, optimizer: Optimizer, moved: AbstractSet[Tensor]) -> None:
        """Shrink the weights of `optimizer` that `before_update` copied."""
        self.guard.unseen.see(optimizer, has_gradient=bool(moved))
        for weights, before, share in self._waiting:
            shrink_cautiously_(weights, before, share)
        self._waiting.clear()

    def largest_share(self) -> NumberOrTensor:
        """Return the largest share over the parameter groups that the last step updated."""
        if any(isinstance(share, Tensor) for share in self.shares):
            return torch.stack(alike(self.shares)).amax()
        return max(self.shares, default=0.0)

    def coming_shares(self, optimizers: Sequence[Optimizer], tick: int) -> dict[Tensor, NumberOrTensor]:
        """Return the share that the coming step takes of each weight with a gradient."""
        shares: dict[Tensor, NumberOrTensor] = {}
        for position, optimizer in enumerate(optimizers):
            for index, group, weights in self.members(optimizer):
                shares |= dict.fromkeys(weights, self._share(position, index, group, self.strength(tick)))
        return shares

    def actions(self, optimizers: Sequence[Optimizer], steps_in_epoch: float | None) -> dict[Tensor, str]:
        """Return what happens to each trained weight, with its time scale."""
        actions: dict[Tensor, str] = {}
        for position, optimizer in enumerate(optimizers):
            for index, group, weights in self.members(optimizer):
                rate = group.get("initial_lr", group["lr"])
                share = share_of(self.kind, self.value, rate, self._rates(position, index, group))
                # Reading a tensor would wait for the device, and a rate that is yet to be found says nothing.
                is_open = isinstance(share, Tensor) or found_rate(self.kind, group) is not None
                scale = "" if is_open else time_scale(float(share), steps_in_epoch)
                actions |= dict.fromkeys(weights, f"{self.kind} {self.value:g}{scale}")
        return actions

    def plan(self, settings: str, optimizers: Sequence[Optimizer], steps_in_epoch: float | None) -> Plan:
        """Return what happens to each weight, trained or not."""
        actions = self.actions(optimizers, steps_in_epoch)
        idle = f"{self.kind} {self.value:g}"
        return plan_of(settings, self.selection, actions, lambda weight: actions.get(weight.parameter, idle))

    def state(self) -> list[dict[str, Any]]:
        """Return the state that a resume needs."""
        return [
            {"group": group, "first": _plain(rates.first), "largest": _plain(rates.largest)}
            for group, rates in self.rates.items()
        ]

    def restore(self, saved: Sequence[dict[str, Any]]) -> None:
        """Continue from the result of `state`."""
        self.rates = {tuple(entry["group"]): Rates(entry["first"], entry["largest"]) for entry in saved}

    def _copy_of(self, weight: Tensor, part: Tensor) -> Tensor:
        if weight not in self._copies:
            self._copies[weight] = torch.empty_like(part)
        return self._copies[weight]

    def _share(self, position: int, index: int, group: dict[str, Any], strength: float) -> NumberOrTensor:
        rates = self._rates(position, index, group)
        rates.note(group["lr"])
        share, found = share_of(self.kind, strength, group["lr"], rates), found_rate(self.kind, group)
        return share if found is None else share * found

    def _rates(self, position: int, index: int, group: dict[str, Any]) -> Rates:
        """Return the recorded rates of a parameter group."""
        if (position, index) not in self.rates:
            first = group.get("initial_lr", group["lr"])
            self.rates[position, index] = Rates(_copied(first), _copied(group["lr"]))
        return self.rates[position, index]


def _copied(rate: NumberOrTensor) -> NumberOrTensor:
    # A scheduler changes a rate in place if it is a tensor.
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _plain(rate: NumberOrTensor) -> NumberOrTensor:
    return rate.detach().cpu().clone() if isinstance(rate, Tensor) else rate
