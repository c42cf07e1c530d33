"""What spectral control costs, against torch's parametrization and against exact norms, in one run.

    python -m benchmarks.spectral

Variants take turns, round after round, so that the drift of the machine hits all alike; each number is the median of
the ratios of the rounds.
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks._table import print_table
from lightning_reg.callbacks.spectral.normalization import Normalization
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.functional import operator_norm_estimate
from lightning_reg.selection.weights import named_weights

ROUNDS = 30
STEPS = 10


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Return the seconds that each variant took in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            run()  # what another variant has left in the caches
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    return statistics.median(own / other for own, other in zip(seconds[name], seconds[base], strict=True))


def training(layer: nn.Module, inputs: Tensor, normalization: Normalization | None = None) -> Callable[[], object]:
    """Return a function that takes some steps: forward, backward, update."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    if normalization is not None:
        normalization.start([weight for weight in named_weights(layer) if len(weight.shape) > 1], {})
        AroundSteps(normalization.before_step, normalization.after_step).add([optimizer])

    def run() -> None:
        for _ in range(STEPS):
            layer(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def compare_training() -> None:
    cases: dict[str, tuple[nn.Module, Tensor]] = {
        f"Linear 512, batch {batch}": (nn.Linear(512, 512), torch.randn(batch, 512)) for batch in (16, 64, 256)
    }
    cases["conv 64 -> 64, 3 x 3, batch 16, 32 x 32"] = (nn.Conv2d(64, 64, 3, padding=1), torch.randn(16, 64, 32, 32))
    rows = []
    for name, (layer, inputs) in cases.items():
        torchs = parametrizations.spectral_norm(copy.deepcopy(layer))
        variants = {
            "plain": training(copy.deepcopy(layer), inputs),
            "torch": training(torchs, inputs),
            "matrix": training(copy.deepcopy(layer), inputs, Normalization(1.0, as_matrices=True, iterations=1)),
            "operator": training(copy.deepcopy(layer), inputs, Normalization(1.0, as_matrices=False, iterations=1)),
        }
        seconds = in_turns(variants, 10 if inputs.ndim > 2 else ROUNDS)
        rows.append(
            [name, *(f"{ratio(seconds, key, 'plain'):.2f}" for key in ("torch", "matrix", "operator"))]
            + [f"{ratio(seconds, key, 'torch'):.2f}" for key in ("matrix", "operator")]
        )
    print("A training step (forward, backward, SGD), as a multiple of one without normalization and of torch's.\n")
    print_table(["layer", "torch", '"matrix"', '"operator"', '"matrix" / torch', '"operator" / torch'], rows)


def estimates_of(size: int, iterations: int) -> list[str]:
    """Return a row of the table: an estimate that continues from before ten steps of Adam at 1e-3, about."""
    old = torch.randn(size, size) / size**0.5
    weight = old + 1e-3 * torch.randn(size, size)
    _, state = operator_norm_estimate(lambda x: old @ x, (size,), iterations=50)

    def warm() -> Tensor:
        return operator_norm_estimate(
            lambda x: weight @ x, (size,), iterations=iterations, state=state, adjoint=lambda y: y @ weight
        )[0]

    seconds = in_turns({"svdvals": lambda: torch.linalg.svdvals(weight), "warm": warm}, 10)
    below = 1 - warm() / torch.linalg.svdvals(weight)[0]
    return [str(size), str(iterations), f"{ratio(seconds, 'svdvals', 'warm'):.0f}", f"{below.item():.3%}"]


def compare_estimates() -> None:
    rows = [estimates_of(size, iterations) for size in (512, 1024) for iterations in (1, 2, 5)]
    print("\nWarm estimates of the norm of a random square matrix.\n")
    print_table(["size", "iterations", "times cheaper than svdvals", "below the truth by"], rows)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    compare_training()
    compare_estimates()


if __name__ == "__main__":
    main()
