"""Start a strength on the straight line through the last two minima.

Lasso minima lie on such a line until an entry becomes zero or nonzero. The minima of other convex problems lie close to
one.
"""

import torch
from torch import Tensor
from torch.optim import SGD, Adam, NAdam, Optimizer, RAdam

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional.tensors.shards import local_part, spread_like

# The longest step beyond the last minimum, as a multiple of the distance between the last two. Errors grow with it.
_FARTHEST = 2.0


@torch.no_grad()
def extrapolate(trainer: Trainer, pl_module: LightningModule, run: PathRun) -> None:
    """Move the selected weights along the line to the new strength, and rescale the optimizer's mean gradients."""
    before, last, following = run.strengths[run.position - 2 : run.position + 1]
    ratio = min((following - last) / (last - before), _FARTHEST)
    # The strength reached on the line, divided by the last one. It is the new strength, unless that is too far.
    factor = 1 + ratio * (last - before) / last
    earlier = run.points[run.position - 2].weights
    state.shard_again(pl_module)
    for weight, name in run.names.items():
        part, old = local_part(weight), local_part(spread_like(earlier[name].to(weight.device), weight))
        moved = torch.lerp(old, part, 1 + ratio)
        # Zeros stay zero, and an entry that would change its sign becomes zero: start with few nonzero entries.
        part.copy_(torch.where(moved.sign() == part.sign(), moved, 0.0))
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight in run.names:
                    _rescale(optimizer, weight, factor)


def _rescale(optimizer: Optimizer, weight: Tensor, factor: float) -> None:
    """Multiply the mean gradient in the optimizer's state by `factor`.

    At a minimum, gradients are proportional to the strength. With the old mean, momentum would push the weight away.
    """
    kept = optimizer.state.get(weight, {})
    if isinstance(optimizer, SGD):
        if kept.get("momentum_buffer") is not None:
            kept["momentum_buffer"].mul_(factor)
    elif isinstance(optimizer, (Adam, NAdam, RAdam)) and "exp_avg" in kept:
        mean, square = kept["exp_avg"], kept["exp_avg_sq"]
        # The mean square is the squared mean plus a variance. The variance is noise and stays.
        square.sub_(torch.minimum(mean.square(), square), alpha=1 - factor**2)
        mean.mul_(factor)
