"""Calling a function to measure it, in a way that leaves it and everything around it as it was."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_reg.functional._generators import unchanged_generators
from lightning_reg.functional._singular import without_autocast


@contextmanager
def measured(fn: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Have `fn` compute what it computes in evaluation, in kernels that autograd can differentiate twice.

    Without autocast and compiled graphs; random numbers that it draws are put back.

    Args:
        fn: A module, a method of one, or any other function.
        device: Where it computes.

    """
    owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    with ExitStack() as undo:
        undo.enter_context(unchanged_generators([device]))
        # What aot_autograd compiles cannot be differentiated twice.
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        # Nor can the fused kernels of attention, and those of cuDNN's recurrent layers not even once in evaluation.
        undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        if device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in modules):
            undo.enter_context(torch.backends.cudnn.flags(enabled=False))
        undo.enter_context(without_autocast(device))
        # Lightning validates in inference mode.
        undo.enter_context(torch.inference_mode(False))  # noqa: FBT003  # torch's
        for module in modules:
            # Not by `eval()`: adapters merge their weights into those of the model when it is called.
            undo.callback(setattr, module, "training", module.training)
            module.training = False
        yield
