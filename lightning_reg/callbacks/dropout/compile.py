"""Dropout rates that `torch.compile` treats as data, so that a new rate does not recompile.

A rate is a Python number, which the compiler treats as a constant: every new number recompiles, and after eight the
compiler gives up. Under the compiler, modules with a known formula therefore compute it with the rate in a tensor.
Without the compiler they call their own fused kernel. Other modules with a rate run outside the graph.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.callbacks.dropout.rates import rates_of
from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.dropout.source import children_whose_rate_is_read
from lightning_reg.functional.dropout import drop, has_formula, mask_shape


class CompilableRates:
    """Replaces `forward` of the modules that hold a rate, on the instances, until `restore`.

    Args:
        root: The module in which the sites are.
        sites: The rates.
        shares: The rate of each site per unit of the common factor.
        device: The device of the model.

    """

    def __init__(self, root: nn.Module, sites: Iterable[Site], shares: Iterable[float], device: torch.device) -> None:
        # One tensor for all, so that a new factor costs one kernel.
        self._factor = torch.zeros((), device=device, dtype=torch.float32)
        self._modules: dict[nn.Module, Callable[..., Any] | None] = {}
        for site, share in zip(sites, shares, strict=True):
            if has_formula(site.module) and site.attribute in rates_of(site.module):
                self._replace(site.module, partial(_with_tensor, site.module, self._factor, share, site.module.forward))
            elif site.module not in self._modules:
                self._replace(site.module, partial(_outside_graph, site.module.forward))
        for module in root.modules():
            # Its kernel reads the number, for example fused attention with `dropout_p=self.attn_drop.p`.
            reads = any(child in self._modules for child in children_whose_rate_is_read(module))
            if reads and module not in self._modules:
                self._replace(module, partial(_outside_graph, module.forward))

    def set(self, factor: float) -> None:
        """Set the common factor, without waiting for the device."""
        self._factor.fill_(factor)

    def restore(self) -> None:
        """Restore the `forward` of each module."""
        for module, forward in self._modules.items():
            with suppress(KeyError):
                del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward
        self._modules.clear()

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._modules[module] = vars(module).get("forward")
        vars(module)["forward"] = forward


# Functions of the module, bound with `partial`: a copy of the model (weight averaging) then calls its own modules.
def _with_tensor(
    module: nn.Module, factor: Tensor, share: float, forward: Callable[[Tensor], Tensor], inputs: Tensor
) -> Tensor:
    if torch.compiler.is_compiling():
        if not module.training:
            return inputs  # `forward` would read the number
        rate = factor.to(inputs.device) * share
        noise = torch.rand(mask_shape(module, inputs.shape), device=inputs.device, dtype=torch.float32)
        return drop(module, inputs, rate, noise)
    return forward(inputs)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's has no types
def _outside_graph(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)
