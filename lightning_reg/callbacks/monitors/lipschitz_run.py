"""What the monitor of Lipschitz constants finds out during one `fit`."""

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
from lightning_reg.functional.lipschitz.budget import now, within
from lightning_reg.functional.lipschitz.jacobian import jacobian_norm
from lightning_reg.functional.lipschitz.nested import found
from lightning_reg.functional.lipschitz.stand_in import stand_in
from lightning_reg.tensorboard import tags

_NODES_NAMED = 5
# Seconds that upper bounds may take before there is a training time to compare with.
_GRACE = 5.0
# By more than this, or so many units of the last place in half precision, rounding puts no lower bound above an upper.
_ROUNDING, _UNITS = 1e-3, 16


class Found(NamedTuple):
    """The numbers of one step."""

    summary: Mapping[str, float]
    """By tag."""
    layers: Mapping[str, float]
    """By layer."""


@dataclass
class Run:
    """State of the monitor between the start and the end of `fit`; nothing in it has to survive a resume."""

    target: Target
    suffix: str
    """What ends the tags of the whole network: tells several monitors apart."""
    has_layers: bool
    """Whether the bounds of single layers are wanted."""
    inputs: Tensor | tuple[Any, ...] | None = None
    """Samples of the last batch at a logging step, on which the network is looked at."""
    last_step: int | None = None
    """The last step of training so far, in this run."""
    lower: float = math.nan
    lower_step: int | None = None
    upper_step: int | None = None
    has_warned: bool = False
    has_contradicted: bool = False
    budget: float = math.inf
    """The share of the training time that upper bounds may take."""
    start: float = field(default_factory=now)
    spent: float = 0.0
    """Seconds that upper bounds have taken."""
    has_warned_of_budget: bool = False
    certificate: Certificate | None = None
    """What is certain in the validation that runs."""

    def check(self, trainer: Trainer) -> None:
        """Raise if the target cannot be evaluated on the samples."""
        try:
            self._norms(trainer)
        except Exception as error:  # whatever a user's module does
            name = self.target.name or type(self.target.module).__name__
            msg = (
                f"LipschitzMonitor cannot look at {name!r} on {_described(self.inputs)},"
                f" the first floating-point tensor of a batch, or what `input_transform` made of it: {error} Name a"
                " part of the network that is a function of one tensor by `target=`, and pass `input_transform`, a"
                " function from the batch to that part's input."
            )
            raise MisconfigurationException(msg) from error

    def measure(self, trainer: Trainer, *, upper: bool) -> Found:
        """Return the lower bound after the last step, with `upper` the upper one, too; a collective call.

        What has been returned for that step before is left out.
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
        """Warn, once, of an upper bound that a sample refutes."""
        types = (tensor.dtype for tensor in found(self.inputs, Tensor) if tensor.is_floating_point())
        rounding = max(_ROUNDING, *(_UNITS * torch.finfo(kind).eps for kind in types))
        if self.lower > upper * (1 + rounding) and not self.has_contradicted:
            self.has_contradicted = True
            rank_zero_warn(
                f"LipschitzMonitor has found an upper bound of {upper:g} of {self.target.name or 'the module'!r}, but a"
                f" sample that is stretched by {self.lower:g}: one of the two is wrong. If neither a rule that you have"
                " registered nor a kink at the sample (see `jacobian_norm`) explains it, this is an error of"
                " lightning_reg. Please report it with the module."
            )

    def _lower_bound(self, trainer: Trainer) -> float:
        return float(state.largest_over_ranks(trainer, self._norms(trainer).amax()))

    def _norms(self, trainer: Trainer) -> Tensor:
        """Return the norm of the Jacobian at each of this rank's samples."""
        module = self.target.module
        # The hooks of FSDP2 take the first module that is called for the root.
        fn = stand_in(module) if is_a(trainer.strategy, "ModelParallelStrategy") else module
        # In true half precision, modules may rely on the default type.
        with trainer.precision_plugin.forward_context():
            if isinstance(self.inputs, Tensor):
                return jacobian_norm(fn, self.inputs)
            of_one = OfOneTensor(fn, self._arguments())
            return jacobian_norm(of_one, of_one.rows())

    def _arguments(self) -> tuple[Any, ...]:
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    def _upper_bound(self, trainer: Trainer) -> tuple[float, dict[str, float], float]:
        """Return the bound, that of each layer, and how many norms of layers came too late for an exact one."""
        trained = now() - self.start - self.spent
        with within(_GRACE + self.budget * trained - self.spent) as budget:
            report = lipschitz_bound(self.target.module, self._arguments())
        self.spent += budget.used()
        # Ranks have clocks of their own. The largest of true bounds is one.
        device = next(found(self.inputs, Tensor)).device
        kind = torch.float32 if device.type == "mps" else torch.float64
        value, cheap = (
            float(state.largest_over_ranks(trainer, torch.tensor(number, dtype=kind, device=device)))
            for number in (report.value, budget.cheap)
        )
        if cheap and not self.has_warned_of_budget:
            self.has_warned_of_budget = True
            rank_zero_warn(
                f"LipschitzMonitor has used up its budget, {self.budget:g} of the training time: {cheap:g} norms of"
                " layers are bounded in a cheaper way, by the root of |W|_1 |W|_inf or by the norm of a reshaped kernel"
                f" times the root of its taps. Such bounds are true, and several times larger. `{tags.LIPSCHITZ_CHEAP}`"
                " counts them at each step where there are any. Raise `budget`, `every_n_epochs` or `every_n_steps`."
            )
        if report.unbounded and not self.has_warned:
            self.has_warned = True
            nodes = "; ".join(f"{name}: {reason}" for name, reason in report.unbounded[:_NODES_NAMED])
            rest = len(report.unbounded) - _NODES_NAMED
            rank_zero_warn(
                f"LipschitzMonitor knows no upper bound of the Lipschitz constant: {nodes}"
                f"{f'; and {rest} more' if rest > 0 else ''}. It logs infinity, beside the bounds of single layers and"
                " the lower bound. For a finite one name a part of the network without these by `target=`, or tell"
                " the bound of such an operation by `lightning_reg.register_lipschitz_rule`."
            )
        layers = {self.target.layer(name): own for name, own in report.per_layer.items() if self.has_layers}
        return value, layers, cheap


def _described(inputs: Any) -> str:
    return ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in found(inputs, Tensor))


def _ratio(upper: float, lower: float) -> float:
    """Return the gap between two bounds: none, a ratio of 1, if both say that the network is constant."""
    if lower:
        return upper / lower
    return 1.0 if upper == 0 else upper * math.inf
