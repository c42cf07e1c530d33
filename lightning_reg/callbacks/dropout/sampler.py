"""Several passes through one model, each with its own dropout masks, in one batch if possible."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.dropout.source import children_whose_rate_is_read
from lightning_reg.callbacks.trainer.nested import map_tensors, tensors_in
from lightning_reg.functional.dropout import drop, has_formula, mask_shape
from lightning_reg.functional.tensors.random import derived_seed, seed_generators, unchanged_generators


class _CannotBatchError(Exception):
    """A tensor has no rows to repeat."""


class Sampler:
    """Calls functions of a model with active dropout.

    Each sample has its own random stream, so a pass with all samples in one batch uses the same masks as single passes.
    One trial shows whether the model treats rows independently and so permits one batch.

    Args:
        root: The model.
        sites: Its dropout rates.
        count: The number of samples.
        device: The device of the model.
        one_by_one: Whether to never try all samples in one batch.

    """

    def __init__(
        self, root: nn.Module, sites: Sequence[Site], count: int, device: torch.device, *, one_by_one: bool
    ) -> None:
        self.count = count
        self.device = device
        self.has_drawn = False
        """Whether a module has dropped at a rate above 0, whatever its mask."""
        self._drops = {site.module: site.base for site in sites if has_formula(site.module)}
        holders = {site.module for site in sites}
        # These modules draw inside a kernel, from the global generator: one sample at a time.
        readers = {part for part in root.modules() if not holders.isdisjoint(children_whose_rate_is_read(part))}
        self._others = (holders - self._drops.keys()) | readers
        self._batches: bool | None = False if one_by_one or self._others else None
        self._streams: list[torch.Generator] = []

    def __call__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], seed: str) -> Any:
        """Return the result of `function`, each tensor with the samples along a new first dimension."""
        seeds = [derived_seed(seed, sample) for sample in range(self.count)]
        with self._active():
            if self._batches:
                with suppress(_CannotBatchError, torch.OutOfMemoryError):
                    return self._in_one_batch(function, args, kwargs, seeds)
            looped = self._one_by_one(function, args, kwargs, seeds)
            if self._batches is None:
                self._batches = False
                with suppress(Exception):  # any error of the trial: single passes have just worked
                    self._batches = _agree(self._in_one_batch(function, args, kwargs, seeds), looped)
            return looped

    def _one_by_one(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], seeds: Sequence[int]
    ) -> Any:
        outputs = []
        for seed in seeds:
            self._start(seed, [seed])
            outputs.append(function(*args, **kwargs))
        return map_tensors(lambda *samples: torch.stack(samples), *outputs)

    def _in_one_batch(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], seeds: Sequence[int]
    ) -> Any:
        rows = {tensor.size(0) if tensor.ndim else 0 for tensor in tensors_in((args, kwargs))}
        if len(rows) != 1 or 0 in rows:
            raise _CannotBatchError
        self._start(seeds[0], seeds)
        args, kwargs = map_tensors(lambda tensor: tensor.repeat(self.count, *(1,) * (tensor.ndim - 1)), (args, kwargs))
        outputs = function(*args, **kwargs)
        (size,) = rows
        if any(not tensor.ndim or tensor.size(0) != self.count * size for tensor in tensors_in(outputs)):
            raise _CannotBatchError
        return map_tensors(lambda tensor: tensor.reshape(self.count, size, *tensor.shape[1:]), outputs)

    def _start(self, seed: int, seeds: Sequence[int]) -> None:
        """Begin one pass: with its global seed, and a stream for each sample in it."""
        # The seed differs from the seeds of the streams, or kernels would draw the masks of the modules.
        seed_generators(derived_seed(seed, "kernels"), self.device)
        self._streams = [torch.Generator(self.device).manual_seed(item) for item in seeds]

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Switch dropout on, and code that would bypass it off; undo both at the end."""
        with ExitStack() as undo:
            undo.enter_context(unchanged_generators([self.device]))
            # Compiled code contains the masks of evaluation. The fast path of transformers has no masks.
            undo.enter_context(torch.compiler.set_stance("force_eager"))
            undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            for module in self._others:
                if type(module).__module__.startswith("torch.nn."):
                    undo.callback(module.register_forward_pre_hook(self._note).remove)
                else:  # methods other than `forward` may drop
                    self._note()
                undo.callback(setattr, module, "training", module.training)
                module.training = True
            for module, rate in self._drops.items():
                undo.callback(vars(module).pop, "forward")
                vars(module)["forward"] = partial(self._drop, module, rate)
                undo.callback(setattr, module, "training", module.training)
                module.training = True
            yield

    def _note(self, *_: object) -> None:
        self.has_drawn = True

    def _drop(self, module: nn.Module, rate: float, inputs: Tensor) -> Tensor:
        self._note()
        samples = len(self._streams)
        if rate == 1:
            return inputs * 0
        if samples == 1:
            return drop(module, inputs, rate, self._noise(mask_shape(module, inputs.shape))[0].to(inputs.device))
        if not inputs.ndim or inputs.size(0) % samples:
            raise _CannotBatchError
        parts = inputs.reshape(samples, -1, *inputs.shape[1:])
        noise = torch.stack(self._noise(mask_shape(module, parts.shape[1:])))
        return drop(module, parts, rate, noise.to(inputs.device)).flatten(0, 1)

    def _noise(self, shape: Sequence[int]) -> list[Tensor]:
        """Return uniform numbers from each stream, in float32 whatever the default dtype."""
        return [torch.rand(shape, generator=it, device=it.device, dtype=torch.float32) for it in self._streams]


def _agree(some: Any, others: Any) -> bool:
    """Tell whether two outputs are equal up to rounding."""
    return all(
        torch.allclose(
            one.double(),
            other.double(),
            rtol=0,
            atol=_rounding(other) * other.abs().max().double().item(),
            equal_nan=True,
        )
        for one, other in zip(tensors_in(some), tensors_in(others), strict=True)
    )


def _rounding(tensor: Tensor) -> float:
    # Kernels for other sizes round differently, and TensorFloat32 has 10 bits.
    return torch.finfo(tensor.dtype).eps ** 0.5 if tensor.is_floating_point() else 0.0
