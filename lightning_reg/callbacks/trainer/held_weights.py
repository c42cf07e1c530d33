"""The parameters that optimizers hold: callbacks that change weights act on these, and on no others."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer.packages import rank_zero_warn


class HeldWeights:
    """The parameters that optimizers hold, which can change during training; new parameters raise a warning.

    Args:
        known: The parameters that the model had when `fit` began.
        treatment: The treatment that new parameters miss, such as "penalized by L1Penalty".

    """

    def __init__(self, known: Iterable[Tensor], treatment: str) -> None:
        self._known = frozenset(known)
        self._treatment = treatment
        self._found: dict[tuple[int, ...], tuple[list[Tensor], frozenset[Tensor]]] = {}

    def of(self, optimizers: Sequence[Optimizer]) -> frozenset[Tensor]:
        """Return the parameters of `optimizers`; the same object as long as they do not change."""
        held = [tensor for optimizer in optimizers for group in optimizer.param_groups for tensor in group["params"]]
        key = tuple(map(id, optimizers))
        before, members = self._found.get(key, ([], frozenset()))
        # Hashing all parameters takes long, so it is only repeated when the optimizers' parameters change.
        if len(held) != len(before) or any(tensor is not other for tensor, other in zip(held, before, strict=True)):
            members = frozenset(held)
            if not members <= self._known:
                rank_zero_warn(
                    f"Parameters that join an optimizer after training has begun are not {self._treatment}."
                    " Create them before `Trainer.fit`, and freeze them or keep them out of the optimizer until they"
                    " are trained."
                )
            self._found[key] = (held, members)
        return members


def has_gradient(optimizers: Sequence[Optimizer]) -> bool:
    """Tell whether any weight of `optimizers` has a gradient; otherwise a step changes nothing."""
    return next(with_gradient(optimizers), None) is not None


def with_gradient(optimizers: Sequence[Optimizer]) -> Iterator[Tensor]:
    """Yield the weights of `optimizers` that have a gradient."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return (weight for group in groups for weight in group["params"] if weight.grad is not None)
