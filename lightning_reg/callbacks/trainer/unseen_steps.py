"""Optimizer steps that bypass a callback, which would then silently have no effect."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer.packages import MisconfigurationException


class UnseenSteps:
    """Refuses a run whose steps a callback does not see.

    Lightning announces the steps of `self.optimizers()`. The hooks of torch run in every `Optimizer.step`. Neither
    covers other methods that step, such as SAM's `first_step`, or optimizers that step inside of the backward pass. So
    the steps seen are compared with backward passes that ran, and with weights that changed.

    Args:
        name: The name of the callback.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._optimizers: list[Optimizer] = []
        self._seen: set[Optimizer] = set()
        self._idle: set[Optimizer] = set()
        """The optimizers of steps without a gradient, as of dropped batches: they should leave weights as they are."""
        self._has_run_backward = False
        self._versions: dict[Tensor, int] = {}

    def meets(self, optimizers: Sequence[Optimizer]) -> bool:
        """Record `optimizers`, and tell whether they changed, so that hooks must follow."""
        if self._optimizers == list(optimizers):
            return False
        self._optimizers = list(optimizers)
        return True

    def backward(self) -> None:
        """Record a backward pass."""
        self._has_run_backward = True

    def see(self, optimizer: Optimizer, *, has_gradient: bool) -> None:
        """Record a step in which the callback can act, if any weight has a gradient."""
        (self._seen if has_gradient else self._idle).add(optimizer)

    def remember(self, weights: Iterable[Tensor]) -> None:
        """Record the current versions of `weights`: torch counts the changes of each tensor."""
        self._versions = {weight: weight._version for weight in weights}

    def refuse(self, weights: Mapping[Optimizer, Sequence[Tensor]]) -> None:
        """Raise if steps have bypassed the callback.

        Args:
            weights: The weights of the callback, for each optimizer of the run.

        Raises:
            MisconfigurationException: If it has seen no step at all, or no step of an optimizer whose weights changed.

        """
        unseen = [optimizer for optimizer in weights if optimizer not in self._seen]
        changed = [optimizer for optimizer in unseen if any(map(self._has_changed, weights[optimizer]))]
        missed = [optimizer for optimizer in unseen if optimizer not in self._idle]
        if not changed and not (self._has_run_backward and len(missed) == len(weights)):
            return
        which = "no optimizer step" if len(unseen) == len(weights) else f"no step of {type(changed[0]).__name__}"
        msg = (
            f"{self._name} has seen {which}, so it had no effect. Step through Lightning's optimizers:"
            " `self.optimizers()`, not `self.optimizers(use_pl_optimizer=False)` or `optimizer.optimizer`. Call `step`,"
            " not other methods such as SAM's `first_step`: SAM's `step(closure)` makes both of its steps. Optimizers"
            " that step inside of the backward pass leave no gradients for it."
        )
        raise MisconfigurationException(msg)

    def _has_changed(self, weight: Tensor) -> bool:
        return weight._version != self._versions.get(weight, weight._version)
