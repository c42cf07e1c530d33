"""The margin penalty: training for certified accuracy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.ledger import terms
from lightning_reg.callbacks.penalties.listener import Heard
from lightning_reg.callbacks.penalties.outputs import OutputRun, OutputTerm
from lightning_reg.callbacks.spectral.kept_state import KeepsState
from lightning_reg.callbacks.spectral.logits import Call, LogitsListener, checked_logits
from lightning_reg.callbacks.spectral.margin_bound import MarginBound
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.labels import checked_labels, labels_of
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer, has_forward
from lightning_reg.callbacks.trainer.plan import Plan, publish
from lightning_reg.callbacks.trainer.refusals import refuse_hidden_weights
from lightning_reg.callbacks.trainer.settings import log_name
from lightning_reg.callbacks.trainer.target import check_target, modules_named
from lightning_reg.functional.lipschitz.product import MarginProduct
from lightning_reg.functional.penalties.margin import margin_shortfall
from lightning_reg.schedules import Schedule
from lightning_reg.selection.weights import Weight, named_weights
from lightning_reg.tensorboard import tags


@dataclass
class MarginRun(OutputRun):
    """State of the penalty between the start and the end of `fit`."""

    listener: LogitsListener
    bound: MarginBound = field(kw_only=True)
    weights: dict[str, Weight] = field(kw_only=True)
    """The weights of the target, by their names in it."""
    hears_training_step: bool = field(kw_only=True)
    """Whether the strategy runs `training_step` as a call of the target. It is the last one of each batch."""
    has_warned: bool = False
    has_published: bool = False
    """Whether the table of layers was written."""
    labels: Any = None
    """The labels of the current batch."""


@final
class MarginPenalty(OutputTerm[MarginRun], KeepsState[MarginRun]):
    r"""Add the shortfall of certified radii to the objective: train a classifier for certified accuracy.

    .. math:: \lambda \frac{1}{N} \sum_n \max_{j \ne y_n}
        \max\left(0, \; r - \frac{f_{y_n}(x_n) - f_j(x_n)}{M_{y_n j}}\right),
        \qquad M_{ij} = c \prod_l L_l \, \|w_i - w_j\|_2

    f are the logits of the N samples of the batch, and y their classes. The quotient is the radius within which no
    change of the input can move class j above class y. The term is zero if each sample is correct with a certified
    radius of at least r. M bounds how fast the difference of two logits changes with the input. L are the norms of the
    layers before the last one, w are the rows of the last layer, and c contains activations and pooling. The gradient
    of the term goes through the logits and through M.

    M is at least `functional.margin_bounds`, from which certificates are computed later: training against the larger
    bound is conservative. The norms are estimated from below once in each step, within 1 % for matrices and within
    2 % for convolutions, see `SpectralNormPenalty`. M describes eval mode, while the logits are the ones of training,
    with dropout.

    The network is followed in the first training step, in a walk like the one of `functional.lipschitz_bound`. M must
    be such a product: linear layers, convolutions with zero padding, layer normalization, activations, pooling, and a
    linear layer at the end. Other networks raise an error that names the reason, such as sums in residual networks,
    attention, and batch normalization, whose scale follows the data. TensorBoard's text `reg/setup_margin` lists the
    layers.

    Every call of the target in `training_step` counts that has a gradient. Several calls for one batch, for example on
    augmented images, have the same labels, and the term is their mean. Evaluation does not count.

    Logged at the trainer's `log_every_n_steps`: `reg/penalty/margin` (the value of the term, in units of the loss),
    also as a part of `reg/penalty` and `reg/penalty_ratio`, see `Penalty`. `LipschitzMonitor(certify=...)` logs the
    certified accuracy.

    Args:
        strength: :math:`\lambda`, >= 0, in units of the loss per unit of the radius.
        radius: r > 0, a 2-norm distance in the unit of the target's input. A little more than the radius to certify
            works well.
        target: Name of the module that returns the logits, shape (N, K) with at least two classes, such as
            `"network"`. `training_step` must call it with positional arguments only. Default: the LightningModule
            itself.
        label_transform: A function from a batch to the classes of its samples, whole numbers from 0 to K - 1, shape
            (N,). Default: the second entry of the batch.
        schedule: Factor on the strength over the optimizer steps: a schedule, or any callable from optimizer steps so
            far to a factor >= 0; 1 by default.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if no module has the name `target`, or a
            duration is a share of a run of unknown length.
        MisconfigurationException: When training starts, in manual optimization, with a line search, or under FSDP1 and
            strategies that run the backward pass themselves. In the first step, if M is not a product of norms, if a
            parametrization computes a weight, or if logits or labels have the wrong shape or type.

    Example:
        >>> MarginPenalty(1.0, radius=0.5, target="network")
        MarginPenalty(strength=1.0, radius=0.5, target='network', label_transform=None, schedule=None)

    Reference:
        Tsuzuku et al., Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep Neural
        Networks, 2018, arXiv:1802.04034; Leino et al., Globally-Robust Neural Networks, 2021, arXiv:2102.08452.

    """

    reasons: ClassVar = {
        Heard.NO_CALL: (
            ", which was not called in the first step. Pass `target=`, the name of the module that `training_step`"
            " calls for the logits. If it was compiled and called before `fit`, call `torch.compiler.reset()` first."
        ),
        Heard.NO_GRAPH: (
            ": in the first step it was called under `torch.no_grad()` only. If the reason is activation"
            " checkpointing, use `use_reentrant=False`."
        ),
        Heard.NO_GRADIENT: (
            ": its logits had no gradient, in the whole run. Train the weights on which they depend, or remove the"
            " callback."
        ),
    }

    def __init__(
        self,
        strength: float,
        *,
        radius: float,
        target: str | None = None,
        label_transform: Callable[[Any], Any] | None = None,
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(strength, schedule)
        self.radius = _checks.positive("radius", radius)
        self.target = check_target(target)
        if label_transform is not None:
            _checks.function("label_transform", label_transform, "a function of a batch or None")
        self.label_transform = label_transform

    @property
    @override
    def state_key(self) -> str:
        # Each of several callbacks, for different targets, has its own state.
        return f"{type(self).__qualname__}({self.target!r})"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_hidden_weights(trainer, type(self).__name__)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> MarginRun:
        # The outermost wrapper (`torch.compile`, activation checkpointing) is called.
        modules = modules_named(pl_module, self.target)
        module = modules[0]
        if not has_forward(modules[-1]):
            msg = (
                f"MarginPenalty needs a module that returns logits, but {type(modules[-1]).__name__} has no `forward`."
                " Pass `target=`, the name of the module that `training_step` calls for the logits, e.g. one of"
                f" {[name for name, _ in pl_module.named_children()]}."
            )
            raise MisconfigurationException(msg)
        # Not later: FSDP2 replaces parameters of modules once a forward pass has run, and the sanity check runs one.
        weights = dict(_weights_in(pl_module, self.target))
        return MarginRun(
            log_name(self, terms(trainer)),
            {self.target or type(pl_module).__name__: module},
            LogitsListener(pl_module, module),
            bound=MarginBound(module, weights),
            weights=weights,
            hears_training_step=module is pl_module and state.redirects(trainer),
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is not None:
            self._run.bound.norms.load(self._saved.get("followed", {}), self._run.weights.values())

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._run is not None:
            self._run.labels = labels_of(batch, self.label_transform, type(self).__name__)

    @override
    def value(self, trainer: Trainer, pl_module: LightningModule, run: MarginRun) -> Tensor | None:
        calls = run.listener.take_calls()
        if run.hears_training_step:
            calls = calls[:-1]
            if run.listener.is_wanted and not calls and not run.has_warned:
                run.has_warned = True
                self.warn(Heard.NO_CALL, run.modules)
        values = [self._of_call(trainer, run, call) for call in calls]
        return torch.stack(values).mean() if values else None

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._run is not None:
            self._run.bound.norms.forget(weight.parameter for weight in self._run.weights.values())

    @override
    def state_of(self, run: MarginRun) -> dict[str, Any]:
        return {"followed": run.bound.norms.state()}

    def _of_call(self, trainer: Trainer, run: MarginRun, call: Call) -> Tensor:
        logits = checked_logits(call.outputs)
        reads_values = not run.is_checked or logits.device.type == "cpu"
        labels = checked_labels(run.labels, logits, type(self).__name__, reads_values=reads_values)
        product = run.bound.at(call.inputs, call.named, len(logits))
        if not run.has_published:
            run.has_published = True
            _publish(trainer, run, product, repr(self))
        rows, gain = run.bound.parts(product)
        if not run.bound.is_sharded:
            return margin_shortfall(logits, labels, rows, gain, self.radius)
        # Each rank has its part of a sharded weight, and its own samples: the mean gradient over ranks counts.
        ends = rows.detach().requires_grad_(), gain.detach().requires_grad_()
        value = margin_shortfall(logits, labels, ends[0], ends[1], self.radius)
        gradients = torch.autograd.grad(value, ends, retain_graph=True)
        for part, gradient in zip((rows, gain), gradients, strict=True):
            through = (part * state.mean_over_ranks(trainer, gradient)).sum()
            value = value + (through - through.detach())
        return value


def _weights_in(pl_module: LightningModule, target: str | None) -> Iterator[tuple[str, Weight]]:
    """Yield the weights of the target, by their names in it."""
    prefix = "" if target is None else f"{target}."
    for weight in named_weights(pl_module):
        for name in weight.names:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), weight


def _publish(trainer: Trainer, run: MarginRun, product: MarginProduct, settings: str) -> None:
    """Show the layers from which the bound is computed."""
    actions = {factor.weight: f"factor{f' ^ {factor.calls}' if factor.calls > 1 else ''}" for factor in product.factors}
    (target,) = run.modules
    plan = Plan(
        settings,
        shapes={name: " x ".join(map(str, weight.shape)) for name, weight in run.weights.items()},
        actions=actions | {product.last: "rows"},
        left_out=dict.fromkeys(run.weights, "not in the bound"),
    )
    publish(trainer, [plan], (f"weight of {target}", "shape", "part of the bound"), f"{tags.SETUP}_{run.name}")
