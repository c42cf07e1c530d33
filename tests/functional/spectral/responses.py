"""The norm of a convolution over images of any size, by hand: its response at each frequency of a fine grid."""

import itertools
import math

import numpy as np


def sup_norm(layer, weight=None, points=24, refinements=4):
    """Return the largest singular value on the grid, refined around the best, over groups; in double precision."""
    weight = (layer.weight if weight is None else weight).detach().double().numpy()
    points = min(points, 12) if weight.ndim > 4 else points
    steps = [s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True)]
    return max(_group_norm(group, steps, points, refinements) for group in np.split(weight, layer.groups))


def _group_norm(kernel, steps, points, refinements):
    dims = kernel.ndim - 2
    axes = [np.arange(points) * 2 * np.pi / points] * dims
    axes[0] = axes[0][: points // 2 + 1]
    frequencies = np.array(list(itertools.product(*axes)))
    norms = _norms(kernel, steps, frequencies)
    best = frequencies[np.argsort(norms)[-3:]]
    largest, width = norms.max(), 2 * np.pi / points
    for _ in range(refinements):
        width /= 3
        around = np.array(list(itertools.product(*[(-width, 0, width)] * dims)))
        frequencies = (best[:, None] + around).reshape(-1, dims)
        norms = _norms(kernel, steps, frequencies)
        best = frequencies[np.argsort(norms)[-3:]]
        largest = max(largest, norms.max())
    return largest


def _norms(kernel, steps, frequencies):
    outputs, inputs, *sizes = kernel.shape
    phases = math.prod(steps)
    response = np.zeros((len(frequencies), outputs, inputs, phases), dtype=complex)
    for tap in itertools.product(*map(range, sizes)):
        position = np.array([t // s for t, s in zip(tap, steps, strict=True)])
        phase = 0
        for t, s in zip(tap, steps, strict=True):
            phase = phase * s + t % s
        wave = np.exp(1j * frequencies @ position)
        response[..., phase] += wave[:, None, None] * kernel[(slice(None), slice(None), *tap)]
    return np.linalg.svd(response.reshape(len(frequencies), outputs, -1), compute_uv=False)[:, 0]
