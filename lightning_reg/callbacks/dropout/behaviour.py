"""Find random modules in a model with all dropout rates at 0, by two passes under two seeds."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.trainer.nested import tensors_in
from lightning_reg.callbacks.trainer.unobserved import Kept
from lightning_reg.functional.tensors.random import seed_generators, unchanged_generators

_ENTRIES = 256
_SEEDS = (1, 2)
# Gaussian noise is part of some models, such as variational autoencoders and diffusions. No mask is made of it.
_NOISE = ("randn", "randn_like", "normal", "normal_", "normal_functional")
# Masks are made with these. Outside all modules, times of a diffusion, mixture weights and augmentations are not.
_MASKS = ("bernoulli", "dropout", "attention", "lstm", "gru", "rnn")


def random_parts(
    root: nn.Module, run: Callable[[], Any], sites: Sequence[Site], device: torch.device
) -> list[nn.Module]:
    """Return the modules whose outputs differ for the same input although all rates are 0.

    The model, the random generators and the gradients are restored at the end. Only the first such module of a chain is
    found, because the modules behind it do not get the same input.

    Args:
        root: The model.
        run: Makes a pass; it is called twice.
        sites: All known rates.
        device: The device of the model.

    Returns:
        Modules in the order of the pass; `root` if it is random but no module called in it is.

    """
    kept, rates = Kept(root), [site.value for site in sites]
    traces = []
    for seed in _SEEDS:
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), _seeded(seed, device):
                for site in sites:
                    site.set(0.0)
                traces.append(_trace(root, run, device))
        finally:
            kept.put_back()
            for site, rate in zip(sites, rates, strict=True):
                if site.value != rate:  # the rate is in an object of the module, which `kept` does not restore
                    site.set(rate)
    return _origins(*traces)


class _Call(NamedTuple):
    module: nn.Module
    depth: int
    inputs: list[Tensor]
    outputs: list[Tensor]


class _SameNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Draws the same random numbers in every pass, except numbers that masks can be made of."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.depth = 0
        """The number of modules being called."""
        self._device = device
        self._draws = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not self._may_be_mask(func):
            self._draws += 1
            with unchanged_generators([self._device]):
                seed_generators(self._draws, self._device)
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _may_be_mask(self, function: Any) -> bool:
        name = function.overloadpacket.__name__
        return name not in _NOISE if self.depth else any(word in name for word in _MASKS)


def _trace(root: nn.Module, run: Callable[[], Any], device: torch.device) -> list[_Call]:
    """Return the calls of modules in a pass, in the order in which they end, followed by the pass itself."""
    calls: list[_Call] = []
    inputs: list[list[Tensor]] = []
    with _SameNoise(device) as noise, ExitStack() as hooks:

        def begin(_: nn.Module, args: Any) -> None:
            noise.depth += 1
            inputs.append(_samples(args))

        def end(module: nn.Module, _: Any, kwargs: Any, outputs: Any) -> None:
            calls.append(_Call(module, noise.depth, [*inputs.pop(), *_samples(kwargs)], _samples(outputs)))
            noise.depth -= 1

        # Global hooks would make the compiler warn.
        for module in root.modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes none
                continue
            hooks.callback(module.register_forward_pre_hook(begin).remove)
            hooks.callback(module.register_forward_hook(end, with_kwargs=True).remove)
        outputs = run()
    return [*calls, _Call(root, 0, [], _samples(outputs))]


def _origins(first: Sequence[_Call], second: Sequence[_Call]) -> list[nn.Module]:
    found: list[_Call] = []
    elsewhere: list[nn.Module] = []
    for index, call in enumerate(first):
        other = second[index] if index < len(second) else None
        if other is None or other.module is not call.module:
            # The second pass took another path. The module that chose the path is running in both.
            running = [item.module for item in _running(second, index)]
            elsewhere = [item.module for item in _running(first, index) if item.module in running][:1]
            break
        if _equal(call.inputs, other.inputs) and not _equal(call.outputs, other.outputs):
            within = {id(part) for part in call.module.modules()}
            # A parent is random if its child is. The child is reported already.
            if not any(id(item.module) in within for item in found) and not (call.depth == 0 and found):
                found.append(call)
    parts = list(dict.fromkeys(item.module for item in found)) or elsewhere
    is_by_torch = [type(part).__module__.startswith("torch.nn.") for part in parts]
    return [part for part, skip in zip(parts, is_by_torch, strict=True) if not skip]  # `nn.RReLU` is not dropout


def _running(calls: Sequence[_Call], index: int) -> list[_Call]:
    """Return the calls that are not over before the call at `index` ends, from the innermost on."""
    found: list[_Call] = []
    for call in calls[index:]:
        if not found or call.depth < found[-1].depth:
            found.append(call)
    return found[1:] or found


def _samples(nested: Any) -> list[Tensor]:
    """Return some entries of each tensor."""
    return [
        tensor.detach().flatten()[:: max(1, tensor.numel() // _ENTRIES)].clone()
        for tensor in tensors_in(nested)
        if tensor.is_floating_point() and tensor.numel()
    ]


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    # A GPU may add numbers in another order.
    return len(some) == len(others) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=_rounding(other), equal_nan=True)
        for one, other in zip(some, others, strict=True)
    )


def _rounding(tensor: Tensor) -> float:
    return 10 * torch.finfo(tensor.dtype).eps * tensor.abs().max().item()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all generators that a model may use (torch, Python, NumPy), and restore them at the end."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        with unchanged_generators([device]):
            seed_generators(seed, device)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed)
            yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)
