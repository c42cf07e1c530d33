"""The tracer runs a module on an example, and asks the judge for the bound of each torch operation's result."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.functional.lipschitz.forms import Form
from lightning_reg.functional.lipschitz.judge import PLACES, Judge, Step, needed
from lightning_reg.functional.lipschitz.memory import has_no_entry_twice, memory, place
from lightning_reg.functional.lipschitz.nested import closed_in, found, replaced
from lightning_reg.functional.lipschitz.traced_tensor import (
    TracedTensor,
    TraceError,
    called_name,
    has_own_operations,
    is_reflected,
)
from lightning_reg.functional.lipschitz.value import Bound, Traced, is_whole, together, with_parts
from lightning_reg.functional.tensors.random import unchanged_generators

# Attributes and methods of a tensor that do not read its entries.
_SIZES = (
    "dim dtype device element_size get_device grad grad_fn has_names is_complex is_conj is_contiguous is_cpu "
    "is_cuda is_floating_point is_inference is_leaf is_meta is_mkldnn is_mps is_neg is_nested is_quantized "
    "is_same_size is_shared is_signed is_sparse is_sparse_csr is_xla is_xpu itemsize layout len name names "
    "nbytes ndim ndimension nelement numel output_nr requires_grad result_type retains_grad shape size "
    "storage_offset stride type _version "
)
# The ones that depend on the number of entries.
_COUNTS = {"is_same_size", "len", "nbytes", "nelement", "numel", "shape", "size", "stride"}
_TEXT = {"repr", "str", "format"}
# Functions that make new tensors, into which `forward` may write.
_FACTORIES = {
    f"{new}{name}{like}"
    for name in ("zeros", "ones", "empty", "full")
    for new, like in (("", ""), ("new_", ""), ("", "_like"))
}


class WrittenError(TraceError):
    """A value that depends on the input is written into a tensor that does not depend on it."""


@dataclass
class State:
    """The bound and the step of a tensor that depends on the network's input."""

    value: Tensor
    bound: Bound
    step: Step
    errors: list[Exception]
    """The errors of the trace so far."""


class Output(NamedTuple):
    """The output of a module."""

    value: Any
    """The output at the example, with plain tensors."""
    bounds: list[Bound]
    """The bounds of the tensors that depend on the input."""
    steps: set[Step]
    """All steps on which these tensors depend."""


