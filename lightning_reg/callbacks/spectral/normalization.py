r"""Spectral normalization without a trace in the network: the parameters hold the normalized weights.

The optimizer is to train W, while the network is to use W c / sigma(W). So each parameter holds W c / sigma, and sigma
is kept beside it. Complete gradients are converted to gradients of W, and the parameter becomes W. After the
optimizer's update, sigma is estimated anew, and the parameter is normalized again.
"""

import contextlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.spectral.control import Run, SpectralControl
from lightning_reg.callbacks.spectral.weights import WeightNorms, add_gradient, fits, local, of_entries, subject
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_reg.callbacks.trainer.refusals import refuse_early_change
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.functional.spectral.followed import FollowedNorm
from lightning_reg.functional.tensors.shards import as_placed, has_dtensors, local_part, whole
from lightning_reg.selection import Select, Weight

# Longer dot products in float32 are off by more than rounding.
_DOT_ENTRIES = 1 << 20
# The saved fields of a norm.
_NUMBERS = "sigma", "left", "right", "gain"


@dataclass(eq=False)
class Normalized:
    """A normalized weight with its state."""

    weight: Weight
    norm: FollowedNorm
    """Of W."""
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
            self._members[weight.parameter] = Normalized(weight, norm)
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
        norms = self._norms.advance([member.weight for member in members], steps=self._iterations)
        for member, norm in zip(members, norms, strict=True):
            member.norm = norm
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
            if fits(weight, norm) and (rest is None or rest.shape == local(weight).shape):
                self._norms.followed.load({weight.name: known})
                return Normalized(weight, norm, rest, is_raw=False)
        rank_zero_warn(
            f"The checkpoint's state of SpectralNormalization for {weight.name!r} is damaged, or of another weight."
            " Its normalization starts anew, from the current weight."
        )
        return None

    def _of(self, optimizer: Optimizer) -> list[Normalized]:
        held = (tensor for group in optimizer.param_groups for tensor in group["params"])
        return [self._members[tensor] for tensor in held if tensor in self._members]

    def _put_gradient(self, member: Normalized) -> None:
        r"""Turn the gradient g of the normalized weight V = W c / sigma into the gradient of W.

        It is :math:`\frac{c}{\sigma} (g - \frac{\langle g, V \rangle}{c} \nabla \sigma(W))`; g for the zero weight,
        which has no direction yet and is to find one.
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
        grad = _placed_gradient(parameter)
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
            member.rest = (raw - values.to(raw.dtype) * scale).to(values.dtype)
        member.is_raw = False


def _placed_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient as it can be changed in place: dense, and spread over ranks as the parameter is."""
    grad = parameter.grad
    if grad is None:  # those without are left out before
        raise RuntimeError
    dense = grad.to_dense() if grad.is_sparse else grad
    placed = as_placed(dense, parameter)
    if placed is not grad:
        parameter.grad = placed
    return placed


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


Norm = Literal["operator", "matrix"]


