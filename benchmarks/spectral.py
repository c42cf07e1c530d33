"""The cost of spectral control, compared with torch's parametrization and with exact norms, in one run.

    python -m benchmarks.spectral

Variants take turns, round after round, so that drift of the machine affects all equally. Each number is the median of
the ratios of the rounds.
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks._resnets import resnet18
from benchmarks._table import print_table
from lightning_reg.callbacks.spectral.normalized import Normalization
from lightning_reg.callbacks.spectral.projected import Projection
from lightning_reg.callbacks.spectral.weights import WeightNorms, add_gradient
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.functional import operator_norm_estimate
from lightning_reg.functional.spectral.followed.clipping import clip_followed, clipping_bases
from lightning_reg.functional.spectral.followed.norms import FollowedNorms
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.spectral.matrices import clip_singular_values
from lightning_reg.selection.weights import named_weights

ROUNDS = 30
STEPS = 10


def in_turns(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds that each variant took in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            run()  # refills the caches after another variant
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    return statistics.median(own / other for own, other in zip(seconds[name], seconds[base], strict=True))


def training(layer: nn.Module, inputs: Tensor, normalization: Normalization | None = None) -> Callable[[], object]:
    """Return a function that takes some steps: forward, backward, update."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    if normalization is not None:
        normalization.start([weight for weight in named_weights(layer) if len(weight.shape) > 1], {})
        AroundSteps(normalization.after_step, normalization.before_step).add([optimizer])

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
    """Return a row of the table: an estimate that continues from weights before about ten steps of Adam at 1e-3."""
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


def controlled(
    model: nn.Module, inputs: Tensor, engine: Normalization | Projection | None = None, *, penalized: bool = False
) -> tuple[Callable[[], object], float]:
    """Return a function that takes a training step under control, and the seconds of its start."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    weights = [weight for weight in named_weights(model) if len(weight.shape) > 1]
    norms = WeightNorms()
    start = time.process_time()
    if engine is not None:
        engine.start(weights, {})
        AroundSteps(engine.after_step, engine.before_step).add([optimizer])
    if penalized:
        norms.advance(weights)

    def run() -> None:
        model(inputs).square().mean().backward()
        for weight, norm in zip(weights, norms.advance(weights) if penalized else [], strict=False):
            if weight.parameter.grad is not None:
                add_gradient(weight.parameter.grad, weight, norm, 0.02 * norm.sigma)
        optimizer.step()
        optimizer.zero_grad()

    return run, time.process_time() - start


def transformer() -> nn.Module:
    """Return two layers of the size of BERT-base's."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True), 2)


def compare_control() -> None:
    """Print the cost of a step under each callback, and of its start, beside a plain step, in CPU time."""
    cases: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "ResNet-18, 64 x 64, batch 8": (resnet18, torch.randn(8, 3, 64, 64)),
        "BERT-base, 2 layers, 4 x 128 tokens": (transformer, torch.randn(4, 128, 768)),
        "Embedding 50 000 x 512, 64 words": (lambda: nn.Embedding(50_000, 512), torch.randint(50_000, (64,))),
    }
    rows = []
    for name, (make, inputs) in cases.items():
        model = make()
        torchs = copy.deepcopy(model)
        for module in torchs.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                parametrizations.spectral_norm(module)
        runs = {
            "plain": controlled(copy.deepcopy(model), inputs),
            "torch": unwatched(torchs, inputs),
            "normalization": controlled(
                copy.deepcopy(model), inputs, Normalization(1.0, as_matrices=False, iterations=1)
            ),
            "penalty": controlled(copy.deepcopy(model), inputs, penalized=True),
            "constraint 5": controlled(copy.deepcopy(model), inputs, Projection(5.0, clips=True)),
            "constraint 1": controlled(copy.deepcopy(model), inputs, Projection(1.0, clips=True)),
        }
        seconds = in_turns({key: run for key, (run, _) in runs.items()}, 5, time.process_time)
        plain = statistics.median(seconds["plain"])
        rows += [
            [name, key, f"{ratio(seconds, key, 'plain'):.2f}", f"{start / plain:.1f}"]
            for key, (_, start) in runs.items()
        ]
    print("\nA step under spectral control, and its start, as multiples of a plain step, in CPU time.\n")
    print_table(["model", "callback", "step", "start"], rows)


