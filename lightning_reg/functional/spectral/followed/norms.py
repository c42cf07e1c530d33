"""Norms of many layers, followed over time. Each step continues from the subspaces of the last one."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.spectral.batches import SMALL_ENTRIES, Matrices
from lightning_reg.functional.spectral.convolution import coarse_steps
from lightning_reg.functional.spectral.followed.cells import Taps
from lightning_reg.functional.spectral.followed.convolutions import count_vectors, follow_convolutions
from lightning_reg.functional.spectral.followed.matrices import BLOCK, follow_matrices
from lightning_reg.functional.spectral.followed.subspaces import probing, start_basis
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.precision import reported, without_autocast

ROUNDS = 2
# Steps from a random start, of one round each for convolutions. For matrices, more rounds in fewer steps are better.
_START_STEPS = 10
_START_STEPS_OF_MATRICES, _START_ROUNDS = 3, 4
# Weights of one shape are followed together, because single calls would cost more than the work. The numbers limit the
# entries of a group: the first for small weights, the second for large ones. Large weights need extra memory for less
# than a tenth of their entries.
_STACK_ENTRIES, _STACK_ENTRIES_OF_LARGE = 1 << 22, 1 << 25


class FollowedNorm(NamedTuple):
    """A lower estimate of the norm of a layer, with its gradient in factors."""

    sigma: Tensor
    """Shape (); the sum of <left_r, W right_r> over the groups and r, with W as `kernels_of` gives it.

    For a stack of matrices, shape (groups,); the sum over r alone.
    """
    left: Tensor
    """Shape (groups, 1 or 2, rows): the left singular vector, or its real and imaginary part.

    It is zero except for the group with the largest norm. In a stack, each matrix has its own vector.
    """
    right: Tensor
    """Shape (groups, 1 or 2, columns). The gradient of sigma is the sum of left_r right_r^T."""
    gain: Tensor
    """The relative gain of sigma in the last round, in the same shape. The remaining error is about as large."""
    as_matrix: bool
    """Whether the layer counts as a matrix."""


class _Kind(NamedTuple):
    """The common properties of layers that are followed together."""

    shape: tuple[int, ...]
    taps: Taps | None
    dtype: torch.dtype
    device: torch.device
    is_stack: bool
    is_known: bool


class _Member(NamedTuple):
    name: str
    kernels: Tensor


class _State(NamedTuple):
    basis: Tensor  # (groups, vectors, rows or columns)
    turn: Tensor  # (), the number of steps taken


class FollowedNorms:
    """Lower estimates of the norms of layers, followed by the layers' names.

    The norm of a matrix is its largest singular value. The norm of a convolution is its norm over images of any size
    with zero padding, whatever the layer's padding. The group with the largest norm counts. A stack of matrices has one
    norm for each matrix. Nothing waits for the device. The state is a few vectors per layer.

    Args:
        as_matrices: Whether convolutions count as matrices, their kernels reshaped.

    """

    def __init__(self, *, as_matrices: bool = False) -> None:
        self._as_matrices = as_matrices
        self._states: dict[str, _State] = {}

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a state to continue from."""
        return name in self._states

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state for `load`, by the layers' names, on the CPU."""
        return {
            name: {key: value.cpu().clone() for key, value in state._asdict().items()}
            for name, state in self._states.items()
        }

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from the result of `state`. Layers whose state is not finite, or has another shape, start anew."""
        for name, known in state.items():
            if not isinstance(known, Mapping):  # a checkpoint may hold anything
                continue
            basis, turn = known.get("basis"), known.get("turn")
            if isinstance(basis, Tensor) and isinstance(turn, Tensor) and basis.isfinite().all():
                self._states[name] = _State(basis.clone(), turn.clone())

    def forget(self, name: str) -> None:
        """Forget the state of a layer, which starts anew at its next step."""
        self._states.pop(name, None)

    @torch.no_grad()
    def advance(self, layers: Sequence[Layer], rounds: int = ROUNDS, steps: int = 1) -> list[FollowedNorm]:
        """Take steps for each layer, and return its norm; a new layer takes several more steps.

        A step reads the weights twice, and twice more in each round. Kernels may have one more round. On a CPU their
        rounds end when the norm gains little. Two rounds come within 1 % of the norm of matrices, and within 2 % of the
        norm of convolutions, if Adam moves the weights at a rate of up to 0.01. The remaining error of matrices is
        about the gain of the last round.
        """
        found: dict[str, FollowedNorm] = {}
        for kind, members in self._stacks(layers):
            with without_autocast(kind.device):
                found.update(self._step(kind, members, rounds, steps))
        return [found[layer.name] for layer in layers]

    def _stacks(self, layers: Sequence[Layer]) -> Iterator[tuple[_Kind, list[_Member]]]:
        alike: dict[_Kind, list[_Member]] = defaultdict(list)
        for layer in layers:
            kernels = kernels_of(layer, as_matrix=self._as_matrices)
            taps = None if self._as_matrices else taps_of(layer)
            kind = _Kind(tuple(kernels.shape), taps, kernels.dtype, kernels.device, layer.is_stack, is_known=False)
            kind = kind._replace(is_known=self._is_known(layer.name, kind))
            alike[kind].append(_Member(layer.name, kernels))
        for kind, members in alike.items():
            entries = math.prod(kind.shape)
            total = _STACK_ENTRIES if entries <= SMALL_ENTRIES else _STACK_ENTRIES_OF_LARGE
            count = max(1, total // max(entries, 1))
            for start in range(0, len(members), count):
                yield kind, members[start : start + count]

    def _is_known(self, name: str, kind: _Kind) -> bool:
        state = self._states.get(name)
        return state is not None and state.basis.shape == _basis_shape(kind)

    def _step(
        self, kind: _Kind, members: Sequence[_Member], rounds: int, steps: int
    ) -> Iterator[tuple[str, FollowedNorm]]:
        names = [member.name for member in members]
        groups, rows, columns = kind.shape
        if not math.prod(kind.shape):
            for name, empty in members:
                left, right = empty.new_zeros(groups, 1, rows), empty.new_zeros(groups, 1, columns)
                nothing = empty.new_zeros(groups if kind.is_stack else ())
                yield name, FollowedNorm(nothing, left, right, nothing, self._as_matrices)
            return
        kernels = Matrices([member.kernels for member in members])
        bases, turns = self._start(kind, names)
        more = 0 if kind.is_known else (_START_STEPS_OF_MATRICES if kind.taps is None else _START_STEPS) - 1
        last = more + steps - 1
        for index in range(last + 1):
            if index:
                bases = probing(bases)
            if kind.taps is None:
                count = rounds if kind.is_known else rounds * _START_ROUNDS
                sigma, left, right, gain, bases = _follow_matrices(kernels, bases, count)
            else:
                sigma, left, right, gain, bases = follow_convolutions(
                    kernels,
                    kind.taps,
                    bases,
                    turns.repeat_interleave(groups) + index,
                    rounds + 1 if kind.is_known else 0,
                    fine_steps=steps if index == last else 1,
                )
        by_layer = (torch.unflatten(part, 0, (len(members), groups)) for part in (sigma, left, right, gain, bases))
        for name, turn, *parts in zip(names, turns.unbind(), *by_layer, strict=True):
            self._states[name] = _State(parts.pop(), turn + 1)
            sigmas, lefts, rights, gains = parts
            of_each = FollowedNorm(sigmas, lefts, rights, gains, self._as_matrices)
            yield name, of_each if kind.is_stack else _largest(of_each)

    def _start(self, kind: _Kind, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the bases and turns from which to continue."""
        if kind.is_known:
            states = [self._states[name] for name in names]
            bases = torch.cat([state.basis.to(dtype=kind.dtype, device=kind.device) for state in states])
            bases = probing(bases)
            return bases, torch.stack([state.turn.to(kind.device) for state in states])
        basis = start_basis(*_basis_shape(kind)[1:], dtype=kind.dtype, device=kind.device)
        turns = torch.zeros(len(names), dtype=torch.long, device=kind.device)
        return basis.expand(len(names) * kind.shape[0], -1, -1), turns


