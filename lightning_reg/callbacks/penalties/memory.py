"""The memory of a penalty for each weight, such as its initial value: made once, saved, and sharded like the weight."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.trainer.packages import rank_zero_warn
from lightning_reg.functional.tensors.shards import Offloaded, as_placed, has_dtensors, spread_like, whole
from lightning_reg.selection.weights import Weight

Remember = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Memory:
    """One tensor for each chosen weight, or none; from the start of training to the next `fit`."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tensor | Offloaded] = {}
        self._by_weight: dict[Tensor, Tensor] = {}
        self._names: frozenset[str] = frozenset()
        """All weights passed to `remember`, with a tensor or None."""
        self._is_missing = False
        """Whether there was a checkpoint of a run without this memory."""

    def load(self, state: Mapping[str, Any] | None, *, has_begun: bool) -> None:
        """Load the state of a checkpoint, or `None`; `has_begun` if the checkpoint's run had taken steps."""
        if self._by_weight:  # a tuner restores its first checkpoint
            return
        self._is_missing = state is None and has_begun
        if state is not None:
            self._by_name, self._names = dict(state["tensors"]), frozenset(state["weights"])

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: whole tensors on the CPU; empty before the memory is made.

        A collective call where they are sharded.
        """
        if not self._names:
            return {}
        # Copies, because the trainer may continue before an asynchronous writer is done.
        tensors = {
            name: (tensor.whole() if isinstance(tensor, Offloaded) else whole(tensor)).to("cpu", copy=True)
            for name, tensor in self._by_name.items()
        }
        return {"weights": sorted(self._names), "tensors": tensors}

    @torch.no_grad()
    def begin(
        self, remember: Remember, weights: Sequence[Weight], owner: str, *, sharded: bool, offload: bool = False
    ) -> None:
        """Assign the restored tensors to the weights, and call `remember` for the other weights.

        Args:
            remember: Maps weights by name to tensors by name.
            weights: The chosen weights.
            owner: Name of the penalty, for messages.
            sharded: Whether `remember` takes DTensors; else it gets whole weights, gathered as they are read.
            offload: Whether this rank's parts are kept on the CPU, for an owner that works on parts.

        """
        if self._by_weight:  # a tuner has trained briefly before
            return
        restored = bool(self._names)
        new = {weight.name: weight.parameter.detach() for weight in weights if weight.name not in self._names}
        if new:
            if restored or self._is_missing:
                rank_zero_warn(
                    f"The checkpoint holds nothing that {owner} remembers of {', '.join(map(repr, sorted(new)))}:"
                    " it is made anew from the weights in the checkpoint, so the term may differ from the previous"
                    " run's. Resume from a checkpoint of a run that had this callback, with the same `select`."
                )
            self._by_name |= _checked(remember(new if sharded else _Gathered(new)), new, owner)
        self._names |= new.keys()
        for weight in weights:
            found = self._by_name.get(weight.name)
            if isinstance(found, Tensor):
                kept = _kept(found, weight.parameter, offload=offload)
                self._by_name[weight.name] = kept
                self._by_weight[weight.parameter] = kept.part if isinstance(kept, Offloaded) else kept

    def of(self, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the memory of each weight, sharded like the weight; the parts if it is offloaded."""
        return [self._by_weight.get(weight) for weight in weights]

    def end(self) -> None:
        """Release the weights and device memory; the rest is for a checkpoint after `fit`."""
        self._by_weight = {}
        self._by_name = {
            name: tensor if isinstance(tensor, Offloaded) or has_dtensors([tensor]) else tensor.cpu()
            for name, tensor in self._by_name.items()
        }


class _Gathered(Mapping[str, Tensor]):
    """Whole weights, one at a time. All ranks read them in one order."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    @override
    def __getitem__(self, name: str) -> Tensor:
        return whole(self._weights[name])

    @override
    def __iter__(self) -> Any:
        return iter(self._weights)

    @override
    def __len__(self) -> int:
        return len(self._weights)


def _checked(found: object, weights: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the result of `remember`, if it is a mapping from names of `weights` to tensors."""
    if not isinstance(found, Mapping):
        msg = f"`{owner}.remember` must return a mapping from names of weights to tensors, got {type(found).__name__}."
        raise TypeError(msg)
    for name, tensor in found.items():
        if name not in weights:
            msg = (
                f"`{owner}.remember` must return names of the weights that it is given, got {name!r}."
                f" Nearest: {_checks.nearest(str(name), weights)}."
            )
            raise ValueError(msg)
        if not isinstance(tensor, Tensor):
            msg = f"`{owner}.remember` must return tensors, got {type(tensor).__name__} for {name!r}."
            raise TypeError(msg)
    return dict(found)


def _kept(tensor: Tensor, weight: Tensor, *, offload: bool) -> Tensor | Offloaded:
    """Return a copy of `tensor` where `weight` is: the tensor may be the weight itself, which training changes."""
    tensor = tensor.detach()
    if offload and not has_dtensors([weight]):
        return Offloaded(tensor, weight.device)
    if has_dtensors([tensor]):
        kept = as_placed(tensor, weight).clone() if tensor.shape == weight.shape else tensor.clone()
    else:
        kept = spread_like(tensor.to(weight.device, copy=True), weight)
    return Offloaded(kept, weight.device) if offload else kept
