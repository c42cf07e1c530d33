"""Find the largest strength in the first epochs, and compute the other strengths from it."""

import torch
from torch import Tensor

from lightning_reg.callbacks.path.refusals import warn_of_unsettled
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.search import Search
from lightning_reg.callbacks.path.settings import Settings, count_of
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer

_ROUND_UP = 5e-7


def look(settings: Settings, trainer: Trainer, pl_module: LightningModule, run: PathRun, search: Search) -> None:
    """Estimate the largest strength after an epoch; start the path once the estimate has converged."""
    if run.epochs == 1 or run.mean.is_empty or not search.begun:  # the first step of epoch 1 had dense weights
        return
    each = vanishing(settings.penalty, trainer, run, list(run.names))
    search.estimates.append(max(each.values()))
    at_rest = search.is_at_rest(each)
    settles = search.settles(min((w.dtype for w in run.names), key=lambda kind: torch.finfo(kind).bits))
    if not (at_rest or settles or len(search.estimates) >= search.limit):
        return
    if not (at_rest or settles):
        warn_of_unsettled(search.limit, search.estimates[-1])
    start, run.search, run.start, run.epochs = run.start, None, None, 0
    largest = search.estimates[-1]
    if settings.direction == "up" or at_rest:
        assert start is not None  # exists as long as the search
        start.start_from(trainer, pl_module)
    if at_rest:
        if settings.direction == "down":
            msg = (
                "RegularizationPath cannot start from zero weights: if all weights that the penalty selects are zero,"
                " some of them get no gradient and can never grow (zero is a stationary point). Start from the dense"
                " network with `direction='up'`, or let the penalty's `select` match one layer only."
            )
            raise MisconfigurationException(msg)
        largest = max(search.begun.values())
    # Round up by more than the error of the search: at the largest strength, all weights must be zero.
    largest *= 1 + max(_ROUND_UP, 4 * torch.finfo(next(iter(run.names)).dtype).eps)
    count = count_of(settings.strengths)
    grid = [largest * settings.smallest ** (index / (count - 1)) for index in range(count)]
    run.strengths = grid if settings.direction == "down" else grid[::-1]


@torch.no_grad()
def vanishing(penalty: Penalty, trainer: Trainer, run: PathRun, weights: list[Tensor]) -> dict[str, float]:
    """Return the smallest strength that keeps each weight at zero against its mean gradient, by name."""
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:  # in place, because a penalty looks up the units of a layer by its weight
        weight.copy_(-run.mean.of(weight))
    found = penalty.vanishing_strengths(weights, [1.0] * len(weights))
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    largest = [each.amax() if each.numel() else each.new_zeros(()) for each in found]
    whole_run = state.largest_over_ranks(trainer, torch.stack([each.to(largest[0].device) for each in largest]))
    return dict(zip((run.names[weight] for weight in weights), whole_run.tolist(), strict=True))