class Tracer(TorchFunctionMode):
    """Runs each operation on the example as soon as it is called, and asks `judge` for the bound of its result.

    Args:
        judge: Determines the bounds of operations.
        functions: Python functions that are bounded as one operation.
        devices: Devices of the example. Their random generators are restored after each operation.
        follows_new: Whether to follow new tensors that `forward` makes, like its input, because it writes into them.

    """

    def __init__(
        self,
        judge: Judge,
        functions: Sequence[FunctionType],
        devices: set[torch.device],
        *,
        follows_new: bool = False,
    ) -> None:
        super().__init__()
        self._follows_new = follows_new
        self._judge, self._functions, self._devices = judge, functions, devices
        self._is_running = False
        self._paths = [""]
        self._states: list[State] = []
        # Constants that a traced tensor views.
        self._viewed: list[Tensor] = []
        # `forward` may catch an error, and go another way than for other inputs.
        self._errors: list[Exception] = []

    def trace(self, module: nn.Module, inputs: Sequence[Any]) -> Output:
        """Run `module` on the example. The module cannot be used again."""
        root = Step("input")
        arguments = replaced(list(inputs), Tensor, lambda tensor: self._input(tensor, root))
        with ExitStack() as undo:
            undo.enter_context(torch.compiler.set_stance("force_eager"))
            self._watch(module)
            self._watch_functions(module, undo)
            with self:
                output = module(*arguments)
        for error in self._errors:
            raise error
        for each in closed_in(output):
            msg = f"its output contains a {type(each).__name__}, which may hide tensors"
            raise TraceError(msg)
        states = [each.state for each in found(output, TracedTensor)]
        if next(found(output, Tensor), None) is None:
            msg = f"it returns a {type(output).__name__} without tensors"
            raise TraceError(msg)
        steps = needed([state.step for state in states])
        plain = replaced(output, TracedTensor, lambda tensor: tensor.state.value)
        return Output(plain, [state.bound for state in states], steps)

    def _input(self, tensor: Tensor, root: Step) -> Tensor:
        bound = self._judge.of_input(tensor)
        return tensor if bound is None else self._known(tensor, bound, root)

    def _watch(self, module: nn.Module) -> None:
        """Make every module of the stand-in report its calls."""
        self._weights = {id(weight): name for name, weight in module.named_parameters()}
        for path, part in module.named_modules():
            forward = part.forward
            if self._judge.is_leaf(part):
                judge = self._judge
                rules = judge.rule_of(part), judge.extent_of(part), judge.turns_of(part), judge.form_of(part)
                step = functools.partial(self._module_step, path, part, rules)
                vars(part)["forward"] = self._whole(forward, step)
            else:
                vars(part)["forward"] = self._inside(forward, path)

    def _module_step(self, path: str, module: nn.Module, rules: tuple[Any, ...], *_: Any) -> Step:
        kind = type(module).__name__
        rule, extent, turns, form = rules
        return Step(path or kind, rule, kind, module, extent=extent, turns=turns, form=form)

    def _whole(self, function: Callable[..., Any], step: Callable[..., Step]) -> Callable[..., Any]:
        """Return `function` with each call bounded as one operation."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._is_running or next(found((args, kwargs), TracedTensor), None) is None:
                return function(*args, **kwargs)
            with self._noting_errors():
                return self._call(step(), function, args, kwargs)

        return wrapped

    def _inside(self, forward: Callable[..., Any], path: str) -> Callable[..., Any]:
        """Return the `forward` of a module whose operations are followed."""

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._paths.append(path)
            try:
                return forward(*args, **kwargs)
            finally:
                self._paths.pop()

        return wrapped

    def _watch_functions(self, module: nn.Module, undo: ExitStack) -> None:
        """Replace `functions` by versions that report their calls, in the files of modules and of these functions."""
        forwards = [getattr(type(part), "forward", None) for part in module.modules()]
        spaces = [getattr(function, "__globals__", None) for function in (*forwards, *self._functions)]
        for space in {id(space): space for space in spaces if space is not None}.values():
            for name, function in list(space.items()):
                if any(function is each for each in self._functions):
                    undo.callback(space.__setitem__, name, function)
                    step = functools.partial(self._function_step, function)
                    space[name] = self._whole(function, step)

    def _function_step(self, function: Callable[..., Any], args: Any = ()) -> Step:
        shown = called_name(function)
        if is_reflected(function):
            shown = {"rdiv": "truediv"}.get(shown, shown.removeprefix("r"))
        path = self._paths[-1]
        weights = [each for each in args if id(each) in self._weights]
        # The first argument of `addmm` is the bias.
        weights.sort(key=lambda weight: weight.ndim == 1)
        return Step(
            f"{path}.{shown}" if path else shown,
            self._judge.rule_of(function, shown),
            f"`{shown}`",
            weight=self._weights[id(weights[0])] if weights else None,
            extent=self._judge.extent_of(function, shown),
            turns=self._judge.turns_of(function, shown),
            form=self._judge.form_of(function, shown),
        )

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = called_name(func)
        if self._is_running or next(found((args, kwargs), TracedTensor), None) is None:
            value = func(*args, **kwargs)
            is_new = self._follows_new and not self._is_running and name in _FACTORIES
            return self._known(value, Bound(0.0), Step(name)) if is_new else value
        if name in _TEXT:
            return f"tensor of shape {tuple(args[0].state.value.shape)}"
        step = self._function_step(func, (*args, *kwargs.values()))
        with self._noting_errors():
            if is_reflected(func):
                first, second = args
                return self._call(step, lambda left, right: func(right, left), (second, first), kwargs)
            return self._call(step, _set_item if name == "setitem" else func, args, kwargs)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever an operation raises
            self._errors.append(error)
            raise

    def _call(self, step: Step, operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, and return its result with a bound."""
        states = [tensor.state for tensor in found((args, kwargs), TracedTensor)]
        step.parents = [state.step for state in states]
        values, keywords = replaced((tuple(args), dict(kwargs)), TracedTensor, lambda tensor: tensor.state.value)
        tensors = list(found((values, keywords), Tensor))
        versions = [tensor._version for tensor in tensors]  # noqa: SLF001  # grows with every change in place
        places = [place(tensor) for tensor in tensors]
        # If the input stays near the example, values count. Keep the ones that are about to change in place.
        is_near = math.isfinite(self._judge.reach)
        earlier = {id(state): state.value.clone() if is_near else state.value for state in states}
        with self._running(), unchanged_generators(self._devices):
            value = operation(*values, **keywords)
        if next(found(value, Tensor), None) is None:
            return self._number(operation, value, states)
        changed = [t for t, before in zip(tensors, versions, strict=True) if t._version > before]  # noqa: SLF001
        traced = {id(state.value) for state in states}
        constants = [tensor for tensor in tensors if id(tensor) not in traced]
        self._refuse_changed_constants(changed, constants)
        weights = () if step.module is None else step.module.parameters()
        if places != [place(tensor) for tensor in tensors]:
            bound = self._judge.refuse(step, "it changes the shape of a tensor in place")
        elif strange := [type(each).__name__ for each in (*tensors, *weights) if has_own_operations(each)]:
            bound = self._judge.refuse(step, f"the class of an argument, {strange[0]}, may compute something else")
        else:
            with self._running():
                # The judge needs the arguments from before a change in place.
                fixed = _fixed(states, changed) if step.module is None or any(s.bound.value for s in states) else set()
                known = replaced(
                    (tuple(args), {name: value for name, value in kwargs.items() if name != "out"}),
                    TracedTensor,
                    lambda t: self._as_known(t.state, fixed, earlier),
                )
                bound = self._judge.judge(step, operation, value, *known)
        where = {memory(tensor) for tensor in found(value, Tensor)}
        self._viewed += [tensor for tensor in constants if memory(tensor) in where]
        self._note_changes(step, bound, changed, value)
        if math.isfinite(bound.value):
            # If a later value has no bound, earlier steps are not the reason.
            step.parents = []
        if isinstance(value, Tensor):
            return self._known(value, bound, step)
        forms = iter(bound.forms)
        return replaced(value, Tensor, lambda tensor: self._part(tensor, bound, step, next(forms, None)))

    def _as_known(self, state: State, fixed: set[int], earlier: Mapping[int, Tensor]) -> Tensor | Traced:
        if id(state) in fixed:
            return state.value
        return Traced(earlier[id(state)], state.bound, self._judge.reach)

    def _known(self, value: Tensor, bound: Bound, step: Step) -> TracedTensor:
        state = State(value, with_parts(bound, value), step, self._errors)
        self._states.append(state)
        return TracedTensor(value, state)

    def _part(self, value: Tensor, bound: Bound, step: Step, form: Form | None) -> TracedTensor:
        """Return one of several tensors that an operation returned."""
        if not is_whole(value) or (bound.varies and bound.value == 0):
            part = replace(bound, chain=None, scaled=None, own=None, form=form or Form(), forms=())
            return self._known(value, part, step)
        positions = Step(step.name, parents=[step])
        refused = replace(self._judge.refuse(positions, PLACES), has_any_size=bound.has_any_size)
        return self._known(value, refused, positions)

    def _number(self, operation: Callable[..., Any], value: Any, states: Sequence[State]) -> Any:
        """Return a number read from a tensor. Raise if the number may depend on the network's input."""
        name = called_name(operation)
        is_copy = isinstance(value, bool | int | float | complex | list) and name != "data_ptr"
        is_read = name not in _SIZES.split() and not (is_copy and all(map(_is_fixed, states)))
        if is_read or (name in _COUNTS and any(state.bound.has_any_size for state in states)):
            msg = f"the path through the network depends on the values of its input, which `{name}` reads"
            raise TraceError(msg)
        return value

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run modules and functions without tracing them."""
        self._is_running, before = True, self._is_running
        try:
            yield
        finally:
            self._is_running = before

    def _refuse_changed_constants(self, changed: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        """Raise if a value that depends on the input was written into a constant."""
        fixed = {memory(tensor) for tensor in (*constants, *self._viewed)}
        if any(memory(tensor) in fixed for tensor in changed):
            msg = (
                "a tensor that does not depend on the input is changed in place; change a tensor that `forward` makes"
                " instead"
            )
            raise WrittenError(msg)

    def _note_changes(self, step: Step, bound: Bound, changed: Sequence[Tensor], value: Any) -> None:
        """Give a changed tensor its new bound. Other views of its memory lose their bounds if these are unclear."""
        where = {memory(tensor) for tensor in changed}
        is_written = isinstance(value, Tensor) and {place(tensor) for tensor in changed} == {place(value)}
        for state in self._states if where else ():
            if memory(state.value) not in where:
                continue
            if isinstance(value, Tensor) and place(state.value) == place(value):
                state.bound, state.step = bound, step
            elif is_written and has_no_entry_twice(state.value):
                # Each of its entries is either unchanged or one of the written entries.
                both = Step(step.name, parents=[state.step, step])
                state.bound, state.step = _either(state.bound, bound), both
            else:
                stale = Step(state.step.name, parents=[state.step])
                self._judge.refuse(stale, "it is changed in place through another view of it")
                state.bound, state.step = replace(_either(state.bound, bound), value=math.inf), stale


def _fixed(states: Sequence[State], changed: Sequence[Tensor]) -> set[int]:
    """Return the ids of states that do not depend on the input after all, and are not changed in place."""
    where = {memory(tensor) for tensor in changed}
    return {id(state) for state in states if _is_fixed(state) and memory(state.value) not in where}


def _either(first: Bound, second: Bound) -> Bound:
    """Return the bound of a value if each of its entries has one of two bounds."""
    return Bound(
        together([first.value, second.value]),
        varies=first.varies or second.varies,
        has_any_size=first.has_any_size or second.has_any_size,
    )


def _is_fixed(state: State) -> bool:
    return state.bound.value == 0 and not state.bound.varies


def _set_item(tensor: Tensor, index: Any, value: Any) -> Tensor:
    tensor[index] = value
    return tensor
