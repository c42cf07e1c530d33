"""Find random modules in a model with all dropout rates at 0, by two passes with different random numbers."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from lightning_reg.callbacks.dropout.extremes import push_
from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.trainer.nested import tensors_in
from lightning_reg.callbacks.trainer.unobserved import Kept
from lightning_reg.functional.tensors.random import seed_generators, unchanged_generators

_ENTRIES = 256
_SEEDS = (1, 2)
# So many draws are extreme: a loop that draws until a number fits must come to an end.
_PUSHED = 1000
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

    Numbers that masks are made of are small in one pass and large in the other. So what happens seldom, as skipping a
    layer with probability 0.02, happens in one of them.

    Args:
        root: The model.
        run: Makes a pass; it is called twice, and again with usual numbers if extreme ones raise an error.
        sites: All known rates.
        device: The device of the model.

    Returns:
        Modules in the order of the pass; `root` if it is random but no module called in it is.

    """
    try:
        return _origins(*_traces(root, run, sites, device, extreme=True))
    except Exception:  # of a model that cannot drop everything, for example
        return _origins(*_traces(root, run, sites, device, extreme=False))


def _traces(
    root: nn.Module, run: Callable[[], Any], sites: Sequence[Site], device: torch.device, *, extreme: bool
) -> list[list["_Call"]]:
    """Return the calls of two passes."""
    kept, rates = Kept(root), [site.value for site in sites]
    traces = []
    for seed in _SEEDS:
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), _seeded(seed, device):
                for site in sites:
                    site.set(0.0)
                traces.append(_trace(root, run, _Draws(device, is_large=seed > 1 if extreme else None)))
        finally:
            kept.put_back()
            for site, rate in zip(sites, rates, strict=True):
                if site.value != rate:  # the rate is in an object of the module, which `kept` does not restore
                    site.set(rate)
    return traces


class _Call(NamedTuple):
    module: nn.Module
    depth: int
    inputs: list[Tensor]
    outputs: list[Tensor]


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Draws the same random numbers in every pass, except numbers that masks can be made of.

    Args:
        device: The device of the model.
        is_large: Whether numbers that masks can be made of are all large, or all small; None for neither.

    """

    def __init__(self, device: torch.device, *, is_large: bool | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.depth = 0
        """The number of modules being called."""
        self._device, self._is_large = device, is_large
        self._draws = 0
        self._pushed = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not self._may_be_mask(func):
            self._draws += 1
            with unchanged_generators([self._device]):
                seed_generators(self._draws, self._device)
                return func(*args, **(kwargs or {}))
        drawn = func(*args, **(kwargs or {}))
        if self._is_large is not None and torch.Tag.nondeterministic_seeded in func.tags and self._pushed < _PUSHED:
            self._pushed += 1
            push_(drawn, func, args, kwargs or {}, is_large=self._is_large)
        return drawn

    def _may_be_mask(self, function: Any) -> bool:
        name = function.overloadpacket.__name__
        return name not in _NOISE if self.depth else any(word in name for word in _MASKS)


def _trace(root: nn.Module, run: Callable[[], Any], noise: _Draws) -> list[_Call]:
    """Return the calls of modules in a pass, in the order in which they end, followed by the pass itself."""
    calls: list[_Call] = []
    inputs: list[list[Tensor]] = []
    with noise, ExitStack() as hooks:

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
    """Return the call at `index`, and the calls that run when it ends, from the innermost on."""
    found: list[_Call] = []
    for call in calls[index:]:
        if not found or call.depth < found[-1].depth:
            found.append(call)
    return found


def _samples(nested: Any) -> list[Tensor]:
    """Return some entries of each tensor."""
    return [
        tensor.detach().flatten()[:: max(1, tensor.numel() // _ENTRIES)].clone()
        for tensor in tensors_in(nested)
        if tensor.numel()
    ]


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    # A GPU may add numbers in another order.
    return len(some) == len(others) and all(
        one.shape == other.shape and one.dtype == other.dtype and _is_close(one, other)
        for one, other in zip(some, others, strict=True)
    )


def _is_close(one: Tensor, other: Tensor) -> bool:
    if not other.is_floating_point():
        return torch.equal(one, other)
    rounding = 10 * torch.finfo(other.dtype).eps * other.abs().max().item()
    return torch.allclose(one, other, rtol=1e-3, atol=rounding, equal_nan=True)


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
