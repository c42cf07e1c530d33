"""The start of a strength: on the straight line through the two minima before.

Minima of the lasso lie on such a line between the strengths at which an entry comes or goes, and nearly so those of
other convex problems.
"""

import torch
from torch import Tensor
from torch.optim import SGD, Adam, NAdam, Optimizer, RAdam

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional.tensors.shards import local_part, spread_like

# The longest way beyond the last minimum, as a multiple of the way between the last two: errors grow with it.
_FARTHEST = 2.0


@torch.no_grad()
def extrapolate(trainer: Trainer, pl_module: LightningModule, run: PathRun) -> None:
    """Move the chosen weights, and the optimizer's memory of their gradients, to where the new strength has them."""
    before, last, following = run.strengths[run.position - 2 : run.position + 1]
    ratio = min((following - last) / (last - before), _FARTHEST)
    # The strength that is met; the new one, if it is not too far.
    factor = 1 + ratio * (last - before) / last
    earlier = run.points[run.position - 2].weights
    state.shard_again(pl_module)
    for weight, name in run.names.items():
        part, old = local_part(weight), local_part(spread_like(earlier[name].to(weight.device), weight))
        moved = torch.lerp(old, part, 1 + ratio)
        # Zeros stay, and an entry that would change its sign becomes one: a weight starts with few.
        part.copy_(torch.where(moved.sign() == part.sign(), moved, 0.0))
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight in run.names:
                    _rescale(optimizer, weight, factor)


def _rescale(optimizer: Optimizer, weight: Tensor, factor: float) -> None:
    """Multiply the mean gradient in the optimizer's state: at a minimum, gradients are proportional to the strength.

    Otherwise momentum would throw the weight off the minimum that it starts from.
    """
    kept = optimizer.state.get(weight, {})
    if isinstance(optimizer, SGD):
        if kept.get("momentum_buffer") is not None:
            kept["momentum_buffer"].mul_(factor)
    elif isinstance(optimizer, (Adam, NAdam, RAdam)) and "exp_avg" in kept:
        mean, square = kept["exp_avg"], kept["exp_avg_sq"]
        # A mean square is the square of the mean and a variance, which is noise and stays.
        square.sub_(torch.minimum(mean.square(), square), alpha=1 - factor**2)
        mean.mul_(factor)
