"""What runs right before and right after optimizers change their weights, inside `Optimizer.step`."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Act = Callable[[Optimizer], None]


class AroundSteps:
    """Calls of `after`, and of `before` if there is one, around each update by an optimizer, until they are removed.

    Lightning's automatic optimization computes the gradients inside `Optimizer.step`, in the closure it passes: an
    update begins when the closure has returned, and ends when it is called again (LBFGS does) or the step is over. A
    step that the scaler of fp16 skips is none.

    Args:
        after: Gets the optimizer after its update.
        before: Gets the optimizer when its gradients are complete: summed over ranks, unscaled, clipped.
        innermost: Whether to act right beside the update, after all others before it, and before all others after it.

    """

    def __init__(self, after: Act, before: Act | None = None, *, innermost: bool = False) -> None:
        self._after, self._before, self._innermost = after, before, innermost
        self._handles: list[RemovableHandle] = []
        self._updating: set[Optimizer] = set()
        """Those between `before` and `after`."""

    def add(self, optimizers: Sequence[Optimizer]) -> None:
        """Act around the steps of `optimizers` from now on, and of no others."""
        self.remove()
        for optimizer in optimizers:
            if self._before is None:
                self._handles.append(optimizer.register_step_post_hook(lambda own, *_: self._after(own)))
                continue
            before = optimizer.register_step_pre_hook(self._on_step)
            after = optimizer.register_step_post_hook(lambda own, *_: self._end(own))
            _move_to_front(after if self._innermost else before)
            self._handles += [before, after]

    def remove(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._updating.clear()

    def _begin(self, optimizer: Optimizer) -> None:
        self._updating.add(optimizer)
        if self._before is not None:
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


def _move_to_front(handle: RemovableHandle) -> None:
    """Have a hook called before those that are there, and those that come later behind it."""
    hooks = handle.hooks_dict_ref()
    if hooks is not None:
        hooks.move_to_end(handle.id, last=False)
