"""What weight decay knows during one fit: the chosen weights, and the learning rates that it is relative to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg import _checks
from lightning_reg.callbacks.decay.kinds import Kind, Rates, share_of, shrink_, shrink_cautiously_
from lightning_reg.callbacks.trainer.guarded_steps import Guard
from lightning_reg.callbacks.trainer.plan import Plan
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
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
    """The user's, with durations in ticks."""
    steps: AroundSteps | None = None
    rates: dict[tuple[int, int], Rates] = field(default_factory=dict)
    """By the positions of optimizer and parameter group."""
    shares: list[NumberOrTensor] = field(default_factory=list)
    """What the optimizer step at hand has taken from weights, for each parameter group."""
    first_step: bool = True
    _waiting: list[tuple[list[Tensor], list[Tensor], NumberOrTensor]] = field(default_factory=list)
    """For "cautious" decay: weights, what they were before the update at hand, and the share that is to be taken."""

    def strength(self, tick: int) -> float:
        """Return the strength of the decay at `tick`."""
        factor = 1.0 if self.schedule is None else _checks.non_negative(f"schedule({tick})", self.schedule(tick))
        return self.value * factor

    def members(self, optimizer: Optimizer) -> Iterator[tuple[int, dict[str, Any], list[Tensor]]]:
        """Yield the parameter groups of `optimizer` that hold chosen weights, with their position and those weights."""
        chosen: set[Tensor] = {weight.parameter for weight in self.selection.chosen}
        for position, group in enumerate(optimizer.param_groups):
            weights = [weight for weight in group["params"] if weight in chosen and weight.requires_grad]
            if weights:
                yield position, group, weights

    @torch.no_grad()
    def before_update(self, position: int, optimizer: Optimizer, tick: int) -> None:
        """Shrink the weights that `optimizer`, at that position, is about to update; or see what they are before it."""
        strength = self.strength(tick)
        # Fused optimizers look themselves whether gradients are finite, inside `step`.
        found_inf = getattr(optimizer, "found_inf", None)
        for index, group, weights in self.members(optimizer):
            share = self._share(position, index, group, strength)
            self.shares.append(share)
            stepping = [weight.detach() for weight in weights if weight.grad is not None]
            if not stepping or (not isinstance(share, Tensor) and not share):
                continue
            share = share if found_inf is None else share * (found_inf == 0)
            parts = local_parts(stepping)
            if self.kind == "cautious":
                self._waiting.append((parts, [part.clone() for part in parts], share))
            else:
                shrink_(parts, share)

    @torch.no_grad()
    def after_update(self, optimizer: Optimizer) -> None:
        """Shrink the weights of `optimizer` that `before_update` has looked at."""
        self.guard.unseen.see(optimizer)
        for weights, before, share in self._waiting:
            shrink_cautiously_(weights, before, share)
        self._waiting.clear()

    def largest_share(self) -> NumberOrTensor:
        """Return the largest share over the parameter groups that the last step has updated."""
        if any(isinstance(share, Tensor) for share in self.shares):
            return torch.stack(alike(self.shares)).amax()
        return max(self.shares, default=0.0)

    def plan(self, settings: str, optimizers: Sequence[Optimizer], steps_in_epoch: float | None) -> Plan:
        """Return what happens to each weight, with the time in which it would shrink to 1/e by itself."""
        names: dict[Tensor, str] = {weight.parameter: weight.name for weight in self.selection.chosen}
        actions = dict.fromkeys(names.values(), f"{self.kind} {self.value:g} (not trained at the moment)")
        for position, optimizer in enumerate(optimizers):
            for index, group, weights in self.members(optimizer):
                text = f"{self.kind} {self.value:g}"
                rate = group.get("initial_lr", group["lr"])
                share = share_of(self.kind, self.value, rate, self._rates(position, index, group))
                if steps_in_epoch is not None and not isinstance(share, Tensor) and share:
                    text += f", time scale {1 / (share * steps_in_epoch):.3g} epochs"
                actions |= {names[weight]: text for weight in weights}
        shapes = {weight.name: weight.shape for weight in self.selection.weights}
        return Plan(settings, shapes=shapes, actions=actions, left_out=self.selection.left_out)

    def state(self) -> list[dict[str, Any]]:
        """Return what has to survive a resume."""
        return [
            {"group": group, "first": _plain(rates.first), "largest": _plain(rates.largest)}
            for group, rates in self.rates.items()
        ]

    def restore(self, saved: Sequence[dict[str, Any]]) -> None:
        """Go on from what `state` has returned."""
        self.rates = {tuple(entry["group"]): Rates(entry["first"], entry["largest"]) for entry in saved}

    def _share(self, position: int, index: int, group: dict[str, Any], strength: float) -> NumberOrTensor:
        rates = self._rates(position, index, group)
        rates.note(group["lr"])
        return share_of(self.kind, strength, group["lr"], rates)

    def _rates(self, position: int, index: int, group: dict[str, Any]) -> Rates:
        """Return what is known of the rate of a parameter group."""
        if (position, index) not in self.rates:
            first = group.get("initial_lr", group["lr"])
            self.rates[position, index] = Rates(_copied(first), _copied(group["lr"]))
        return self.rates[position, index]


def _copied(rate: NumberOrTensor) -> NumberOrTensor:
    # Schedulers change a rate that is a tensor in place.
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _plain(rate: NumberOrTensor) -> NumberOrTensor:
    return rate.detach().cpu().clone() if isinstance(rate, Tensor) else rate
