"""Hooks right before and right after optimizers change their weights, inside `Optimizer.step`."""

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_reg.callbacks.trainer.held_weights import with_gradient
from lightning_reg.callbacks.trainer.packages import MisconfigurationException

Before = Callable[[Optimizer], None]
After = Callable[[Optimizer, AbstractSet[Tensor]], None]


def step_happens(optimizer: Optimizer) -> Tensor | None:
    """Return whether the current step changes weights, on the device; None if it does.

    Fused optimizers check inside `step` whether the gradients of fp16 are finite, so only the device knows.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf == 0


class Turn(IntEnum):
    """The order around the update: smaller turns act later before it and sooner after it, in any order of callbacks.

    Later turns preserve the results of earlier ones: operators of penalties keep zeros and signs, factors on whole
    units keep both, and a factor on a whole layer keeps everything except norms.
    """

    UPDATE = 0
    """Part of the update itself."""
    ENTRIES = 1
    """Which entries are zero."""
    GROUPS = 2
    """How many entries of a group are zero."""
    OPERATORS = 3
    """Proximal steps."""
    UNITS = 4
    """Norms of units."""
    LAYERS = 5
    """Norms of layers."""


# Behind `Turn.UPDATE`, which belongs to the update, and before all other turns.
_HOOKS_OF_OTHERS = 0.5


class AroundSteps:
    """Calls `after`, and `before` if given, around each update of an optimizer, until `remove`.

    Lightning's automatic optimization computes the gradients inside `Optimizer.step`, in the closure it passes. An
    update begins when the closure returns, and ends when the closure is called again (by LBFGS) or the step is over. A
    step skipped by the fp16 scaler does not count. Neither does a step within a step of the same optimizer: `step` of a
    subclass may call the `step` of its base class, and torch may call the hooks for both.

    Args:
        after: Gets the optimizer after its update, and the weights that had a gradient before it. Some optimizers
            release gradients inside `step`.
        before: Gets the optimizer when its gradients are complete: summed over ranks, unscaled, clipped.
        turn: The turn among other callbacks.
        name: The name of the callback, if `before` must see the weights that the optimizer starts from. Some optimizers
            change weights before they call their closure (SAM), and return to them after it. They are refused.
        once: Whether a step counts as one update, however often it calls the closure.

    """

    def __init__(
        self,
        after: After,
        before: Before | None = None,
        *,
        turn: Turn = Turn.LAYERS,
        name: str | None = None,
        once: bool = False,
    ) -> None:
        self._once = once or before is None
        self._after, self._before, self._turn, self._name = after, before, turn, name
        self._handles: list[RemovableHandle] = []
        self._updating: dict[Optimizer, AbstractSet[Tensor]] = {}
        """The optimizers between `before` and `after`, with their weights that have a gradient."""
        self._depths: Counter[Optimizer] = Counter()
        """The number of steps within each other that are running."""

    def add(self, optimizers: Sequence[Optimizer]) -> None:
        """From now on, act around the steps of `optimizers` and of no others."""
        self.remove()
        for optimizer in optimizers:
            try:
                self._handles.append(optimizer.register_step_post_hook(_Hook(self._on_step_end, self._turn)))
            except AttributeError as error:
                msg = (
                    f"{type(optimizer).__name__} is not a complete torch optimizer: it does not call"
                    " `Optimizer.__init__`, so nothing can act right after its steps. Call `super().__init__` in it, or"
                    " use another optimizer."
                )
                raise MisconfigurationException(msg) from error
            _sort(self._handles[-1], descending=False)
            self._handles.append(optimizer.register_step_pre_hook(_Hook(self._on_step, self._turn)))
            _sort(self._handles[-1], descending=True)

    def rest(self) -> None:
        """Note that no step is running: an exception that the user has caught may have ended one."""
        self._depths.clear()
        self._updating.clear()

    def remove(self) -> None:
        """Remove all hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.rest()

    def _begin(self, optimizer: Optimizer) -> None:
        if self._once and optimizer in self._updating:
            return
        if self._before is not None:
            self._before(optimizer)
        self._updating[optimizer] = frozenset(with_gradient([optimizer]))

    def _end(self, optimizer: Optimizer) -> None:
        moved = self._updating.pop(optimizer, None)
        if moved is not None:
            self._after(optimizer, moved)

    def _on_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._depths[optimizer] += 1
        if self._depths[optimizer] > 1:
            return None
        owner, *rest = args
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self._begin(optimizer)
            return None

        probe = next(with_gradient([optimizer]), None) if self._name and self._before else None
        version = None if probe is None else probe._version  # torch counts changes

        def between_updates() -> Any:
            nonlocal probe
            if probe is not None and probe._version != version:
                self._refuse(optimizer)
            probe = None  # the optimizer may change weights between further calls
            if not self._once:
                self._end(optimizer)
            result = closure()
            self._begin(optimizer)
            return result

        if rest:
            return (owner, between_updates, *rest[1:]), kwargs
        return args, {**kwargs, "closure": between_updates}

    def _refuse(self, optimizer: Optimizer) -> None:
        kind = type(optimizer).__name__
        msg = (
            f"{self._name} acts on the weights from which a step starts, but {kind} changes weights before it calls"
            f" its closure, as SAM does. Use an optimizer that calls the closure first, or leave {self._name} out."
        )
        raise MisconfigurationException(msg)

    def _on_step_end(self, optimizer: Optimizer, *_: Any) -> None:
        self._depths[optimizer] -= 1
        if self._depths[optimizer] > 0:
            return
        if self._before is None and optimizer not in self._updating:  # it has not called the closure
            self._begin(optimizer)
        self._end(optimizer)


class _Hook:
    """A hook that knows its turn."""

    def __init__(self, call: Callable[..., Any], turn: Turn) -> None:
        self._call, self.turn = call, turn

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def _sort(handle: RemovableHandle, *, descending: bool) -> None:
    """Sort the hooks beside a new one by their turns; hooks of the same turn keep their order."""
    hooks = handle.hooks_dict_ref()
    if hooks is not None:
        by_turn = sorted(hooks, key=lambda key: getattr(hooks[key], "turn", _HOOKS_OF_OTHERS), reverse=descending)
        for key in by_turn:
            hooks.move_to_end(key)
