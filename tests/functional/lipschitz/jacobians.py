"""Lower bounds of Lipschitz constants that need nothing of the package: Jacobians and pairs of points."""

import copy

import torch
from torch.utils import _pytree as pytree


def flat_function(network, inputs):
    """Return the network in eval mode and float64 as a function of one vector, and the vector of `inputs`."""
    network = copy.deepcopy(network).double().eval()
    shapes = [value.shape for value in inputs]

    def function(vector):
        parts = torch.split(vector, [shape.numel() for shape in shapes])
        output = network(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))
        return torch.cat([each.flatten() for each in pytree.tree_leaves(output)])

    return function, torch.cat([value.detach().double().flatten() for value in inputs])


def jacobian_norm_at(function, vector):
    jacobian = torch.autograd.functional.jacobian(function, vector)
    return torch.linalg.matrix_norm(jacobian, 2).item()


def largest_jacobian(network, inputs, points=8, seed=0):
    """Return the largest Jacobian norm at random points, near and far from 0; a true lower bound but at kinks."""
    function, start = flat_function(network, inputs)
    generator = torch.Generator().manual_seed(seed)
    norms = [jacobian_norm_at(function, start)]
    for exponent in torch.linspace(-2, 1, points):
        vector = torch.randn(len(start), generator=generator, dtype=torch.float64) * 10**exponent
        norms.append(jacobian_norm_at(function, vector))
    return max(norms)


def searched_ratio(network, inputs, steps=60, seed=0):
    """Climb towards pairs of points whose images are far apart; return the largest ratio seen."""
    function, start = flat_function(network, inputs)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(len(start), generator=generator, dtype=torch.float64)  # noqa: E731
    pair = torch.stack([start, start + 0.1 * draw()]).requires_grad_()
    optimizer = torch.optim.Adam([pair], lr=0.05)
    best = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        distance = torch.linalg.vector_norm(pair[0] - pair[1])
        ratio = torch.linalg.vector_norm(function(pair[0]) - function(pair[1])) / distance
        if distance > 1e-4:  # closer, rounding counts
            best = max(best, ratio.item())
        (-ratio).backward()
        optimizer.step()
    return best
