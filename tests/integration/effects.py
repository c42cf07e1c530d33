"""Every callback that changes training, with what it does, written by hand: the loop that uses them has no Trainer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg import (
    ActivityPenalty,
    AnchorPenalty,
    Cosine,
    DropoutScheduler,
    KeepZeros,
    L1Penalty,
    Linear,
    MarginPenalty,
    MaxNorm,
    MinMaxNorm,
    NMSparsity,
    NonNegative,
    NuclearNormPenalty,
    Piecewise,
    RegularizationPath,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
    TargetSparsity,
    UnitNorm,
)
from tests.callbacks.penalties.test_proximal_loop import PENALTIES as OPERATORS
from tests.callbacks.penalties.test_proximal_loop import soften, step_size
from tests.models import Quartic
from tests.reference import PENALTIES, Term, add_term_gradient, scaled, shortfall

STEPS_OF_SCHEDULES = 10


def falling(step: int) -> float:
    """Return what `Linear(1.0, 0.25, 10)` is."""
    return 1 - 0.75 * min(step / STEPS_OF_SCHEDULES, 1)


class Effect:
    """The effect of a callback on the chosen weights, by hand."""

    def watch(self, module: nn.Module, weights: Sequence[Tensor]) -> None:
        """Look at the module, before anything else."""

    def loss(self, step: int) -> Tensor | float:
        """Return what is added to the loss of the batch that the module has just seen."""
        return 0.0

    def start(self, weights: Sequence[Tensor]) -> None:
        """Act before the first step."""

    def add_gradient(self, weights: Sequence[Tensor], step: int, share: float) -> None:
        """Act when the data's gradient is complete; `share` is the share of a full accumulation window."""

    def before_update(self, weights: Sequence[Tensor]) -> None:
        """Act when gradients have been clipped."""

    def after_update(self, weights: Sequence[Tensor], optimizer: Optimizer, step: int, share: float) -> None:
        """Act when the optimizer has made its update."""


@dataclass
class Gradient(Effect):
    """The gradient of a term, as autograd finds it."""

    term: Term

    def add_gradient(self, weights, step, share):
        add_term_gradient(scaled(self.term, falling(step)), weights, share)


@dataclass
class Activity(Effect):
    """The outputs of the layer of a weight cost their moduli."""

    strength: float

    def watch(self, module, weights):
        (layer,) = (part for part in module.modules() if getattr(part, "weight", None) is weights[0])
        compute = layer.forward

        def forward(inputs):
            self.outputs = compute(inputs)
            return self.outputs

        layer.forward = forward

    def loss(self, step):
        wide = self.outputs.float() if self.outputs.itemsize < 4 else self.outputs
        return self.strength * falling(step) * torch.stack([sample.abs().sum() for sample in wide]).mean()


def parity(batch: Sequence[Tensor]) -> Tensor:
    """Return a class for each row of the data: whether its number is odd."""
    return batch[2] % 2


@dataclass
class Margin(Effect):
    """Certified radii of the network of `runs.py` that are too short, with norms by SVD."""

    strength: float
    radius: float

    def watch(self, module, weights):
        self.network, compute = module.network, module.network.forward

        def forward(inputs, rows):
            self.logits, self.classes = compute(inputs, rows), rows % 2
            return self.logits

        self.network.forward = forward

    def loss(self, step):
        logits = self.logits.float() if self.logits.itemsize < 4 else self.logits
        gain = (
            torch.linalg.svdvals(self.network.encoder.weight)[0] * torch.linalg.svdvals(self.network.hidden.weight)[0]
        )
        value = shortfall(logits, self.classes, self.network.head.weight, gain, self.radius)
        return self.strength * falling(step) * value


@dataclass
class Operator(Effect):
    """A proximal operator, of a weight and a factor of its shape."""

    operator: Callable[[Tensor, Tensor], Tensor]

    def after_update(self, weights, optimizer, step, share):
        for weight in weights:
            weight.copy_(scaled(self.operator, falling(step))(weight, share * step_size(optimizer, weight)))