def _follow_matrices(matrices: Matrices, bases: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Follow matrices from bases on their shorter side."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    sigma, u, v, gain, bases = follow_matrices(matrices.mT if is_tall else matrices, bases, rounds)
    left, right = (v, u) if is_tall else (u, v)
    return sigma, left[:, None], right[:, None], gain, bases


def _largest(of_each: FollowedNorm) -> FollowedNorm:
    """Return the norm of the group with the largest norm."""
    sigma, left, right, gain, as_matrix = of_each
    if len(sigma) > 1:
        best = sigma.argmax(keepdim=True)
        is_best = torch.zeros_like(sigma).scatter(0, best, 1)
        left = left * is_best[:, None, None]
        sigma, gain = sigma.gather(0, best), gain.gather(0, best)
    return FollowedNorm(sigma[0], left, right, gain[0], as_matrix)


def _basis_shape(kind: _Kind) -> tuple[int, int, int]:
    groups, rows, columns = kind.shape
    if kind.taps is None:
        side = min(rows, columns)
        return groups, min(BLOCK, side), side
    return groups, count_vectors(kind.taps, rows), rows


def kernels_of(layer: Layer, *, as_matrix: bool) -> Tensor:
    """Return the weight as matrices whose rows are outputs, one for each group, shape (groups, rows, columns).

    The matrices of a stack are groups.

    The result is differentiable, and a view if the dtype allows. The columns of a kernel are inputs and, within each
    input, taps. A transposed convolution gives the matrix of its adjoint, which has the same norm.
    """
    convolution = None if as_matrix else layer.convolution()
    if convolution is None:
        return layer.matrices()
    weight = layer.tensor.to(reported(layer.tensor))
    rows = weight.shape[0] // convolution.groups
    return weight.reshape(convolution.groups, rows, math.prod(weight.shape[1:]))


def taps_of(layer: Layer) -> Taps | None:
    """Return the positions of the taps of a convolution's kernel; None for a matrix.

    A kernel no longer than the stride also counts as a matrix, because its windows do not overlap.
    """
    convolution = layer.convolution()
    if convolution is None:
        return None
    steps = coarse_steps(convolution.stride, convolution.dilation)
    if all(size <= step for size, step in zip(convolution.kernel, steps, strict=True)):
        return None
    return Taps.of(convolution.kernel, steps)