@final
class SpectralNormalization(SpectralControl):
    r"""Train W while the network uses :math:`c\,W / \sigma(W)`, whose norm is c: spectral normalization.

    The update is the one of Miyato et al.: the gradient goes through :math:`\sigma(W) = u^T W v` with constant u and v,
    which are estimated anew after each optimizer step. But the parameters of the module hold the normalized weights,
    and become W only during the optimizer's update. So monitors, weight averaging, validation, checkpoints, `deepcopy`
    and `torch.compile` all read the normalized weight, and reading changes nothing. Module types, parameter names and
    `state_dict` do not change; the optimizer has the same parameters, and its weight decay acts on W.

    - After every step, norms are c within 1 %, and usually within 2 % for convolutions, also under Adam at rates up to
      0.01, because blocks of singular vectors are followed. If another singular value of a convolution overtakes the
      largest one, the error can be up to 4 % for some steps. The norms are estimated from below, so true norms are c
      or a little more; `SpectralConstraint` holds a bound.
    - Weights are normalized from the start of `fit` on, and stay so after it. `validate`, `test` and `predict` do not
      change weights.
    - Checkpoints hold normalized weights under their plain names; the callback's own state holds the rest of W. Any
      checkpoint of the module can be loaded, and a resumed run continues exactly.
    - Gradient clipping and penalties see the normalized weights and their gradients.
    - A weight that starts at zero stays zero until its first update, which is not normalized, and then has norm c.
      Leave it out if it should grow slowly. A frozen weight is normalized when it is first trained.
    - A second step with the same gradients makes the same update of W. Gradients to which a backward pass adds after a
      step are refused: reset them.

    Logged: nothing during training; `RegularizationMonitor` logs the norms (`reg/spectral_norm_max`: the largest, on
    the scale of c). A table printed before training, and TensorBoard's text `reg/setup_spectral`, show what happens to
    each weight.

    Args:
        norm_bound: c, > 0: the norm of each layer, and so the largest factor by which it stretches its input.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Weights that sit in no layer (class tokens, position tables, layer scales; see `register_layer`)
            are left alone, unless a pattern matches nothing else. Stacked experts (experts x out x in, in a module that
            is not a layer of torch) are one matrix each.
        norm: Of convolutions: `"operator"` is the norm of the map between images of any size, the least upper bound
            with zero padding. `"matrix"` is the norm of the kernel reshaped to a matrix, as in Miyato et al. and torch:
            cheaper, but the convolution stretches its input by up to :math:`\prod \sqrt{\lceil k / s \rceil}` more.
        power_iterations: Improvements of the singular vectors after each step, >= 1. Each is a step of a block
            iteration, worth many of torch's; 1 is enough for the accuracy above.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            weight is complex or computed by another parametrization, or c too large for its precision.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), a weight
            is controlled twice, or is trained by SparseAdam; later, if gradients are not reset.

    Example:
        >>> SpectralNormalization(2.0, select="critic.*")
        SpectralNormalization(norm_bound=2.0, select='critic.*', norm='operator', power_iterations=1)

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018, arXiv:1802.05957; for the norm
        of convolutions: Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019, arXiv:1805.10408.

    """

    def __init__(
        self,
        norm_bound: float = 1.0,
        *,
        select: str | Sequence[str] | Select | None = None,
        norm: Norm = "operator",
        power_iterations: int = 1,
    ) -> None:
        super().__init__(norm_bound, select)
        self.norm = _checks.one_of("norm", norm, get_args(Norm))
        self.power_iterations = _checks.count("power_iterations", power_iterations, 1)

    @override
    def engine(self) -> Normalization:
        return Normalization(self.norm_bound, as_matrices=self.norm == "matrix", iterations=self.power_iterations)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        run = super().make_run(trainer, pl_module)
        names = {weight.parameter: weight for weight in run.selection.chosen}
        for optimizer in trainer.optimizers:
            held = [names[tensor] for group in optimizer.param_groups for tensor in group["params"] if tensor in names]
            if isinstance(optimizer, torch.optim.SparseAdam) and held:
                msg = (
                    f"SparseAdam cannot train {held[0].name!r} under SpectralNormalization, which makes its gradient"
                    " dense: each entry of W changes the norm. Use Adam or SGD, or leave the weight out:"
                    f" `select=Select(exclude={held[0].plain_name!r})`."
                )
                raise MisconfigurationException(msg)
        return run

    @override
    def action(self, weight: Weight) -> str:
        return f"{subject(weight)}normalized to {self.norm} norm {self.norm_bound:g}"

    @override
    def change(self, weight: Weight) -> Change:
        return "norms"

    @override
    def refuse_early_change(self, optimizer: Optimizer) -> None:
        if self._run is not None and self._run.guard.of(optimizer):
            refuse_early_change(optimizer, type(self).__name__, "Use SpectralConstraint, or another optimizer.")

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound, "norm": self.norm}