def soften_singular_values(weight: Tensor, thresholds: Tensor) -> Tensor:
    """Shrink the singular values of a matrix by one threshold, which all entries of `thresholds` are."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return left @ torch.diag((values - thresholds[0, 0]).clamp(min=0)) @ right


@dataclass
class Anchored(Effect):
    """Weights that are drawn to where they started: by squared distances, or by moduli in an operator."""

    strength: float
    is_operator: bool

    def start(self, weights):
        self.starts = [weight.clone() for weight in weights]

    def add_gradient(self, weights, step, share):
        if not self.is_operator:
            for weight, start in zip(weights, self.starts, strict=True):
                gradient = 2 * self.strength * falling(step) * share * (weight.detach() - start)
                weight.grad = gradient if weight.grad is None else gradient + weight.grad

    def after_update(self, weights, optimizer, step, share):
        if self.is_operator:
            for weight, start in zip(weights, self.starts, strict=True):
                factor = self.strength * falling(step) * share * step_size(optimizer, weight)
                weight.copy_(start + soften(weight - start, factor))


@dataclass
class Sparse(Effect):
    """The least L1 strength that makes a share of all entries zero, found by sorting."""

    target: float

    def after_update(self, weights, optimizer, step, share):
        sizes = [step_size(optimizer, weight) for weight in weights]
        strengths = torch.cat([(weight.abs() / size).flatten() for weight, size in zip(weights, sizes, strict=True)])
        wanted = round(strengths.numel() * self.target * min(step / STEPS_OF_SCHEDULES, 1))
        if wanted:
            strength = strengths.sort().values[wanted - 1]
            for weight, size in zip(weights, sizes, strict=True):
                weight.copy_(soften(weight, strength * size))


@dataclass
class Ball(Effect):
    """Singular values of at most a bound, by SVD."""

    bound: float

    def start(self, weights):
        for weight in weights:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            weight.copy_(left @ torch.diag(values.clamp(max=self.bound)) @ right)

    def after_update(self, weights, optimizer, step, share):
        self.start(weights)


class Normalized(Effect):
    """Weights W of which the network sees W / sigma(W), by SVD and autograd."""

    def start(self, weights):
        self.raw = [weight.clone() for weight in weights]
        for weight, raw in zip(weights, self.raw, strict=True):
            weight.copy_(raw / torch.linalg.matrix_norm(raw, 2))

    def before_update(self, weights):
        for weight, raw in zip(weights, self.raw, strict=True):
            with torch.enable_grad():
                leaf = raw.clone().requires_grad_()
                seen = leaf / torch.linalg.matrix_norm(leaf, 2)
            (weight.grad,) = torch.autograd.grad(seen, leaf, weight.grad)
            weight.copy_(raw)

    def after_update(self, weights, optimizer, step, share):
        self.start(weights)


@dataclass
class Rule(Effect):
    """A rule that each weight keeps after each update."""

    rule: Callable[[Tensor], Tensor]

    def after_update(self, weights, optimizer, step, share):
        for weight in weights:
            weight.copy_(self.rule(weight))


def short_rows(weight: Tensor) -> Tensor:
    """Bring rows longer than a half to that length."""
    return weight * (0.5 / weight.norm(dim=1, keepdim=True)).clamp(max=1)


def middle_norms(weight: Tensor) -> Tensor:
    """Bring the norms of rows half of the way to a range."""
    norms = weight.norm(dim=1, keepdim=True)
    return weight * (0.5 * norms.clamp(0.5, 0.8) + 0.5 * norms) / norms


def largest_of_a_row(weight: Tensor) -> Tensor:
    """Return each row with its two largest entries alone."""
    largest = weight.abs().topk(2, dim=1).indices
    return torch.zeros_like(weight).scatter(1, largest, weight.gather(1, largest))


@dataclass
class Kept(Effect):
    """L1 for two steps, whose zeros stay."""

    def before_update(self, weights):
        self.zeros = [weight == 0 for weight in weights]

    def after_update(self, weights, optimizer, step, share):
        for weight, zeros in zip(weights, self.zeros, strict=True):
            if step < 2:
                weight.copy_(soften(weight, 0.1 * share * step_size(optimizer, weight)))
            else:
                weight[zeros] = 0.0


def squared_norms(weights: Sequence[Tensor]) -> Tensor:
    return 0.1 * sum(torch.linalg.svdvals(weight)[0].square() for weight in weights)


@dataclass
class Path(Effect):
    """Soft thresholds of one strength for each epoch; at strength 0 optimizers begin anew and zeros stay."""

    strengths: tuple[float, ...]
    batches_of_epoch: int = 7
    batches: int = 0

    def loss(self, step):
        epoch, batch = divmod(self.batches, self.batches_of_epoch)
        self.batches += 1
        self.strength = self.strengths[epoch]
        if not self.strength and not batch:
            self.optimizer.state.clear()
        return 0.0

    def before_update(self, weights):
        self.left = [weight != 0 for weight in weights]

    def after_update(self, weights, optimizer, step, share):
        self.optimizer = optimizer
        for weight, left in zip(weights, self.left, strict=True):
            if self.strength:
                weight.copy_(soften(weight, self.strength * share * step_size(optimizer, weight)))
            else:
                weight.mul_(left)


@dataclass(frozen=True)
class Kind:
    """One way to regularize a part of a network."""

    make: Callable[[str], Callback | list[Callback]]
    """From a glob over weights; a list of those that belong together."""
    effect: Callable[[], Effect]
    alone: bool = False
    """Whether it changes weights by itself, so that no other such one may have the same weights."""
    error: float = 0.0
    """By how much its weights may differ in double precision: it estimates what the loop by hand has exactly."""
    needs_sgd: bool = False
    """Whether it refuses optimizers whose step size differs within a weight."""
    per_entry: bool = False
    """Whether it works on the flat shards of FSDP1."""
    once: bool = False
    """Whether a run has one at most: Lightning keeps the states of callbacks apart by their classes."""


FALLING = Linear(1.0, 0.25, STEPS_OF_SCHEDULES)
RISING = Linear(0.0, 1.0, STEPS_OF_SCHEDULES)

KINDS: dict[str, Kind] = {}
for _name, (_make, _term) in PENALTIES.items():
    for _mode in ("loss", "grad"):
        KINDS[f"{_name} {_mode}"] = Kind(
            lambda glob, make=_make, mode=_mode: make(select=glob, mode=mode, schedule=FALLING),
            lambda term=_term: Gradient(term),
            per_entry=_mode == "grad" and _make().elementwise,
        )
for _name, (_make, _operator) in OPERATORS.items():
    KINDS[f"{_name} proximal"] = Kind(
        lambda glob, make=_make: make(select=glob, mode="proximal", schedule=FALLING),
        lambda operator=_operator: Operator(operator),
        alone=True,
        per_entry=_make().elementwise,
    )
for _mode in ("loss", "grad"):
    KINDS[f"own {_mode}"] = Kind(
        lambda glob, mode=_mode: Quartic(0.1, select=glob, mode=mode, schedule=FALLING),
        lambda: Gradient(lambda weights: 0.1 * sum(weight.pow(4).sum() for weight in weights)),
    )
    KINDS[f"spectral norm {_mode}"] = Kind(
        lambda glob, mode=_mode: SpectralNormPenalty(0.1, select=glob, mode=mode, schedule=FALLING),
        lambda: Gradient(squared_norms),
        error=1e-5,
    )
    KINDS[f"anchor {_mode}"] = Kind(
        lambda glob, mode=_mode: AnchorPenalty(0.1, select=glob, mode=mode, schedule=FALLING),
        lambda: Anchored(0.1, is_operator=False),
        # Others change weights as training starts: where it starts would depend on their order.
        alone=True,
    )
KINDS |= {
    "activity": Kind(
        lambda glob: ActivityPenalty(0.1, select=glob.removesuffix(".weight"), schedule=FALLING), lambda: Activity(0.1)
    ),
    # Of the whole network, whichever weight is chosen.
    "margin": Kind(
        lambda _: MarginPenalty(0.1, radius=0.5, target="network", label_transform=parity, schedule=FALLING),
        lambda: Margin(0.1, 0.5),
        error=1e-5,
        once=True,
    ),
    "nuclear norm proximal": Kind(
        lambda glob: NuclearNormPenalty(0.05, select=glob, mode="proximal", schedule=FALLING),
        lambda: Operator(lambda weight, factors: soften_singular_values(weight, 0.05 * factors)),
        alone=True,
        needs_sgd=True,
    ),
    "anchor proximal": Kind(
        lambda glob: AnchorPenalty(0.02, norm="l1", select=glob, mode="proximal", schedule=FALLING),
        lambda: Anchored(0.02, is_operator=True),
        alone=True,
    ),
    "target sparsity": Kind(
        lambda glob: TargetSparsity(L1Penalty(0.0, select=glob, mode="proximal"), 0.5, schedule=RISING),
        lambda: Sparse(0.5),
        alone=True,
        # It compares strengths in float32, and zeros jump: loops by hand that start 1e-15 apart may end 6e-4 apart.
        error=1e-3,
    ),
    "max norm": Kind(lambda glob: MaxNorm(0.5, select=glob), lambda: Rule(short_rows), alone=True),
    "unit norm": Kind(
        lambda glob: UnitNorm(select=glob), lambda: Rule(lambda w: w / w.norm(dim=1, keepdim=True)), alone=True
    ),
    "min max norm": Kind(
        lambda glob: MinMaxNorm(0.5, 0.8, rate=0.5, select=glob), lambda: Rule(middle_norms), alone=True
    ),
    "non-negative": Kind(lambda glob: NonNegative(select=glob), lambda: Rule(torch.relu), alone=True),
    "n of m": Kind(
        lambda glob: NMSparsity(2, {"encoder": 5, "hidden": 7, "head": 3}[glob.split(".")[1]], select=glob),
        lambda: Rule(largest_of_a_row),
        alone=True,
    ),
    "keep zeros": Kind(
        lambda glob: [
            KeepZeros(2, select=glob),
            L1Penalty(0.1, select=glob, mode="proximal", schedule=Piecewise((1.0, 0.0), (2,))),
        ],
        Kept,
        alone=True,
    ),
    # Both have two epochs, as every run has: a path ends the fit itself.
    "path": Kind(
        lambda glob: RegularizationPath(
            L1Penalty(0.0, select=glob, mode="proximal"), strengths=[0.03, 0.015], epochs=1
        ),
        lambda: Path((0.03, 0.015)),
        alone=True,
        once=True,
    ),
    "relaxed path": Kind(
        lambda glob: RegularizationPath(
            L1Penalty(0.0, select=glob, mode="proximal"), strengths=[0.03], epochs=1, relaxed_epochs=1
        ),
        lambda: Path((0.03, 0.0)),
        alone=True,
        once=True,
    ),
    "constraint": Kind(lambda glob: SpectralConstraint(0.7, select=glob), lambda: Ball(0.7), alone=True),
    "normalization": Kind(
        lambda glob: SpectralNormalization(select=glob, power_iterations=20), Normalized, alone=True, error=1e-5
    ),
}


def train_with_effects(  # noqa: PLR0913  # everything a training loop may do
    module: Any,
    batches: Iterable[Sequence[Tensor]],
    effects: Sequence[tuple[Sequence[Tensor], Effect]],
    *,
    epochs: int = 2,
    accumulate: int = 1,
    clip: Callable[[Iterable[nn.Parameter]], object] = lambda parameters: None,
    rate: Callable[[int], float] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
) -> None:
    """Train `module`, with effects on lists of its weights, and dropout of a rate for each step."""
    device = next(module.parameters()).device.type
    scaler = scaler or torch.amp.GradScaler(device, enabled=False)
    optimizer = module.configure_optimizers()
    batches = list(batches)
    step = 0
    for weights, effect in effects:
        effect.watch(module, weights)
        with torch.no_grad():
            effect.start(weights)
    for index, batch in [*enumerate(batches)] * epochs:
        if rate is not None:
            module.network.dropout.p = rate(step)
        with torch.autocast(device, autocast, enabled=autocast is not None):
            loss = module.loss(batch)
            loss = loss + sum(effect.loss(step) for _, effect in effects)
        scaler.scale(loss / accumulate).backward()
        if (index + 1) % accumulate and index + 1 < len(batches):
            continue
        share = (index % accumulate + 1) / accumulate
        scaler.unscale_(optimizer)
        for weights, effect in effects:
            effect.add_gradient(weights, step, share)
        clip(module.parameters())
        # The scaler of fp16 skips steps that overflow.
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        acting = effects if all(gradient.isfinite().all() for gradient in gradients) else []
        with torch.no_grad():
            for weights, effect in acting:
                effect.before_update(weights)
            scaler.step(optimizer)
            for weights, effect in acting:
                effect.after_update(weights, optimizer, step, share)
        scaler.update()
        optimizer.zero_grad()
        step += 1


def dropout() -> DropoutScheduler:
    """Return the scheduler of which `rate_of_dropout` has the rates."""
    return DropoutScheduler(Cosine(0.0, 0.5, STEPS_OF_SCHEDULES))


def rate_of_dropout(step: int) -> float:
    progress = torch.tensor(min(step / STEPS_OF_SCHEDULES, 1), dtype=torch.float64)
    return 0.5 * (1 - torch.cos(torch.pi * progress).item()) / 2
