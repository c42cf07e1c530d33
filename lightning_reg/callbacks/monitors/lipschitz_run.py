"""The measurements of the Lipschitz monitor during one `fit`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_reg.callbacks.monitors.certificate import Certificate
from lightning_reg.callbacks.monitors.lipschitz_target import OfOneTensor, Target
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer, is_a, rank_zero_warn
from lightning_reg.functional.lipschitz.bound import lipschitz_bound
from lightning_reg.functional.lipschitz.budget import Speed, now, within
from lightning_reg.functional.lipschitz.jacobian import jacobian_norm
from lightning_reg.functional.lipschitz.nested import found
from lightning_reg.functional.lipschitz.stand_in import stand_in
from lightning_reg.tensorboard import tags

_NODES_NAMED = 5
# Upper bounds may take this many seconds before the budget counts.
_GRACE = 5.0
# Rounding alone can put a lower bound above the upper bound by at most this share. In half precision, the limit is this
# many units in the last place.
_ROUNDING, _UNITS = 1e-3, 16


class Found(NamedTuple):
    """The numbers of one step."""

    summary: Mapping[str, float]
    """The numbers of the whole network, by tag."""
    layers: Mapping[str, float]
    """The upper bound of each layer, by name."""


@dataclass
class Run:
    """State of the monitor between the start and the end of `fit`. A resumed run does not need it."""

    target: Target
    suffix: str
    """The end of the tags of the whole network, which tells several monitors apart."""
    has_layers: bool
    """Whether to compute the bounds of single layers."""
    inputs: Tensor | tuple[Any, ...] | None = None
    """Samples for the lower bound, from the last batch at a logging step."""
    last_step: int | None = None
    """The latest training step of this run."""
    lower: float = math.nan
    lower_step: int | None = None
    upper_step: int | None = None
    has_warned: bool = False
    has_contradicted: bool = False
    budget: float = math.inf
    """The share of the training time that upper bounds may take."""
    all_labels: bool = False
    """Whether upper bounds must hold for any whole numbers in the batch."""
    start: float = field(default_factory=now)
    spent: float = 0.0
    """Seconds that upper bounds have taken so far."""
    speed: Speed = field(default_factory=Speed)
    """How fast norms are computed. It predicts which norms would exceed the budget."""
    has_warned_of_budget: bool = False
    certificate: Certificate | None = None
    """The certified accuracy of the current validation."""

    def check(self, trainer: Trainer) -> None:
        """Raise if the target cannot be evaluated on the samples."""
        try:
            self._norms(trainer)
        except Exception as error:  # a user's module can raise anything
            name = self.target.name or type(self.target.module).__name__
            msg = (
                f"LipschitzMonitor cannot evaluate {name!r} on {_described(self.inputs)}, the first floating-point"
                f" tensor of the batch or the result of `input_transform`: {error} Pass `target=`, the name of a part"
                " of the network that is a function of one tensor, and `input_transform=`, a function from the batch"
                " to the input of that part."
            )
            raise MisconfigurationException(msg) from error

    def measure(self, trainer: Trainer, *, upper: bool) -> Found:
        """Return the lower bound after the last step and, if `upper`, the upper bound; a collective call.

        Values that were already returned for that step are left out.
        """
        summary: dict[str, float] = {}
        layers: dict[str, float] = {}
        if self.lower_step != self.last_step:
            self.lower, self.lower_step = self._lower_bound(trainer), self.last_step
            summary[tags.LIPSCHITZ_LOWER] = self.lower
        if upper and self.upper_step != self.last_step:
            value, layers, cheap = self._upper_bound(trainer)
            self.upper_step = self.last_step
            if cheap:
                summary[tags.LIPSCHITZ_CHEAP] = cheap
            self._compare(value)
            summary[tags.LIPSCHITZ_UPPER] = value
            summary[tags.LIPSCHITZ_LOG10] = math.log10(value) if value else -math.inf
            summary[tags.LIPSCHITZ_GAP] = _ratio(value, self.lower)
        return Found({f"{tag}{self.suffix}": value for tag, value in summary.items()}, layers)

    def _compare(self, upper: float) -> None:
        """Warn once if a sample contradicts the upper bound."""
        types = (tensor.dtype for tensor in found(self.inputs, Tensor) if tensor.is_floating_point())
        rounding = max(_ROUNDING, *(_UNITS * torch.finfo(kind).eps for kind in types))
        if self.lower > upper * (1 + rounding) and not self.has_contradicted:
            self.has_contradicted = True
            rank_zero_warn(
                f"LipschitzMonitor found an upper bound of {upper:g} for {self.target.name or 'the module'!r}, but a"
                f" sample gives the larger lower bound {self.lower:g}, so one of the two is wrong. Check the rules that"
                " you registered, and whether the sample lies on a kink (see `jacobian_norm`). Otherwise this is a bug"
                " in lightning_reg. Please report it together with the module."
            )

    def _lower_bound(self, trainer: Trainer) -> float:
        return float(state.largest_over_ranks(trainer, self._norms(trainer).amax()))

    def _norms(self, trainer: Trainer) -> Tensor:
        """Return the norm of the Jacobian at each of this rank's samples."""
        module = self.target.module
        # The hooks of FSDP2 treat the first module that is called as the root module.
        fn = stand_in(module) if is_a(trainer.strategy, "ModelParallelStrategy") else module
        # In true half precision, modules may rely on the trainer's default dtype.
        with trainer.precision_plugin.forward_context():
            if isinstance(self.inputs, Tensor):
                return jacobian_norm(fn, self.inputs)
            of_one = OfOneTensor(fn, self._arguments())
            return jacobian_norm(of_one, of_one.rows())

    def _arguments(self) -> tuple[Any, ...]:
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    def _upper_bound(self, trainer: Trainer) -> tuple[float, dict[str, float], float]:
        """Return the bound, the bound of each layer, and how many norms a cheaper bound replaced."""
        trained = now() - self.start - self.spent
        with within(_GRACE + self.budget * trained - self.spent, self.speed) as budget:
            report = lipschitz_bound(self.target.module, self._arguments(), all_labels=self.all_labels)
        used = budget.used()
        self.spent += used
        # Ranks have different clocks, so their bounds may differ. The largest one is also a bound.
        device = next(found(self.inputs, Tensor)).device
        kind = torch.float32 if device.type == "mps" else torch.float64
        value, cheap = (
            float(state.largest_over_ranks(trainer, torch.tensor(number, dtype=kind, device=device)))
            for number in (report.value, budget.cheap)
        )
        if cheap and not self.has_warned_of_budget:
            self.has_warned_of_budget = True
            verb = "has used up" if used > budget.seconds else "would exceed"
            rank_zero_warn(
                f"LipschitzMonitor {verb} its budget, {self.budget:g} of the training time: {cheap:g} norms of"
                " layers are bounded in a cheaper way. Matrices have the bound sqrt(|W|_1 |W|_inf) or their Frobenius"
                " norm, and convolutions the norm of the reshaped kernel times the square root of its number of taps."
                f" These bounds are valid, but can be several times larger. `{tags.LIPSCHITZ_CHEAP}` logs how many"
                " there are. For sharper bounds, raise `budget`, `every_n_epochs` or `every_n_steps`."
            )
        if report.unbounded and not self.has_warned:
            self.has_warned = True
            nodes = "; ".join(f"{name}: {reason}" for name, reason in report.unbounded[:_NODES_NAMED])
            rest = len(report.unbounded) - _NODES_NAMED
            rank_zero_warn(
                f"LipschitzMonitor knows no upper bound of the Lipschitz constant: {nodes}"
                f"{f'; and {rest} more' if rest > 0 else ''}. It logs infinity as the upper bound. It logs the lower"
                " bound and the bounds of single layers as usual. Pass `target=`, the name of a part of the network"
                " without these operations, or add rules for them with `lightning_reg.register_lipschitz_rule`."
            )
        layers = {self.target.layer(name): own for name, own in report.per_layer.items() if self.has_layers}
        return value, layers, cheap


def _described(inputs: Any) -> str:
    return ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in found(inputs, Tensor))


def _ratio(upper: float, lower: float) -> float:
    """Return the ratio of two bounds. It is 1 if both are 0, because the network is then constant."""
    if lower:
        return upper / lower
    return 1.0 if upper == 0 else upper * math.inf
