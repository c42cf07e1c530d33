"""The distance to earlier weights as a penalty: fine-tuning that does not forget its start."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, final, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode, Penalty
from lightning_reg.functional import l1_norm, squared_l2_norm
from lightning_reg.functional.penalties.elementwise import add_elementwise_gradient_
from lightning_reg.functional.proximal.optimality import elementwise_residual
from lightning_reg.functional.tensors.chunks import chunk_size, chunks
from lightning_reg.functional.tensors.shards import local_part, local_parts
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select
from lightning_reg.selection.weights import clean_name

Norm = Literal["l2", "l1"]


@final
class AnchorPenalty(Penalty):
    r"""Add :math:`\lambda \sum (w - w^0)^2` to the objective: weights stay near earlier ones (L2-SP).

    Use it for fine-tuning: the model keeps its knowledge where the new data have none. Checkpoints store :math:`w^0`,
    and a restored :math:`w^0` replaces `anchor`, so a resumed run equals the uninterrupted one. If a checkpoint lacks
    it, a warning says so, and `"start"` means the start of the resumed run. It takes the memory of one copy of the
    chosen weights. Logged as `reg/penalty/anchor`, see `Penalty`.

    Args:
        strength: :math:`\lambda`, >= 0.
        anchor: :math:`w^0`: `"start"`, where this training starts; or a file, a checkpoint of Lightning or a state dict
            that `torch.save` has written; or a mapping from names of weights to tensors. It must have every chosen
            weight. A file is read when training starts, with `weights_only=True`.
        norm: `"l2"`, or `"l1"` for :math:`\lambda \sum |w - w^0|`, which with `mode="proximal"` keeps most weights
            exactly at :math:`w^0`.
        select: Which weights, see `Penalty`.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.
        offload: Whether :math:`w^0` is kept on the CPU, with the same results to the bit. Each step then copies it to
            the device, from pinned memory, so that the host does not wait but the step takes longer; all of it in mode
            `"loss"`, a part at a time in the others.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`; when training starts, if there is no file `anchor`,
            or the anchor lacks a chosen weight, has it in another shape, or is not finite.
        MisconfigurationException: When training starts, under FSDP1, and see `Penalty`.

    Example:
        >>> AnchorPenalty(0.01, select="encoder.*")
        AnchorPenalty(strength=0.01, anchor='start', norm='l2', select='encoder.*', mode='loss', ...)

    Reference:
        Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, 2018, arXiv:1802.01483.

    """

    elementwise = True

    def __init__(  # noqa: PLR0913  # the arguments of every penalty, and three more
        self,
        strength: float,
        anchor: str | os.PathLike[str] | Mapping[str, Tensor] = "start",
        *,
        norm: Norm = "l2",
        select: str | Sequence[str] | Select | None = None,
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
        offload: bool = False,
    ) -> None:
        super().__init__(strength, select=select, mode=mode, schedule=schedule)
        if not isinstance(anchor, str | os.PathLike | Mapping):
            msg = f'`anchor` must be "start", a file, or a mapping from names to tensors, got {anchor!r}.'
            raise TypeError(msg)
        self.anchor = _Tensors(_checked(anchor)) if isinstance(anchor, Mapping) else anchor
        self.norm = _checks.one_of("norm", norm, get_args(Norm))
        self.offload = _checks.boolean("offload", offload)

    @property
    @override
    def offloads(self) -> bool:
        return self.offload

    @override
    def remember(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.anchor == "start":
            return weights
        if isinstance(self.anchor, Mapping):
            # The state dict of the module itself shares its memory: a second fit would find the trained weights there.
            places = {_place(weight) for weight in weights.values()}
            shared = {name: tensor.clone() for name, tensor in self.anchor.items() if _place(tensor) in places}
            self.anchor = _Tensors({**self.anchor, **shared})
            given: Mapping[str, Tensor] = self.anchor
        else:
            given = _read(self.anchor)
        anchors = {clean_name(name): tensor for name, tensor in given.items()}
        return {name: _fitting(anchors, name, weight) for name, weight in weights.items()}

    @override
    def penalty(self, weights: Sequence[Tensor], memory: Sequence[Tensor]) -> Tensor:
        distances = [weight - anchor for weight, anchor in zip(weights, _beside(weights, memory), strict=True)]
        return squared_l2_norm(distances) if self.norm == "l2" else l1_norm(distances)

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        if not weights:
            return
        parts = local_parts(grads), local_parts(weights), local_parts(self._anchors(weights))
        for some_grads, some_weights, some_anchors in chunks(*parts, size=chunk_size(parts[1])):
            distances = torch._foreach_sub(some_weights, _beside(some_weights, some_anchors))
            add_elementwise_gradient_(some_grads, list(distances), **{self.norm: factor})

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor], memory: Sequence[Tensor]) -> None:
        for weight, factor, anchor in zip(weights, factors, _beside(weights, memory), strict=True):
            if self.norm == "l2":
                weight.add_((anchor - weight) * (2 * factor / (1 + 2 * factor)))
            else:
                distance = weight - anchor
                # Not `anchor + ...`, because a step with factor 0 (fp16) must not change the weight by a bit.
                moved = weight - distance.sgn() * factor
                weight.copy_(torch.where(distance.abs() <= factor, anchor, moved))

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        l1, l2 = (0.0, 1.0) if self.norm == "l2" else (1.0, 0.0)
        # The difference first, because it is exact near the anchor.
        parts = local_parts(weights)
        distances = torch._foreach_sub(parts, _beside(parts, local_parts(self._anchors(weights))))
        return elementwise_residual(list(distances), grads, l1=l1, l2=l2)

    def _anchors(self, weights: list[Tensor]) -> list[Tensor]:
        return cast("list[Tensor]", self._memory.of(weights))  # all chosen weights have one


def _beside(weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    """Return anchors on the devices of their weights, without waiting for offloaded ones."""
    return [anchor.to(weight.device, non_blocking=True) for weight, anchor in zip(weights, anchors, strict=True)]


class _Tensors(dict[str, Tensor]):
    """Tensors by name, whose `repr` shows only their number, because settings go to the loggers."""

    @override
    def __repr__(self) -> str:
        return f"<{len(self)} tensors>"


def _place(tensor: Tensor) -> int:
    """Return where the memory of this rank's part of a tensor begins."""
    return local_part(tensor.detach()).untyped_storage().data_ptr()


def _checked(tensors: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    for name, tensor in tensors.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            msg = f"`anchor` must be a mapping from names to tensors, got {tensor!r} for {name!r}."
            raise TypeError(msg)
    return tensors


def _read(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Return the state dict in a file."""
    if not Path(path).is_file():
        msg = f'`anchor` must be "start", a file, or a mapping from names to tensors; there is no file {str(path)!r}.'
        raise ValueError(msg)
    found = torch.load(path, map_location="cpu", weights_only=True)
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping):
        msg = f"`anchor` must be a file with a state dict, got one with a {type(state).__name__}: {str(path)!r}."
        raise TypeError(msg)
    # Other contents of such a file are not weights.
    return {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _fitting(anchors: Mapping[str, Tensor], name: str, weight: Tensor) -> Tensor:
    """Return the anchor of a weight."""
    anchor = anchors.get(name)
    if anchor is None:
        msg = (
            f"`anchor` must have every chosen weight, but lacks {name!r}. Nearest: {_checks.nearest(name, anchors)}."
            " Rename its entries, or choose other weights with `select`."
        )
        raise ValueError(msg)
    if anchor.shape != weight.shape:
        msg = (
            f"`anchor` must have weights of the model's shapes, got {tuple(anchor.shape)} for {name!r},"
            f" which is {tuple(weight.shape)}. Leave this weight out of `select`."
        )
        raise ValueError(msg)
    if not torch.isfinite(anchor).all():
        msg = (
            f"`anchor` must be finite, got NaN or infinity in {name!r}, which would go into the weights. Take an"
            " earlier checkpoint, or leave this weight out of `select`."
        )
        raise ValueError(msg)
    return anchor.to(weight.dtype)
