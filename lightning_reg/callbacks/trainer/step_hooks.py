"""What runs right before and right after optimizers change their weights, inside `Optimizer.step`."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Act = Callable[[Optimizer], None]


class Turn(IntEnum):
    """Who acts nearer to the update: sooner after it, and later before it, whatever the order of the callbacks.

    What comes later keeps what those before it have reached: operators of penalties keep zeros and signs, factors on
    whole units keep both, and a factor on a whole layer keeps everything but norms.
    """

    UPDATE = 0
    """Part of the update itself."""
    ENTRIES = 1
    """Which entries are zero."""
    GROUPS = 2
    """How many of a group are zero, of those that can be."""
    OPERATORS = 3
    """Proximal steps."""
    UNITS = 4
    """Norms of units."""
    LAYERS = 5
    """Norms of layers."""


# Between the update with what belongs to it, and all others of ours.
_HOOKS_OF_OTHERS = 0.5


class AroundSteps:
    """Calls of `after`, and of `before` if there is one, around each update by an optimizer, until they are removed.

    Lightning's automatic optimization computes the gradients inside `Optimizer.step`, in the closure it passes: an
    update begins when the closure has returned, and ends when it is called again (LBFGS does) or the step is over. A
    step that the scaler of fp16 skips is none.

    Args:
        after: Gets the optimizer after its update.
        before: Gets the optimizer when its gradients are complete: summed over ranks, unscaled, clipped.
        turn: Where to act among the others.

    """

    def __init__(self, after: Act, before: Act | None = None, *, turn: Turn = Turn.LAYERS) -> None:
        self._after, self._before, self._turn = after, before, turn
        self._handles: list[RemovableHandle] = []
        self._updating: set[Optimizer] = set()
        """Those between `before` and `after`."""

    def add(self, optimizers: Sequence[Optimizer]) -> None:
        """Act around the steps of `optimizers` from now on, and of no others."""
        self.remove()
        for optimizer in optimizers:
            end = self._after if self._before is None else self._end
            self._handles.append(
                optimizer.register_step_post_hook(_Hook(lambda own, *_, end=end: end(own), self._turn))
            )
            _sort(self._handles[-1], descending=False)
            if self._before is not None:
                self._handles.append(optimizer.register_step_pre_hook(_Hook(self._on_step, self._turn)))
                _sort(self._handles[-1], descending=True)

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


class _Hook:
    """A hook that knows its turn."""

    def __init__(self, call: Callable[..., Any], turn: Turn) -> None:
        self._call, self.turn = call, turn

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def _sort(handle: RemovableHandle, *, descending: bool) -> None:
    """Have the hooks beside a new one called by their turns; those of one turn stay in their order."""
    hooks = handle.hooks_dict_ref()
    if hooks is not None:
        by_turn = sorted(hooks, key=lambda key: getattr(hooks[key], "turn", _HOOKS_OF_OTHERS), reverse=descending)
        for key in by_turn:
            hooks.move_to_end(key)
