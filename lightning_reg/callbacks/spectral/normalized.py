r"""Spectral normalization without a trace in the network: the parameters hold the normalized weights.

The optimizer is to train W, while the network is to use W c / sigma(W). So each parameter holds W c / sigma, and sigma
is kept beside it. Complete gradients are converted to gradients of W, and the parameter becomes W. After the
optimizer's update, sigma is estimated anew, and the parameter is normalized again.
"""

import contextlib
import weakref
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.targets import gradients
from lightning_reg.callbacks.spectral.weights import (
    WeightNorms,
    add_gradient,
    fits,
    known_at_once,
    layer_of,
    local,
    of_entries,
)
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, rank_zero_warn
from lightning_reg.functional.spectral.followed.gradient import value_at
from lightning_reg.functional.spectral.followed.norms import FollowedNorm
from lightning_reg.functional.tensors.shards import has_dtensors, local_part, whole
from lightning_reg.selection import Weight

# Longer dot products in float32 are off by more than rounding.
_DOT_ENTRIES = 1 << 20
# If a step raises a norm by a larger share, as after a jump of the weights, at most so many more steps follow.
_SETTLED, _MORE_STEPS = 1e-2, 3
# A saved norm belongs to the weight if the norm of the weight along its vectors is the bound up to this share.
_SAME = 0.05
# The saved fields of a norm.
_NUMBERS = "sigma", "left", "right", "gain"


@dataclass(eq=False)
class Normalized:
    """A normalized weight with its state."""

    weight: Weight
    norm: FollowedNorm
    """The norm of W."""
    rest: Tensor | None = None
    """The part of W lost in rounding to half precision, so that small updates add up."""
    is_raw: bool = True
    """Whether the parameter currently holds W."""
    used: "Used | None" = None
    """The gradient of the optimizer's last step."""

    def scale(self, bound: float) -> Tensor:
        """Return sigma / c, by which the parameter is multiplied to give W; 1 for the zero weight."""
        return torch.where(self.norm.sigma == 0, 1, self.norm.sigma / bound)


class Used:
    """A gradient that is already converted to the gradient of W, until something writes to it."""

    def __init__(self, grad: Tensor) -> None:
        self._grad = weakref.ref(grad)
        self._version = local_part(grad)._version  # noqa: SLF001  # has no public name
        self.is_added_to = False
        """Whether a backward pass that adds to it has begun."""

    def is_same(self, grad: Tensor | None) -> bool:
        """Tell whether `grad` is that tensor."""
        return grad is not None and self._grad() is grad

    def is_untouched(self, grad: Tensor | None) -> bool:
        """Tell whether `grad` is that tensor, unchanged."""
        return grad is not None and self.is_same(grad) and local_part(grad)._version == self._version  # noqa: SLF001


