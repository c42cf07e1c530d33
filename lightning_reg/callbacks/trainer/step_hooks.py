"""What runs right before and right after optimizers change their weights, inside `Optimizer.step`."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Act = Callable[[Optimizer], None]


class AroundSteps:
    """Calls of `before` and `after` around each update by an optimizer, until they are removed.

    Lightning's automatic optimization computes the gradients inside `Optimizer.step`, in the closure it passes: an
    update begins when the closure has returned, and ends when it is called again (LBFGS does) or the step is over. A
    step that the scaler of fp16 skips is none.

    Args:
        before: Gets the optimizer when its gradients are complete: summed over ranks, unscaled, clipped.
        after: Gets the optimizer after its update.

    """

    def __init__(self, before: Act, after: Act) -> None:
        self._before, self._after = before, after
        self._handles: list[RemovableHandle] = []
        self._updating: set[Optimizer] = set()
        """Those between `before` and `after`."""

    def add(self, optimizers: Sequence[Optimizer]) -> None:
        """Act around the steps of `optimizers` from now on, and of no others."""
        self.remove()
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._on_step))
            self._handles.append(optimizer.register_step_post_hook(lambda own, *_: self._end(own)))

    def remove(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._updating.clear()

    def _begin(self, optimizer: Optimizer) -> None:
        self._updating.add(optimizer)
        self._before(optimizer)

    def _end(self, optimizer: Optimizer) -> None:
        if optimizer in self._updating:
            self._updating.remove(optimizer)
            self._after(optimizer)

    def _on_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        owner, *rest = args
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self._begin(optimizer)
            return None

        def between_updates() -> Any:
            self._end(optimizer)
            result = closure()
            self._begin(optimizer)
            return result

        if rest:
            return (owner, between_updates, *rest[1:]), kwargs
        return args, {**kwargs, "closure": between_updates}


class StepHooks:
    """What runs after the steps of optimizers, until it is removed."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def add(self, optimizers: Sequence[Optimizer], function: Callable[[Optimizer], None]) -> None:
        """Call `function(optimizer)` after each step of each; a step that the scaler of fp16 skips is none."""

        def after_step(optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
            function(optimizer)

        self._handles += [optimizer.register_step_post_hook(after_step) for optimizer in optimizers]

    def remove(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
