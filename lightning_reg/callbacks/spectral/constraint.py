"""The spectral constraint: right after each step, project weights with a norm above c back to norm c."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.spectral.control import SpectralControl
from lightning_reg.callbacks.spectral.weights import (
    WeightNorms,
    is_matrix,
    layer_of,
    local,
    mask_of,
    of_entries,
    outline_of,
    subject,
)
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.functional.spectral.followed.clipping import (
    Clipped,
    are_inside,
    certified_shares,
    clip_exactly,
    clip_followed,
    clipping_bases,
)
from lightning_reg.functional.spectral.followed.norms import FollowedNorm
from lightning_reg.functional.spectral.followed.rooms import Rooms
from lightning_reg.functional.spectral.frequencies import bound_allowance
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.spectral.matrices import clip_singular_values
from lightning_reg.functional.spectral.norms import matrix_norm
from lightning_reg.functional.tensors.precision import without_autocast
from lightning_reg.functional.tensors.shards import has_dtensors, local_slice
from lightning_reg.selection import Select, Weight

# Matrices with a side of at most this length are checked exactly, because following would not be cheaper.
_SHORT_SIDE = 256
# Following may miss part of a norm, so it aims below the bound by a margin. Clipping uses this share of the bound, in
# this many rounds. Rescaling uses `_MISSED` plus `_GAINS` times the gain of the last round.
_BELOW = 1e-3
_CLIPPING_ROUNDS = 1
# Following cannot separate many singular values at the bound. A followed norm within this share of the bound needs a
# certificate. If that fails, a decomposition clips the matrix to this share below the bound: the next decomposition is
# then many steps away.
_NEAR = 1e-2
# Certificates try these shares of the bound. After a smaller one, more steps pass before the next certificate.
_SHARES = 0.9925, 0.995, 0.9975, 1.0
_MISSED, _GAINS = 2e-3, 4
# If a round raises a norm by more than this share, more rounds follow, at most this many.
_SETTLED, _MORE_STEPS = 5e-3, 4
# A weight of a checkpoint counts as changed if its norm exceeds the bound by a larger share.
_MOVED = 1e-3
# The number of clipping steps from a random start.
_START_STEPS = 3
# Above this multiple of the bound, float32 rounding errors would show in the result.
_FAR = 10
# Matrices of one shape are clipped together, up to this many entries.
_STACK_ENTRIES = 1 << 22


class Projection:
    """Project weights to norms of at most a bound.

    Args:
        norm_bound: c, the largest norm.
        clips: Whether to clip the singular values of matrices; otherwise they are rescaled, like convolutions.

    """

    def __init__(self, norm_bound: float, *, clips: bool) -> None:
        self._bound, self._clips = norm_bound, clips
        self._norms = WeightNorms()
        self._weights: dict[Tensor, Weight] = {}
        self._stepping: dict[Optimizer, list[Weight]] = {}
        """The weights with gradients, by the optimizers that are updating them."""
        self._bases: dict[str, Tensor] = {}
        """The bases from which clipping continues, by weight name."""
        self._rooms = Rooms()
        """How far each clipped matrix can move before its norm can exceed the bound."""

    @torch.no_grad()
    def start(self, weights: Iterable[Weight], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Project `weights`, except the ones in `saved`, unless the user has moved them out of the bound since."""
        weights = list(weights)
        self._weights |= {weight.parameter: weight for weight in weights}
        inside = self._still_inside([weight for weight in weights if isinstance(saved.get(weight.name), Mapping)])
        new = [weight for weight in weights if weight not in inside]
        for weight in inside:
            known = saved[weight.name]
            self._norms.followed.load({weight.name: known})
            bases = known.get("bases")
            if isinstance(bases, Tensor) and bool(bases.isfinite().all()):
                self._bases[weight.name] = bases.to(weight.parameter.device)
            self._rooms.load(weight.name, known)
        followed = [weight for weight in new if self._is_clipped(weight) and _short_side(weight) > _SHORT_SIDE]
        for _ in range(_START_STEPS):
            self._clip(followed)
        for weight in new:
            if is_matrix(weight) and weight not in followed:
                self._project_exactly(weight)
        self._rescale([weight for weight in new if not is_matrix(weight)])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state for the next projections, on the CPU."""
        followed = self._norms.followed.state()
        clipped = {name: {"bases": bases.cpu().clone()} for name, bases in self._bases.items()}
        parts = followed, clipped, self._rooms.state()
        return {
            weight.name: {key: value for part in parts for key, value in part.get(weight.name, {}).items()}
            for weight in self._weights.values()
        }

    def before_step(self, optimizer: Optimizer) -> None:
        """Note the weights that `optimizer` will move; some optimizers drop the gradients within their step."""
        held = (tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None)
        self._stepping[optimizer] = [self._weights[tensor] for tensor in held if tensor in self._weights]

    def before_backward(self) -> None:
        """Do nothing: a projection does not change gradients."""

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Project the weights that the step of `optimizer` moved above the bound."""
        weights = self._stepping.pop(optimizer, [])
        clipped = [weight for weight in weights if self._is_clipped(weight)]
        self._clip(clipped)
        self._rescale([weight for weight in weights if not self._is_clipped(weight)])

    def stop(self) -> None:
        """Do nothing: the weights are within the bound after each step."""

    def _still_inside(self, weights: Sequence[Weight]) -> list[Weight]:
        """Return the weights of which no norm is certainly above the bound."""
        norms = WeightNorms().advance(weights)  # from below
        limits = [self._bound * (1 + _MOVED + 2 * torch.finfo(weight.parameter.dtype).eps) for weight in weights]
        return [
            weight
            for weight, norm, limit in zip(weights, norms, limits, strict=True)
            if not bool((norm.sigma > limit).any())
        ]

    def _is_clipped(self, weight: Weight) -> bool:
        return self._clips and is_matrix(weight) and mask_of(weight) is None

    def _clip(self, weights: Sequence[Weight]) -> None:
        """Clip singular values above the bound: all in small matrices, the followed ones in large matrices."""
        alike: dict[tuple[object, ...], list[Weight]] = defaultdict(list)
        for weight in weights:
            layout = weight.shape, weight.dims, weight.is_stack
            alike[*layout, weight.parameter.dtype, weight.parameter.device].append(weight)
        for members in alike.values():
            shape, device = members[0].shape, members[0].parameter.device
            count = max(1, _STACK_ENTRIES // max(1, shape.numel())) if not has_dtensors([members[0].parameter]) else 1
            is_checked = _short_side(members[0]) <= _SHORT_SIDE and device.type == "cpu"
            clip = self._clip_checked if is_checked else self._clip_followed
            with without_autocast(device):
                for start in range(0, len(members), count):
                    clip(members[start : start + count])

    def _clip_checked(self, weights: Sequence[Weight]) -> None:
        """Check small matrices of one shape, or stacks of them; decompose and clip the ones above the bound."""
        layers = [layer_of(weight) for weight in weights]
        own = [layer.matrices() for layer in layers]
        doubts = (~are_inside(torch.cat(own) if len(own) > 1 else own[0], self._bound)).tolist()
        for weight, layer, matrices, doubtful in zip(
            weights, layers, own, _in_parts(doubts, len(own[0]), len(own)), strict=True
        ):
            if any(doubtful):
                clipped = _clipped_exactly(matrices, doubtful, self._inside(weight))
                local(weight).copy_(local_slice(layer.from_matrices(clipped), weight.parameter))

    def _clip_followed(self, weights: Sequence[Weight]) -> None:
        """Clip the followed singular values of large matrices of one shape; decompose matrices that stay in doubt."""
        layers = {weight: layer_of(weight) for weight in weights}
        is_tall = _is_tall(layers[weights[0]])
        own = {
            weight: matrices
            for weight, layer in layers.items()
            if not self._rooms.is_inside(weight.name, matrices := layer.matrices().mT if is_tall else layer.matrices())
        }
        if not own:
            return
        parts = list(own.values())
        matrices, each = torch.cat(parts) if len(parts) > 1 else parts[0], len(parts[0])
        start = clipping_bases(matrices[:each])
        known = [self._bases.get(weight.name, start).to(start.dtype) for weight in own]
        bases = torch.cat([basis if basis.shape == start.shape else start for basis in known])
        found = clip_followed(matrices, self._bound * (1 - _BELOW), bases, _CLIPPING_ROUNDS)
        is_due = [self._rooms.is_due(weight.name) for weight in own for _ in range(each)]
        at_most = torch.where(found.is_doubtful, torch.inf, self._at_most_clipped(found, is_due))
        doubts = _in_parts(_known_at_once(~(at_most <= self._bound)), each, len(own))
        for weight, doubtful, basis, now, limits in zip(
            own, doubts, *(torch.split(part, each) for part in (found.bases, found.matrices, at_most)), strict=True
        ):
            self._bases[weight.name] = basis
            narrow = now.mT if is_tall else now
            if any(doubtful):
                # Clip to below the bound: the next decomposition is then many steps away.
                narrow = _clipped_exactly(narrow, doubtful, self._inside(weight) * (1 - _NEAR), is_rough=True)
                limits = torch.where(torch.tensor(doubtful), self._bound * (1 - _NEAR / 2), limits)
            if any(doubtful) or found.matrices is not matrices:
                whole_again = layers[weight].from_matrices(narrow.contiguous())
                local(weight).copy_(local_slice(whole_again, weight.parameter))
            self._rooms.note(weight.name, narrow.mT if is_tall else narrow, self._bound - limits)

    def _at_most_clipped(self, found: Clipped, is_due: Sequence[bool]) -> Tensor:
        """Return an upper limit of the norm of each clipped matrix; infinity if it may exceed the bound.

        A followed norm far from the bound counts without a certificate, unless the next steps will rely on it. On a
        GPU, no norm gets a certificate.
        """
        at_most = (found.sigma * (1 + _NEAR + _GAINS * found.gain)).clamp(min=self._bound * _NEAR)
        is_near = ~(at_most <= self._bound)
        for index, is_followed in enumerate(_known_at_once(~(is_near | found.is_doubtful))):
            if is_followed and is_due[index]:
                # Following may have missed a larger one, and within the room nothing would look for it.
                share = float(at_most[index]) / self._bound
                certified = certified_shares(found.matrices[index : index + 1], self._bound, (share,))
                is_near[index : index + 1] = certified.isinf()
        near = [index for index, one in enumerate(_known_at_once(is_near & ~found.is_doubtful)) if one]
        at_most = at_most.clamp(max=self._bound)
        if near:
            some = found.matrices[near] if len(near) < len(at_most) else found.matrices
            shares = certified_shares(some, self._bound, _SHARES)
            at_most[near] = (shares * self._bound).to(at_most.dtype)
        return at_most

    def _rescale(self, weights: Sequence[Weight]) -> None:
        """Rescale weights whose followed norms may be above the bound."""
        found = dict(zip(weights, self._norms.advance(weights), strict=True))
        unsettled = list(weights)
        for _ in range(_MORE_STEPS):
            doubts = [_known_at_once(self._is_doubtful(weight, found[weight]).reshape(-1)) for weight in unsettled]
            unsettled = [weight for weight, doubt in zip(unsettled, doubts, strict=True) if any(doubt)]
            if not unsettled:
                break
            found.update(zip(unsettled, self._norms.advance(unsettled), strict=True))
        for weight, norm in found.items():
            factor = self._inside(weight) / self._at_most(weight, norm)
            local(weight).mul_(of_entries(torch.where(factor < 1, factor, 1), weight))

    def _at_most(self, weight: Weight, norm: FollowedNorm) -> Tensor:
        """Return an upper limit of a weight's followed norm; for a convolution, of its certified bound."""
        convolution = layer_of(weight).convolution()
        allowance = 1.0 if convolution is None else bound_allowance(convolution)
        return norm.sigma * ((1 + _MISSED + _GAINS * norm.gain.clamp(min=0)) * allowance)

    def _is_doubtful(self, weight: Weight, norm: FollowedNorm) -> Tensor:
        """Tell whether a norm near the bound needs another step of following."""
        return (norm.gain > _SETTLED) & (self._at_most(weight, norm) > self._bound)

    def _project_exactly(self, weight: Weight) -> None:
        """Project a matrix by a decomposition, which waits for the device; leave a matrix with NaN unchanged."""
        layer, values = layer_of(weight), local(weight)
        with without_autocast(values.device):
            matrices, inside = layer.matrices(), self._inside(weight)
            norms = matrix_norm(matrices)
            excesses = [norm / self._bound for norm in norms.tolist()]
            if not any(excess > 1 for excess in excesses):
                return
            if self._is_clipped(weight):
                clipped = [
                    clip_singular_values(matrix, inside, is_far=excess > _FAR) if excess > 1 else matrix
                    for matrix, excess in zip(matrices, excesses, strict=True)
                ]
                values.copy_(local_slice(layer.from_matrices(torch.stack(clipped)), weight.parameter))
            else:
                factors = torch.where(norms > self._bound, inside / norms, 1)
                values.copy_(values * of_entries(factors if weight.is_stack else factors[0], weight))

    def _inside(self, weight: Weight) -> float:
        """Return the bound minus a small margin, because rounding may raise a norm."""
        return self._bound * (1 - torch.finfo(weight.parameter.dtype).eps)


def _clipped_exactly(matrices: Tensor, doubtful: Sequence[bool], inside: float, *, is_rough: bool = False) -> Tensor:
    """Return `matrices` with the doubtful ones clipped by decompositions."""
    clipped = [
        clip_exactly(matrix, inside, is_rough=is_rough) if is_doubtful else matrix
        for matrix, is_doubtful in zip(matrices, doubtful, strict=True)
    ]
    return torch.stack(clipped) if len(clipped) > 1 else clipped[0][None]


def _is_tall(layer: Layer) -> bool:
    rows, columns = layer.matrices().shape[1:]
    return rows > columns


def _in_parts(doubts: Sequence[bool], each: int, parts: int) -> list[Sequence[bool]]:
    """Split `doubts` into one part per weight; empty parts if `doubts` is empty, because nothing is known."""
    return [doubts[part * each : (part + 1) * each] for part in range(parts)]


def _short_side(weight: Weight) -> int:
    return min(outline_of(weight).matrices().shape[1:])


def _known_at_once(doubts: Tensor) -> list[bool]:
    """Return the doubts on a CPU; nothing on a GPU, where reading would wait and the next step corrects weights."""
    return doubts.tolist() if doubts.device.type == "cpu" else []


Method = Literal["clip", "rescale"]


@final
class SpectralConstraint(SpectralControl):
    r"""Keep the norm of each layer at c or below: project weights to :math:`\sigma(W) \le c` after each optimizer step.

    The bound is hard: it holds from the start of `fit`, after every step, up to a factor of 1.0001. In half precision,
    the rounding of weights comes on top; on a GPU, see the exception below. Weights within the bound do not change. A
    step that the fp16 scaler skips does not count.

    - Matrices (of Linear, Embedding, LSTM, attention) are clipped: singular values above c become c. This is the true
      projection, to the nearest matrix within the bound. Rescaling would shrink all singular values, step after step,
      and starve the network at a tight bound. Rows and columns of zeros stay exactly zero.
    - Convolutions are rescaled until their certified bound (`functional.conv_norm_bound`, for images of any size) is at
      most c, so their true norms end a few per cent below c.
    - Modules, `state_dict` and gradients do not change. Ranks of DDP stay equal. Under FSDP2, one layer is gathered at
      a time.

    Cost: the callback checks matrices with a side of 256 or less after each step, and decomposes them if they are above
    the bound. In larger matrices, it follows the singular vectors above c from step to step, and clips their values to
    0.999 c. If the norm is then near c, a factorization certifies the result. If that fails, as with hundreds of
    singular values at c, a decomposition clips the matrix to 0.99 c. The callback skips all this while the weight
    cannot have moved from its last certified norm to c. One product with 8 random vectors decides that, with an error
    probability below 1e-6. For convolutions and rescaled matrices, the callback follows the norm, and holds it below c
    with a margin. It takes more steps of following if an optimizer step moves a weight far.

    During training on a GPU, the callback never waits for the device. It follows all matrices without a certificate.
    Later steps correct what it missed: with hundreds of singular values at c, norms can exceed c by a few per cent for
    some steps.

    Logged: nothing during training. `RegularizationMonitor` logs the norms (`reg/spectral_norm_max` is the largest, on
    the scale of c). A table printed before training, and TensorBoard's text `reg/setup_spectral`, show what happens to
    each weight.

    Args:
        norm_bound: c, > 0.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Weights outside any layer (class tokens, position tables, layer scales; see `register_layer`)
            are left alone, unless a pattern matches nothing else. Each stacked expert (experts x out x in, in a module
            that is not a layer of torch) is one matrix.
        method: How to project matrices: `"clip"` or `"rescale"`. Pruned matrices are always rescaled.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, if a
            weight is complex or computed by another parametrization, or if c is too large for its precision.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), or a
            weight is controlled twice.

    Example:
        >>> SpectralConstraint(1.0, select="encoder.*")
        SpectralConstraint(norm_bound=1.0, select='encoder.*', method='clip')

    Reference:
        Gouk et al., Regularisation of Neural Networks by Enforcing Lipschitz Continuity, 2021, arXiv:1804.04368; for
        clipping: Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019, arXiv:1805.10408.

    """

    def __init__(
        self,
        norm_bound: float,
        *,
        select: str | Sequence[str] | Select | None = None,
        method: Method = "clip",
    ) -> None:
        super().__init__(norm_bound, select)
        self.method = _checks.one_of("method", method, get_args(Method))

    @override
    def engine(self) -> Projection:
        return Projection(self.norm_bound, clips=self.method == "clip")

    @override
    def action(self, weight: Weight) -> str:
        how = "clipped" if is_matrix(weight) and self.method == "clip" else "rescaled"
        return f"{subject(weight)}{how} to norm <= {self.norm_bound:g}"

    @override
    def change(self, weight: Weight) -> Change:
        # Clipping singular values does not preserve zeros.
        return "moves" if is_matrix(weight) and self.method == "clip" else "shrinks"

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound}
