"""The table of weight decay: which optimizers and callbacks decay each weight, and on which time scale."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer import progress, state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.plan import Plan, describe, publish
from lightning_reg.selection import Weight, named_weights
from lightning_reg.tensorboard import tags

_MATRIX_NDIM = 2
# Their decay is apart from the gradient, and proportional to the learning rate.
_DECOUPLED = ("AdamW", "Muon", "Adafactor")


def show_decays(trainer: Trainer, pl_module: LightningModule, others: Sequence[Mapping[Tensor, str]]) -> None:
    """Print once what decays each weight, and write it to TensorBoard; print nothing if no weight decays.

    Args:
        trainer: The trainer.
        pl_module: The module.
        others: For each callback that decays, its action on each weight.

    """
    weights = named_weights(pl_module, state.original_shapes(trainer))
    steps = progress.steps_in_epoch(trainer, pl_module)
    by_optimizers = dict(_by_optimizers(trainer.optimizers, steps))
    actions, left_out = {}, {}
    for weight in weights:
        found = [each[weight.parameter] for each in (by_optimizers, *others) if weight.parameter in each]
        if not found:
            left_out[weight.name] = "not decayed"
            continue
        text = " + ".join(found)
        if len(found) > 1:
            text = f"twice: {text}"
        if weight.parameter in by_optimizers and len(weight.shape) < _MATRIX_NDIM:
            text += f" (a {_small_kind(weight)}, usually not decayed)"
        actions[weight.name] = text
    if actions:
        shapes = {weight.name: describe(weight) for weight in weights}
        plan = Plan("Weight decay from all sources", shapes=shapes, actions=actions, left_out=left_out)
        publish(trainer, [plan], ("weight", "shape", "decayed by"), tags.DECAYS)


def _by_optimizers(optimizers: Sequence[Optimizer], steps_in_epoch: float | None) -> Iterator[tuple[Tensor, str]]:
    for position, optimizer in enumerate(optimizers):
        for index, group in enumerate(optimizer.param_groups):
            if not group.get("weight_decay"):
                continue
            name = type(optimizer).__name__
            which = f", optimizer {position}" if len(optimizers) > 1 else ""
            which += f", group {index}" if len(optimizer.param_groups) > 1 else ""
            share = _share_per_step(optimizer, group, group.get("initial_lr", group.get("lr")))
            text = f"{name} {group['weight_decay']:g}{which}{time_scale(share, steps_in_epoch)}"
            for weight in group["params"]:
                yield weight, text


def shares_by_optimizers(optimizers: Sequence[Optimizer]) -> dict[Tensor, float]:
    """Return the share of each weight that its optimizer's decay takes in the coming step, if known."""
    shares: dict[Tensor, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            share = _share_per_step(optimizer, group, group.get("lr"))
            if share:
                shares |= dict.fromkeys(group["params"], share)
    return shares


def _share_per_step(optimizer: Optimizer, group: Mapping[str, Any], rate: float | Tensor | None) -> float | None:
    """Return the share of a weight that the optimizer's own decay takes in a step at this rate.

    None if the decay is added to the gradient and its effect depends on the other gradients, or the rate is not known.
    """
    decay = group.get("weight_decay") or 0.0
    # Reading a tensor would wait for the device; and some optimizers compute their rate themselves.
    if rate is None or isinstance(rate, Tensor) or isinstance(decay, Tensor):
        return None
    names = {ancestor.__name__ for ancestor in type(optimizer).__mro__}
    if group.get("decoupled_weight_decay") or names & set(_DECOUPLED):
        return float(rate * decay)
    if "SGD" in names:
        momentum = group.get("momentum", 0.0)
        lasting = (1 - group.get("dampening", 0.0)) / (1 - momentum) if momentum else 1.0
        return float(rate * decay * lasting)
    return None


def time_scale(share: float | None, steps_in_epoch: float | None) -> str:
    """Return the text ", time scale N epochs": steps with this share shrink a weight to 1/e in N epochs."""
    return f", time scale {1 / (share * steps_in_epoch):.3g} epochs" if share and steps_in_epoch else ""


def _small_kind(weight: Weight) -> str:
    is_norm = any("norm" in type(module).__name__.lower() for module in weight.modules)
    if weight.plain_name.endswith("bias"):
        return "bias"
    return "norm scale" if is_norm else "vector"
