"""Optimizer steps that go past a callback, which would then have no effect without a word."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer.packages import MisconfigurationException


class UnseenSteps:
    """Refuses a run whose steps a callback does not see.

    Lightning announces the steps of `self.optimizers()`. The hooks of torch run in every `Optimizer.step`. Neither
    knows of steps that are methods of their own, such as SAM's `first_step`; so what has been seen is compared with
    backward passes that have run, and with weights that have changed.

    Args:
        name: The callback.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._optimizers: list[Optimizer] = []
        self._seen: set[Optimizer] = set()
        self._has_run_backward = False
        self._versions: dict[Tensor, int] = {}

    def meets(self, optimizers: Sequence[Optimizer]) -> bool:
        """Take note of `optimizers`; tell whether they are others than before, so that hooks have to follow."""
        if self._optimizers == list(optimizers):
            return False
        self._optimizers = list(optimizers)
        return True

    def backward(self) -> None:
        """Take note of a backward pass."""
        self._has_run_backward = True

    def see(self, optimizer: Optimizer) -> None:
        """Take note of a step in which the callback can act."""
        self._seen.add(optimizer)

    def remember(self, weights: Iterable[Tensor]) -> None:
        """Take note of `weights` as they are now: torch counts the changes of each."""
        self._versions = {weight: weight._version for weight in weights}

    def refuse(self, weights: Mapping[Optimizer, Sequence[Tensor]]) -> None:
        """Raise if steps have gone past the callback.

        Args:
            weights: What the callback acts on, for each optimizer of the run.

        Raises:
            MisconfigurationException: If it has seen none at all, or none of an optimizer whose weights have changed.

        """
        unseen = [optimizer for optimizer in weights if optimizer not in self._seen]
        changed = [optimizer for optimizer in unseen if any(map(self._has_changed, weights[optimizer]))]
        if not changed and not (self._has_run_backward and len(unseen) == len(weights)):
            return
        which = "no optimizer step" if len(unseen) == len(weights) else f"no step of {type(changed[0]).__name__}"
        msg = (
            f"{self._name} has seen {which}, so it had no effect. Step through Lightning's optimizers:"
            " `self.optimizers()`, not `self.optimizers(use_pl_optimizer=False)` or `optimizer.optimizer`; and by"
            " `step`, not by methods of the optimizer's own, as SAM's `first_step`: its `step(closure)` can do both."
        )
        raise MisconfigurationException(msg)

    def _has_changed(self, weight: Tensor) -> bool:
        return weight._version != self._versions.get(weight, weight._version)
