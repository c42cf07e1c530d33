"""Weights projected to norms of at most c: right after each step, matrices are clipped and convolutions rescaled."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.spectral.weights import (
    WeightNorms,
    is_matrix,
    known_at_once,
    layer_of,
    local,
    mask_of,
    of_entries,
    outline_of,
)
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
from lightning_reg.selection import Weight

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
        """Do nothing: a projection does not change gradients."""

    def before_backward(self) -> None:
        """Do nothing: a projection does not change gradients."""

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, moved: AbstractSet[Tensor]) -> None:
        """Project the weights that the step of `optimizer` moved above the bound."""
        held = (tensor for group in optimizer.param_groups for tensor in group["params"] if tensor in moved)
        weights = [self._weights[tensor] for tensor in held if tensor in self._weights]
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
        doubts = _in_parts(known_at_once(~(at_most <= self._bound)), each, len(own))
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
        for index, is_followed in enumerate(known_at_once(~(is_near | found.is_doubtful))):
            if is_followed and is_due[index]:
                # Following may have missed a larger one, and within the room nothing would look for it.
                share = float(at_most[index]) / self._bound
                certified = certified_shares(found.matrices[index : index + 1], self._bound, (share,))
                is_near[index : index + 1] = certified.isinf()
        near = [index for index, one in enumerate(known_at_once(is_near & ~found.is_doubtful)) if one]
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
            doubts = [known_at_once(self._is_doubtful(weight, found[weight])) for weight in unsettled]
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
