"""The largest singular value of a linear map that is known by its products only, from a Krylov space."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Of a warm start, relative to it. A start that is exactly orthogonal to the largest singular vector never finds it.
_NOISE = 1e-3
# Each takes the eighth power of a small matrix: at 2^21 singular values that differ by a millionth are apart.
_POWERS = 7


def start_vector(shape: tuple[int, ...], state: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a unit vector near `state`, or a random one for None or for a state that is zero or not finite.

    Always the same noise, from a generator of its own: ranks agree, a resumed run repeats, the global one is untouched.
    """
    noise = torch.empty(shape, dtype=dtype, device=device)
    noise.uniform_(-1, 1, generator=torch.Generator(device).manual_seed(0))
    if state is None:
        return _unit(noise)
    warm = _unit(state.to(dtype=dtype, device=device)).nan_to_num(0, 0, 0)
    return _unit(torch.add(warm, noise, alpha=_NOISE * math.sqrt(3 / noise.numel())))


def singular_pair(
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    *,
    krylov: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the largest singular value from below with `iterations` products with the map and with its adjoint.

    The best vector of the Krylov space of A^T A and `start`, as Golub-Kahan-Lanczos finds it, then a power iteration.
    Nothing waits for the device. Where the space ends early, its further vectors are zero and change nothing.

    Args:
        apply: The linear map A.
        adjoint: Its adjoint A^T.
        start: A unit vector.
        iterations: >= 1.
        krylov: False for plain power iteration, which keeps only the newest vector.

    Returns:
        sigma, shape (), and unit vectors u and v with sigma = <u, A v>, v of the shape of `start`. If A is zero or not
        finite, sigma is 0 or NaN, u is zero or not finite, and v is `start`.

    """
    image = apply(start)
    # Products with weights of 1e-25 have squares that are zero in float32: work on A / scale.
    scale = torch.linalg.vector_norm(image, math.inf) + torch.finfo(image.dtype).tiny
    vectors = start.new_zeros(iterations if krylov else 1, start.numel())
    images = image.new_zeros(len(vectors), image.numel())
    vectors[0], images[0] = start.flatten(), image.flatten() / scale
    for index in range(1, iterations):
        newest = index if krylov else 0
        vector = adjoint(images[newest - 1 if krylov else 0].view_as(image)).flatten() / scale
        vectors[newest] = _new_direction(vector, vectors) if krylov else _unit(vector)
        images[newest] = apply(vectors[newest].view_as(start)).flatten() / scale
    best = _largest_eigenvector(images @ images.mT) @ images if len(images) > 1 else images[0]
    u = _unit(best).view_as(image)
    v = adjoint(u) / scale
    sigma: Tensor = torch.linalg.vector_norm(v)
    usable = sigma.gt(0) & sigma.isfinite()
    v = torch.where(usable, v / torch.where(usable, sigma, 1), start)
    return sigma * scale, u, v


def _unit(vector: Tensor) -> Tensor:
    """Return `vector` over its norm; zero stays zero."""
    norm: Tensor = torch.linalg.vector_norm(vector)
    return vector / (norm + torch.finfo(vector.dtype).tiny)


def _new_direction(vector: Tensor, basis: Tensor) -> Tensor:
    """Return the unit vector along the part of `vector` that is orthogonal to the rows of `basis`; zero if none is.

    The second pass removes what rounding left. Only if all was rounding does it take away much, and then the space of
    the map is exhausted.
    """
    transposed = basis.mT
    vector = _unit(torch.addmv(vector, transposed, basis @ vector, alpha=-1))
    vector = torch.addmv(vector, transposed, basis @ vector, alpha=-1)
    kept = torch.linalg.vector_norm(vector)
    # Anything well between rounding and 1 tells them apart.
    direction: Tensor = vector * (kept.gt(0.5) / (kept + torch.finfo(vector.dtype).tiny))
    return direction


def _largest_eigenvector(gram: Tensor) -> Tensor:
    """Return an eigenvector of the largest eigenvalue of a small positive matrix.

    By squaring: `torch.linalg.eigh` would wait for the device, and raise for NaN. Where two eigenvalues are too close
    to be told apart, either vector serves.
    """
    power, tiny = gram, torch.finfo(gram.dtype).tiny
    for _ in range(_POWERS):
        power = power / (torch.linalg.vector_norm(power) + tiny)
        power = power @ power
        power = power @ power
        power = power @ power
    return power.index_select(1, power.diagonal().argmax(keepdim=True)).flatten()


def adjoint_of(apply: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the adjoint of a linear map as autograd finds it, from one graph that serves for every vector."""
    with torch.enable_grad():
        argument = example.clone().requires_grad_()
        image = apply(argument)
    if not image.requires_grad:
        msg = "`apply` must be differentiable by autograd in its argument, or `adjoint` be given."
        raise ValueError(msg)

    def adjoint(vector: Tensor) -> Tensor:
        return torch.autograd.grad(image, argument, vector, retain_graph=True)[0]

    return adjoint
