r"""Spectral normalization without a trace in the network: the parameters hold the normalized weights.

The optimizer is to train W, while the network is to use W c / sigma(W). So each parameter holds W c / sigma, and sigma
is kept beside it. When its gradients are complete, they become those of W, and the parameter becomes W; the optimizer
makes its update; then sigma is estimated anew, and the parameter normalized again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.spectral.control import SpectralControl
from lightning_reg.callbacks.spectral.weights import WeightNorms, add_gradient, local
from lightning_reg.functional.spectral.estimates import SingularPair
from lightning_reg.functional.tensors.shards import as_placed, has_dtensors, local_part, whole
from lightning_reg.selection import Select, Weight

# Longer dot products in float32 are off by more than rounding.
_DOT_ENTRIES = 1 << 20


@dataclass(eq=False)
class Normalized:
    """A weight that is normalized, and what is kept of it."""

    weight: Weight
    pair: SingularPair
    """Of W."""
    rest: Tensor | None = None
    """What rounding to half precision has taken from W, so that small updates are not lost."""
    is_raw: bool = True
    """Whether the parameter holds W at the moment."""

    def scale(self, bound: float) -> Tensor:
        """Return sigma / c, by which the parameter is multiplied to give W; 1 for the zero weight."""
        return torch.where(self.pair.sigma == 0, 1, self.pair.sigma / bound)


class Normalization:
    """Normalizes weights, and lets optimizers train what lies beneath.

    Args:
        norm_bound: c, the norm of normalized weights.
        as_matrices: Whether convolutions count as matrices.
        iterations: Products with the weight and with its transpose after each step.

    """

    def __init__(self, norm_bound: float, *, as_matrices: bool, iterations: int) -> None:
        self._bound, self._iterations = norm_bound, iterations
        self._norms = WeightNorms(as_matrices=as_matrices)
        self._members: dict[Tensor, Normalized] = {}

    @torch.no_grad()
    def start(self, weights: Iterable[Weight], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Normalize `weights`; those among `saved` are normalized already, and go on from there."""
        for weight in weights:
            if weight.name in saved:
                known = {name: tensor.to(weight.parameter.device) for name, tensor in saved[weight.name].items()}
                pair, rest = SingularPair(known["sigma"], known["u"], known["v"]), known.get("rest")
                self._norms.vectors[weight.name] = pair.v
                self._members[weight.parameter] = Normalized(weight, pair, rest, is_raw=False)
            else:
                (pair,) = self._norms.pairs([weight], self._iterations)
                self._members[weight.parameter] = Normalized(weight, pair)
        self.stop()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what `start` goes on from, on the CPU."""
        return {member.weight.name: _state(member) for member in self._members.values()}

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Give `optimizer` what it is to train, with its gradient."""
        members = [member for member in self._of(optimizer) if member.weight.parameter.grad is not None]
        for member in members:
            self._put_gradient(member)
        for member in members:
            self._denormalize(member)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Normalize what `optimizer` has updated."""
        members = [member for member in self._of(optimizer) if member.is_raw]
        pairs = self._norms.pairs([member.weight for member in members], self._iterations)
        for member, pair in zip(members, pairs, strict=True):
            member.pair = pair
            self._normalize(member)

    @torch.no_grad()
    def stop(self) -> None:
        """Leave normalized weights, also if an exception has come in the middle of a step."""
        for member in self._members.values():
            if member.is_raw:
                self._normalize(member)

    def _of(self, optimizer: Optimizer) -> list[Normalized]:
        held = (tensor for group in optimizer.param_groups for tensor in group["params"])
        return [self._members[tensor] for tensor in held if tensor in self._members]

    def _put_gradient(self, member: Normalized) -> None:
        r"""Turn the gradient g of the normalized weight V = W c / sigma into that of W.

        It is :math:`\frac{c}{\sigma} (g - \frac{\langle g, V \rangle}{c} \nabla \sigma(W))`; 0 for the zero weight,
        which has no direction.
        """
        weight, pair = member.weight, member.pair
        parameter = weight.parameter
        grad = _placed_gradient(parameter)
        inverse = torch.where(pair.sigma == 0, 0, self._bound / pair.sigma)
        factor = _inner(grad, parameter.detach()) * (-inverse / self._bound)
        local_part(grad).mul_(inverse)
        add_gradient(grad, weight, pair, factor)

    def _denormalize(self, member: Normalized) -> None:
        values, scale = local(member.weight), member.scale(self._bound)
        if member.rest is None:
            values.mul_(scale)
        else:
            values.copy_(values.to(scale.dtype) * scale + member.rest)
        member.is_raw = True

    def _normalize(self, member: Normalized) -> None:
        values, scale = local(member.weight), member.scale(self._bound)
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


def _state(member: Normalized) -> dict[str, Tensor]:
    tensors = {**member.pair._asdict(), **({} if member.rest is None else {"rest": member.rest})}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


Norm = Literal["operator", "matrix"]


@final
class SpectralNormalization(SpectralControl):
    r"""Train W while the network uses :math:`c\,W / \sigma(W)`, whose norm is c: spectral normalization.

    The update is that of Miyato et al.: the gradient goes through :math:`\sigma(W) = u^T W v` with u and v constant,
    and u and v are advanced once after each optimizer step. But the parameters of the module hold the normalized
    weights, and become W for the moment of the optimizer's update only. So whatever reads a weight finds the
    normalized one, and changes nothing by reading: monitors, weight averaging, validation, checkpoints, `deepcopy`,
    `torch.compile`. Module types, parameter names and `state_dict` stay as they are; the optimizer has the same
    parameters, and its weight decay acts on W.

    - :math:`\sigma` is a lower estimate, so true norms are above c: by less than 1 % where a step changes weights
      little, by up to a third in the first epochs of Adam at 0.003, and for a moment by more (up to twice c has been
      seen) where momentum moves weights far. `power_iterations` lessens that; `SpectralConstraint` holds a bound.
    - Weights are normalized from the start of `fit` on, and stay so after it. `validate`, `test` and `predict` take the
      weights as they are.
    - Checkpoints hold normalized weights under their plain names; what is needed to go on with W is in the callback's
      own state. Any checkpoint of the module can be loaded, and a resumed run goes on exactly.
    - Gradient clipping and penalties see the normalized weights and their gradients.
    - A zero weight stays zero. A frozen weight is normalized when it is first trained.

    Logged: nothing at steps; `RegularizationMonitor` has the norms (`reg/spectral_norm_max`: the largest, on the scale
    of c). What happens to which weight is printed before training, and TensorBoard's text `reg/setup_spectral`.

    Args:
        norm_bound: c, > 0: the norm of each layer, and so the factor by which it stretches its input at most.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Those that sit in no layer (class tokens, position tables, layer scales; see `register_layer`)
            are left alone, unless a pattern matches nothing else.
        norm: Of convolutions: `"operator"` is the norm of the map between images (of 16 pixels a side, or more where
            the kernel asks for it); `"matrix"` that of the kernel reshaped to a matrix, as Miyato et al. and torch have
            it: cheaper, but the convolution stretches its input by up to :math:`\prod \sqrt{\lceil k / s \rceil}` more.
        power_iterations: Products with each weight and its transpose after each step, >= 1.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            weight is complex or computed by another parametrization.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), or a
            weight is controlled twice.

    Example:
        >>> SpectralNormalization(2.0, select="critic.*")
        SpectralNormalization(norm_bound=2.0, select='critic.*', norm='operator', power_iterations=1)

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018, arXiv:1802.05957; for the norm
        of convolutions: Ryu et al., Plug-and-Play Methods Provably Converge, 2019, arXiv:1905.05406.

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
    def action(self, weight: Weight) -> str:
        return f"normalized to {self.norm} norm {self.norm_bound:g}"

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound, "norm": self.norm}