class Normalization:
    """Normalizes weights, and lets optimizers train the unnormalized weights.

    Args:
        norm_bound: c, the norm of normalized weights.
        as_matrices: Whether convolutions count as matrices.
        iterations: Steps of following the norm after each step of the optimizer.

    """

    def __init__(self, norm_bound: float, *, as_matrices: bool, iterations: int) -> None:
        self._bound, self._iterations, self._as_matrices = norm_bound, iterations, as_matrices
        self._norms = WeightNorms(as_matrices=as_matrices)
        self._members: dict[Tensor, Normalized] = {}

    @torch.no_grad()
    def start(self, weights: Iterable[Weight], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Normalize `weights`; weights in `saved` are already normalized, and continue from there."""
        new = []
        for weight in weights:
            member = self._restored(weight, saved[weight.name]) if weight.name in saved else None
            if member is None:
                new.append(weight)
            else:
                self._members[weight.parameter] = member
        for weight, norm in zip(new, self._norms.advance(new, steps=self._iterations), strict=True):
            self._members[weight.parameter] = Normalized(weight, _finite(norm))
        self.stop()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state from which `start` continues, on the CPU."""
        followed = self._norms.followed.state()
        return {
            member.weight.name: {**_state(member), **followed.get(member.weight.name, {})}
            for member in self._members.values()
        }

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Give `optimizer` the unnormalized weights with their gradients."""
        members = [member for member in self._of(optimizer) if member.weight.parameter.grad is not None]
        for member in members:
            self._put_gradient(member)
        for member in members:
            self._denormalize(member)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, moved: AbstractSet[Tensor]) -> None:
        """Normalize the weights that `optimizer` has updated."""
        members = [member for member in self._of(optimizer) if member.is_raw]
        unsettled = members
        for _ in range(1 + _MORE_STEPS):
            norms = self._norms.advance([member.weight for member in unsettled], steps=self._iterations)
            for member, norm in zip(unsettled, norms, strict=True):
                member.norm = _finite(norm)
            unsettled = [member for member in unsettled if any(known_at_once(member.norm.gain > _SETTLED))]
        for member in members:
            self._normalize(member)

    def before_backward(self) -> None:
        """Note gradients left from the last step: gradients added to them belong to another weight."""
        for parameter, member in self._members.items():
            if member.used is not None and member.used.is_untouched(parameter.grad):
                member.used.is_added_to = True

    @torch.no_grad()
    def stop(self) -> None:
        """Leave normalized weights, even after an exception in the middle of a step."""
        for member in self._members.values():
            if member.is_raw:
                self._normalize(member)

    def _restored(self, weight: Weight, saved: Mapping[str, Tensor]) -> Normalized | None:
        """Return a weight with its saved state; `None`, with a warning, if the state does not fit it."""
        with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):
            known = {name: tensor.to(weight.parameter.device) for name, tensor in saved.items()}
            numbers = {name: known[name] for name in _NUMBERS}
            norm = FollowedNorm(**numbers, as_matrix=self._as_matrices)
            rest = known.get("rest")
            is_alike = fits(weight, norm) and (rest is None or rest.shape == local(weight).shape)
            if is_alike and self._is_of(weight, norm):
                self._norms.followed.load({weight.name: known})
                return Normalized(weight, norm, rest, is_raw=False)
        rank_zero_warn(
            f"The checkpoint's state of SpectralNormalization for {weight.name!r} is damaged, or of another weight."
            " Its normalization starts anew, from the current weight."
        )
        return None

    def _is_of(self, weight: Weight, norm: FollowedNorm) -> bool:
        """Tell whether a weight is normalized by `norm`; not if the user has changed the weight in the checkpoint."""
        shares = value_at(layer_of(weight), norm) / self._bound
        return bool(((norm.sigma == 0) | ((shares - 1).abs() < _SAME)).all())

    def _of(self, optimizer: Optimizer) -> list[Normalized]:
        held = (tensor for group in optimizer.param_groups for tensor in group["params"])
        return [self._members[tensor] for tensor in held if tensor in self._members]

    def _put_gradient(self, member: Normalized) -> None:
        r"""Turn the gradient g of the normalized weight V = W c / sigma into the gradient of W.

        It is :math:`\frac{c}{\sigma} (g - \frac{\langle g, V \rangle}{c} \nabla \sigma(W))`, and g for the zero
        weight, which has no direction yet.
        """
        weight, norm = member.weight, member.norm
        parameter = weight.parameter
        if member.used is not None and member.used.is_untouched(parameter.grad):
            return  # a second step with one gradient
        if member.used is not None and member.used.is_added_to and member.used.is_same(parameter.grad):
            msg = (
                f"The gradient of {weight.name!r} was not reset between its optimizer's step and the next backward"
                " pass. It is now a sum of gradients of different weights, which SpectralNormalization cannot separate."
                " Call `optimizer.zero_grad()` after each step, with its default `set_to_none=True`."
            )
            raise MisconfigurationException(msg)
        (grad,) = gradients([parameter])
        inverse = 1 / member.scale(self._bound)
        products = _inners if weight.is_stack else _inner
        factor = products(grad, parameter.detach()) * (-inverse / self._bound)
        local_part(grad).mul_(of_entries(inverse, weight))
        add_gradient(grad, weight, norm, factor)
        member.used = Used(grad)

    def _denormalize(self, member: Normalized) -> None:
        values, scale = local(member.weight), of_entries(member.scale(self._bound), member.weight)
        if member.rest is None:
            values.mul_(scale)
        else:
            values.copy_(values.to(scale.dtype) * scale + member.rest)
        member.is_raw = True

    def _normalize(self, member: Normalized) -> None:
        values, scale = local(member.weight), of_entries(member.scale(self._bound), member.weight)
        if values.dtype == scale.dtype:
            values.div_(scale)
        else:
            raw = values.to(scale.dtype)
            values.copy_(raw / scale)
            member.rest = (raw - values.to(raw.dtype) * scale).to(values.dtype).nan_to_num_(0, 0, 0)
        member.is_raw = False


def _finite(norm: FollowedNorm) -> FollowedNorm:
    """Return the norm of the zero weight in place of a norm that is not finite, which would spoil a restored weight."""
    sigma, left, right, gain, as_matrix = norm
    is_finite = sigma.isfinite()
    of_each = is_finite[:, None, None] if is_finite.ndim else is_finite
    parts = (torch.where(of_each, left, 0), torch.where(of_each, right, 0))
    return FollowedNorm(torch.where(is_finite, sigma, 0), *parts, torch.where(is_finite, gain, 0), as_matrix)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner product, over all ranks, in float32 at least."""
    if has_dtensors([first, second]):
        return whole((first.float() * second.float()).sum())
    parts = (tensor.reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (first, second))
    pairs = zip(*(torch.split(part, _DOT_ENTRIES) for part in parts), strict=True)
    return torch.stack([torch.dot(*pair) for pair in pairs]).sum()


def _inners(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner product of each pair of matrices in two stacks, over all ranks, in float32 at least."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    return whole((first.to(dtype) * second.to(dtype)).sum((1, 2)))


def _state(member: Normalized) -> dict[str, Tensor]:
    tensors = {name: getattr(member.norm, name) for name in _NUMBERS}
    tensors |= {} if member.rest is None else {"rest": member.rest}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
