"""The truth that callbacks are compared with: training loops written by hand, penalties in plain torch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg import (
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    MCPPenalty,
    NuclearNormPenalty,
    OrthogonalPenalty,
)
from tests.models import Gan, Regressor, loader, weights_of

Term = Callable[[Sequence[Tensor]], Tensor]


def matrix_of(weight: Tensor) -> Tensor:
    """Return a kernel as the matrix with a row for each of its slices along the first dimension."""
    return (weight.float() if weight.itemsize < 4 else weight).flatten(1)  # torch has no LAPACK in half precision


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Return the sum of singular values. Those that are zero have an arbitrary gradient, so they do not count."""
    values = torch.linalg.svdvals(matrix)
    return values[values > 1e-6 * values[0]].sum()


def distance_from_orthonormal(matrix: Tensor) -> Tensor:
    """Return how far the products of any two rows, or columns if they are fewer, are from those of unit vectors."""
    rows = matrix if len(matrix) <= len(matrix.mT) else matrix.mT
    return (rows @ rows.mT - torch.eye(len(rows)).to(rows)).square().sum()


@dataclass(frozen=True)
class MCP:
    """The minimax concave penalty in plain torch; a schedule acts inside of it."""

    strength: float
    gamma: float

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        strength, gamma = self.strength, self.gamma
        inside = [strength * w.abs() - w * w / (2 * gamma) for w in weights]
        return sum(
            torch.where(w.abs() <= gamma * strength, value, gamma * strength**2 / 2).sum()
            for w, value in zip(weights, inside, strict=True)
        )

    def at(self, factor: float) -> "MCP":
        return MCP(self.strength * factor, self.gamma)


def scaled(term: Any, factor: float) -> Any:
    """Return a term, or an operator of a weight and its step size, at a factor on the strength."""
    if hasattr(term, "at"):
        return term.at(factor)
    return lambda weights, *step_size: term(weights, factor * step_size[0]) if step_size else factor * term(weights)


def shortfall(logits: Tensor, classes: Tensor, rows: Tensor, gain: Tensor, radius: float) -> Tensor:
    """Return by how much certified radii fall short of a radius, a mean over samples, one pair of classes at a time."""
    shortfalls = []
    for own, y in zip(logits, classes.tolist(), strict=True):
        bounds = {j: gain * (rows[y] - rows[j]).norm() for j in range(len(own)) if (rows[y] != rows[j]).any()}
        shortfalls.append(max((radius - (own[y] - own[j]) / bound for j, bound in bounds.items()), default=0 * gain))
    return torch.stack(shortfalls).clamp(min=0).mean()


# Each penalty with the same term in plain torch.
PENALTIES: dict[str, tuple[Callable[..., Any], Term]] = {
    "l1": (lambda **kwargs: L1Penalty(0.02, **kwargs), lambda weights: 0.02 * sum(w.abs().sum() for w in weights)),
    "l2": (lambda **kwargs: L2Penalty(0.03, **kwargs), lambda weights: 0.03 * sum((w * w).sum() for w in weights)),
    "elastic_net": (
        lambda **kwargs: ElasticNetPenalty(0.05, 0.3, **kwargs),
        lambda weights: 0.05 * sum(0.3 * w.abs().sum() + 0.35 * (w * w).sum() for w in weights),
    ),
    "mcp": (lambda **kwargs: MCPPenalty(0.05, 3.0, **kwargs), MCP(0.05, 3.0)),
    "group_lasso": (
        lambda **kwargs: GroupLassoPenalty(0.01, **kwargs),
        lambda weights: 0.01 * sum(w[0].numel() ** 0.5 * w.flatten(1).norm(dim=1).sum() for w in weights),
    ),
    "nuclear_norm": (
        lambda **kwargs: NuclearNormPenalty(0.02, **kwargs),
        lambda weights: 0.02 * sum(nuclear_norm(matrix_of(w)) for w in weights),
    ),
    "orthogonal": (
        lambda **kwargs: OrthogonalPenalty(0.01, **kwargs),
        lambda weights: 0.01 * sum(distance_from_orthonormal(matrix_of(w)) for w in weights),
    ),
}

every_penalty = pytest.mark.parametrize("name", PENALTIES)
both_modes = pytest.mark.parametrize("mode", ["loss", "grad"])


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return what the default selection is: every trainable parameter of two or more dimensions."""
    return [parameter for parameter in module.parameters() if parameter.ndim >= 2 and parameter.requires_grad]


def add_term_gradient(term: Term, weights: Sequence[Tensor], factor: float) -> None:
    """Add the gradient of `factor` times the term, as autograd finds it."""
    for weight, gradient in zip(weights, torch.autograd.grad(factor * term(weights), weights), strict=True):
        weight.grad = gradient if weight.grad is None else gradient + weight.grad


def train_by_hand(  # noqa: PLR0913  # everything a training loop may do
    module: Regressor,
    batches: Iterable[tuple[Tensor, Tensor]],
    term: Term,
    *,
    epochs: int = 2,
    accumulate: Callable[[int], int] = lambda epoch: 1,
    clip: Callable[[Iterable[nn.Parameter]], object] = lambda parameters: None,
    factor: Callable[[int], float] = lambda step: 1.0,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    select: Callable[[nn.Module], Sequence[Tensor]] = matrices,
) -> Regressor:
    """Minimise (mean data loss over the effective batch) + `factor(step)` * `term`; return the trained module."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    optimizer = module.configure_optimizers()
    batches = list(batches)
    step = 0
    for epoch in range(epochs):
        window = accumulate(epoch)
        for index, batch in enumerate(batches):
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = module.loss(batch)
            scaler.scale(loss / window).backward()
            if (index + 1) % window and index + 1 < len(batches):
                continue
            scaler.unscale_(optimizer)
            add_term_gradient(scaled(term, factor(step)), select(module), (index % window + 1) / window)
            clip(module.parameters())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            step += 1
    return module


def train_with_term_of_batch(  # noqa: PLR0913  # everything a training loop may do
    module: Regressor,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_and_term: Callable[[Tensor, Tensor], tuple[Tensor, Callable[[], Tensor]]],
    *,
    epochs: int = 2,
    accumulate: int = 1,
    factor: Callable[[int], float] = lambda step: 1.0,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Minimise the data loss + `factor(step)` * a term of the same batch; return the weights, and all terms."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    optimizer = module.configure_optimizers()
    batches, step, terms = list(batches), 0, []
    for index, batch in [*enumerate(batches)] * epochs:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss, term = loss_and_term(*batch)
        terms.append(factor(step) * term())
        scaler.scale((loss + terms[-1]) / accumulate).backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(batches):
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            step += 1
    return weights_of(module), [term.item() for term in terms]


def steps_of_gan(module: Gan) -> Iterator[tuple[int, Optimizer, nn.Module, Callable[[], Tensor]]]:
    """Yield, for each step of two epochs, the number of the batch, the optimizer, its network, and the loss."""
    generator, critic = module.configure_optimizers()
    for index, batch in enumerate([*loader(), *loader()]):
        yield index, critic, module.critic, partial(module.critic_loss, batch)
        if index % 7 % 2:
            yield index, generator, module.generator, partial(module.generator_loss, batch)


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-6) -> None:
    """Compare weight by weight: the norm of the difference relative to the norm of the expected weight."""
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        error, norm = (torch.linalg.vector_norm(tensor.double()) for tensor in (actual[name] - weight, weight))
        assert error <= rtol * norm, f"{name}: relative error {error / norm:.1e}"
