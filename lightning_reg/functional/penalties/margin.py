"""How far the certified radii of samples fall short of a radius."""

import torch
from torch import Tensor

from lightning_reg.functional.tensors.precision import reported


def margin_shortfall(logits: Tensor, classes: Tensor, rows: Tensor, gain: Tensor, radius: float) -> Tensor:
    r"""Return by how much certified radii fall short of `radius`, a mean over samples.

    .. math:: \frac{1}{N} \sum_n \max_{j \ne y_n} \max\left(0, r - \frac{f_{y_n} - f_j}{M_{y_n j}}\right),
        \qquad M_{ij} = g \|w_i - w_j\|_2

    Classes whose difference is constant, with M = 0, do not count.

    Args:
        logits: f, shape (N, K).
        classes: y, whole numbers from 0 to K - 1, shape (N,).
        rows: w, the weight of the last layer, shape (K, features).
        gain: g, an upper bound of how much the layers before the last one stretch their input, shape ().
        radius: r, in the unit of the input.

    Returns:
        The mean in the unit of the input, shape (), differentiable in `logits`, `rows` and `gain`, in float32 at least.

    """
    dtype = reported(logits)
    outputs, rows = logits.to(dtype), rows.to(dtype)
    own, weights = outputs.gather(1, classes[:, None]), rows[classes]
    with torch.no_grad():
        # Distances computed by matrix products would lose the digits of rows that are close.
        distances = torch.cdist(weights, rows, compute_mode="donot_use_mm_for_euclid_dist")
        radii = torch.where(distances == 0, torch.inf, (own - outputs) / distances)
        nearest = radii.argmin(1)
    margins = (own - outputs.gather(1, nearest[:, None]))[:, 0]
    # The gradient needs the distance to one row only.
    bounds = gain.to(dtype) * torch.linalg.vector_norm(weights - rows[nearest], dim=1)
    is_constant = bounds == 0
    shortfalls = torch.relu(radius - margins / torch.where(is_constant, 1, bounds))
    return torch.where(is_constant, 0, shortfalls).sum() / max(len(logits), 1)
