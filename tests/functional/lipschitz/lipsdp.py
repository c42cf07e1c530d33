"""The LipSDP bound of one small network; needs cvxpy, which the tests do not: `python tests/functional/lipsdp.py`.

Fazlyab et al., Efficient and Accurate Estimation of Lipschitz Constants for Deep Neural Networks, 2019,
arXiv:1906.04893: the smallest L for which a diagonal multiplier T >= 0 makes the matrix below negative semidefinite
(LipSDP-Neuron, without the multipliers between neurons). It is below ECLipsE-Fast, whose T is a feasible point of it.
"""

import itertools

import numpy as np
import scipy.optimize

WIDTHS = (5, 8, 6, 3)
# Output of `solve`, with cvxpy 1.9.3 and Clarabel.
LIPSDP = 0.2881946903


def weights():
    """Return the weights, with the scale of torch's default initialization; the same on every machine."""
    generator = np.random.RandomState(7)  # frozen by NumPy
    return [
        generator.uniform(-1, 1, (rows, columns)) / np.sqrt(columns) for columns, rows in itertools.pairwise(WIDTHS)
    ]


def solve():
    """Return the bound for slopes in [0, 1]."""
    import cvxpy

    layers = weights()
    sizes = [layers[0].shape[1], *(len(layer) for layer in layers[:-1])]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    hidden, total = sum(sizes[1:]), sum(sizes)
    # All pre-activations A x and activations B x of the stacked vector x of the input and the activations.
    inside = np.zeros((hidden, total))
    for index, layer in enumerate(layers[:-1]):
        start = offsets[index + 1] - sizes[0]
        inside[start : start + len(layer), offsets[index] : offsets[index + 1]] = layer
    outside = np.hstack([np.zeros((hidden, sizes[0])), np.eye(hidden)])
    square, multipliers = cvxpy.Variable(nonneg=True), cvxpy.Variable(hidden, nonneg=True)
    diagonal = cvxpy.diag(multipliers)
    first = np.zeros((total, total))
    first[: sizes[0], : sizes[0]] = np.eye(sizes[0])
    last = np.zeros((layers[-1].shape[0], total))
    last[:, offsets[-2] :] = layers[-1]
    cross = inside.T @ diagonal @ outside
    matrix = cross + cross.T - 2 * outside.T @ diagonal @ outside - square * first + last.T @ last
    problem = cvxpy.Problem(cvxpy.Minimize(square), [(matrix + matrix.T) / 2 << 0])
    problem.solve(solver=cvxpy.CLARABEL)
    return float(np.sqrt(square.value))


def by_search(first, last, low, high):
    """Return the bound of two matrices, with slopes from `low` to `high` of the units between, without a solver.

    For multipliers T of the units F that are not linear, the least square is the largest eigenvalue of a Schur
    complement, and the least bound is found by comparing its values.
    """
    low, high = np.broadcast_to(low, len(first)), np.broadcast_to(high, len(first))
    free = high > low
    units, a, b = first[free], low[free], high[free]
    through = last[:, ~free] @ (low[~free, None] * first[~free])
    out = last[:, free]

    def square(logarithms):
        t = np.exp(logarithms)
        among = np.diag(t) - out.T @ out
        if np.linalg.eigvalsh(among)[0] <= 1e-9:
            return np.inf
        across = -units.T @ np.diag(t * (a + b) / 2) - through.T @ out
        own = units.T @ np.diag(t * a * b) @ units - through.T @ through
        return np.linalg.eigvalsh(across @ np.linalg.inv(among) @ across.T - own)[-1]

    at = np.full(len(a), np.log(2 * np.linalg.norm(out, 2) ** 2))
    for _ in range(4):  # it may stop early
        options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-9, "fatol": 1e-12}
        at = scipy.optimize.minimize(square, at, method="Nelder-Mead", options=options).x
    return np.sqrt(square(at))


if __name__ == "__main__":
    print(solve())