def unwatched(model: nn.Module, inputs: Tensor) -> tuple[Callable[[], object], float]:
    """Return a function that takes a training step with torch's parametrization, whose start costs nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, 0.0


def layers_of(model: nn.Module) -> list[Layer]:
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [Layer(name, module.weight.detach(), module) for name, module in modules]


def compare_followed() -> None:
    """Print the cost of following the norms of all layers for a step, beside a plain training step."""
    many = nn.Sequential(*(nn.Linear(256, 256) for _ in range(61)))
    cases = {
        "ResNet-18, 64 x 64, batch 8": (resnet18(), torch.randn(8, 3, 64, 64)),
        "61 x Linear 256, batch 64": (many, torch.randn(64, 256)),
    }
    rows = []
    for name, (model, inputs) in cases.items():
        layers, operator, matrix = layers_of(model), FollowedNorms(), FollowedNorms(as_matrices=True)
        start = time.perf_counter()
        operator.advance(layers)
        first = time.perf_counter() - start
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def plain(model: nn.Module = model, inputs: Tensor = inputs, own: torch.optim.Optimizer = optimizer) -> None:
            model(inputs).square().mean().backward()
            own.step()
            own.zero_grad()

        variants: dict[str, Callable[[], object]] = {
            "plain": plain,
            "operator": lambda layers=layers, norms=operator: norms.advance(layers),  # type: ignore[misc]
            "matrix": lambda layers=layers, norms=matrix: norms.advance(layers),  # type: ignore[misc]
        }
        seconds = in_turns(variants, 10)
        numbers = [ratio(seconds, key, "plain") for key in ("operator", "matrix")]
        rows.append([name, *(f"{number:.2f}" for number in [*numbers, first / statistics.median(seconds["plain"])])])
    print("\nFollowing the norms of all layers for one step, as a multiple of a plain training step.\n")
    print_table(["model", "operator", "as matrices", "the first step"], rows)


def compare_clipping() -> None:
    """Print the cost of clipping that follows singular vectors, and how far matrices remain above the bound."""
    rows = []
    for shape in ((256, 256), (768, 768), (768, 3072)):
        matrix = torch.randn(shape) / shape[1] ** 0.5
        bound = torch.linalg.matrix_norm(matrix, 2).item()
        bases, worst = clipping_bases(matrix[None]), 0.0
        for _ in range(20):
            noise = torch.randn(shape)
            matrix = matrix + 0.01 * noise * matrix.norm() / noise.norm()
            clipped, _, bases, _, _ = clip_followed(matrix[None], bound, bases)
            matrix = clipped[0]
            worst = max(worst, torch.linalg.matrix_norm(matrix, 2).item() / bound - 1)
        variants: dict[str, Callable[[], object]] = {
            "svd": lambda matrix=matrix, bound=bound: clip_singular_values(matrix, 0.99 * bound),  # type: ignore[misc]
            "followed": lambda matrix=matrix, bound=bound, bases=bases: clip_followed(  # type: ignore[misc]
                matrix[None], 0.99 * bound, bases
            ),
        }
        seconds = in_turns(variants, 5)
        rows.append([" x ".join(map(str, shape)), f"{ratio(seconds, 'svd', 'followed'):.0f}", f"{worst:.1e}"])
    print("\nClipping that follows singular vectors, over steps that move matrices by 1 %.\n")
    print_table(["matrix", "times cheaper than by an SVD", "norm / bound - 1 after a step, at most"], rows)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    compare_training()
    compare_estimates()
    compare_followed()
    compare_clipping()
    compare_control()


if __name__ == "__main__":
    main()
