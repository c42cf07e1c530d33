"""Largest singular values of linear maps from Krylov spaces, which need only products with the maps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Relative noise in a warm start. A start exactly orthogonal to the largest singular vector would never find it.
_NOISE = 1e-3
# Each takes the eighth power of a small matrix: at 2^21 singular values that differ by a millionth are apart.
_POWERS = 7


def start_vectors(shape: tuple[int, ...], states: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a unit vector near each of `states`; a random one for None, or for a state that is zero or not finite.

    The noise is always the same, from a separate generator: ranks agree, a resumed run repeats, and the global
    generator is not used.

    Args:
        shape: Shape of `states` and of the result, (vectors, ...).
        states: Singular vectors found before.
        dtype: Dtype of the result.
        device: Device of the result.

    """
    noise = torch.empty(shape[1:], dtype=dtype, device=device)
    noise.uniform_(-1, 1, generator=torch.Generator(device).manual_seed(0))
    if states is None:
        return _units(noise.expand(shape))
    warm = _units(states.to(dtype=dtype, device=device)).nan_to_num(0, 0, 0)
    return _units(torch.add(warm, noise, alpha=_NOISE * math.sqrt(3 / max(1, noise.numel()))))


def singular_pairs(
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    starts: Tensor,
    iterations: int,
    *,
    krylov: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate largest singular values from below with `iterations` products with each map and with its adjoint.

    The best vector of the Krylov space of A^T A and a start, as Golub-Kahan-Lanczos finds it, then a power iteration.
    Nothing waits for the device. If the space ends early, its further vectors are zero and change nothing. A map that
    is not finite does not affect the others.

    Args:
        apply: Maps A of one shape, each for its own vector: from (maps, ...) to (maps, ...).
        adjoint: Their adjoints A^T.
        starts: A unit vector for each map, shape (maps, ...).
        iterations: >= 1.
        krylov: False for plain power iteration, which keeps only the newest vector.

    Returns:
        sigma, shape (maps,), and unit vectors u and v, shape (maps, ...), with sigma = <u, A v>. If a map is zero or
        not finite, its sigma is 0 or NaN, its u is zero or not finite, and its v is the start.

    """
    image = apply(starts)
    if not starts[0].numel() or not image[0].numel():
        return image.new_zeros(len(image)), image, starts
    # Products with weights of 1e-25 have squares that are zero in float32: work on A / scale.
    scale = torch.linalg.vector_norm(image.flatten(1), math.inf, dim=1, keepdim=True) + torch.finfo(image.dtype).tiny
    vectors = starts.new_zeros(len(starts), iterations if krylov else 1, starts[0].numel())
    images = image.new_zeros(len(starts), vectors.shape[1], image[0].numel())
    vectors[:, 0], images[:, 0] = starts.flatten(1), image.flatten(1) / scale
    for index in range(1, iterations):
        newest = index if krylov else 0
        vector = adjoint(images[:, newest - 1 if krylov else 0].view_as(image)).flatten(1) / scale
        vectors[:, newest] = _new_directions(vector, vectors) if krylov else _units(vector)
        images[:, newest] = apply(vectors[:, newest].view_as(starts)).flatten(1) / scale
    best = _largest_eigenvectors(images @ images.mT) @ images if images.shape[1] > 1 else images
    u = _units(best[:, 0])
    v = adjoint(u.view_as(image)).flatten(1) / scale
    sigma: Tensor = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    usable = sigma.gt(0) & sigma.isfinite()
    v = torch.where(usable, v / torch.where(usable, sigma, 1), starts.flatten(1))
    return (sigma * scale)[:, 0], u.view_as(image), v.view_as(starts)


def _units(vectors: Tensor) -> Tensor:
    """Return each vector over its norm; zero stays zero."""
    norms: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return vectors / (norms + torch.finfo(vectors.dtype).tiny).view(-1, *[1] * (vectors.ndim - 1))


def _new_directions(vectors: Tensor, bases: Tensor) -> Tensor:
    """Return the unit vector along the part of each vector that is orthogonal to the rows of its basis, or zero.

    The second pass removes the rest from rounding. It removes much only if everything was rounding; then the space of
    the map is exhausted.
    """
    transposed = bases.mT
    rows = vectors[:, None]
    rows = _units(torch.baddbmm(rows, rows @ transposed, bases, alpha=-1))
    rows = torch.baddbmm(rows, rows @ transposed, bases, alpha=-1)
    kept = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    # Anything well between rounding and 1 tells them apart.
    directions: Tensor = rows * (kept.gt(0.5) / (kept + torch.finfo(vectors.dtype).tiny))
    return directions[:, 0]


def _largest_eigenvectors(grams: Tensor) -> Tensor:
    """Return an eigenvector of the largest eigenvalue of each small positive matrix, shape (matrices, 1, entries).

    By squaring, because `torch.linalg.eigh` would wait for the device, and raise for NaN. If two eigenvalues are too
    close to distinguish, either vector serves.
    """
    power, tiny = grams, torch.finfo(grams.dtype).tiny
    for _ in range(_POWERS):
        power = power / (torch.linalg.vector_norm(power, dim=(1, 2), keepdim=True) + tiny)
        power = power @ power
        power = power @ power
        power = power @ power
    rows = power.diagonal(dim1=1, dim2=2).argmax(1)
    return power.take_along_dim(rows[:, None, None], 1)


def adjoint_of(apply: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the adjoint of a linear map by autograd, from one graph for every vector."""
    with torch.enable_grad():
        argument = example.clone().requires_grad_()
        image = apply(argument)
    if not image.requires_grad:
        msg = "`apply` must be differentiable by autograd in its argument, or `adjoint` be given."
        raise ValueError(msg)

    def adjoint(vector: Tensor) -> Tensor:
        return torch.autograd.grad(image, argument, vector, retain_graph=True)[0]

    return adjoint
