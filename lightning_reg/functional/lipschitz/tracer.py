"""The graph of a module by `torch.fx`, traced with the values of an example, and the bound of each node."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import Node, Target, map_arg
from torch.fx.proxy import TraceError
from torch.utils import _pytree as pytree
from typing_extensions import override

from lightning_reg.functional.lipschitz.judge import JUMPS, Judge
from lightning_reg.functional.lipschitz.traced_tensor import TracedTensor
from lightning_reg.functional.lipschitz.value import Bound, Traced
from lightning_reg.functional.tensors.random import devices_of, unchanged_generators

# What may be asked of a tensor without looking at its entries.
_SIZES = frozenset(
    {
        "dim",
        "element_size",
        "get_device",
        "is_complex",
        "is_contiguous",
        "is_floating_point",
        "is_inference",
        "is_signed",
        "ndimension",
        "nelement",
        "numel",
        "size",
        "storage_offset",
        "stride",
        "type",
    }
)


class Root(nn.Module):
    """Calls a module with any number of inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @override
    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


class Tracer(fx.Tracer):
    """Runs each operation on the example as soon as it is traced, and asks `judge` for the bound of its result.

    Args:
        judge: Of the operations.
        functions: Python functions that are judged as a whole.
        inputs: The example.

    """

    proxy_buffer_attributes = True

    def __init__(self, judge: Judge, functions: Sequence[Callable[..., Any]], inputs: Sequence[Any]) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self._judge = judge
        self._inputs = inputs
        self._devices = devices_of(inputs)
        self._is_running = False
        # Nodes whose tensor was changed in place: what has it now, and what else shared its memory.
        self._now: dict[Node, Node] = {}

    def output(self) -> Any:
        """Return what the module has computed, with the tensors in their structure."""
        return map_arg(next(reversed(self.graph.nodes)).args[0], _value)

    def bound_of_output(self) -> tuple[list[Bound], set[Node]]:
        """Return the bounds of the tensors that come out, and the nodes that they depend on."""
        output = next(reversed(self.graph.nodes))
        needed: set[Node] = set()
        waiting = [output]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        bounds: list[Bound | None] = []
        map_arg(output.args, lambda a: bounds.append(a.meta["bound"]))
        return [bound for bound in bounds if bound is not None], needed

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._judge.is_leaf(m)

    @override
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._is_running else super().call_module(m, forward, args, kwargs)

    @override
    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if self._is_running or isinstance(attr_val, fx.Proxy):
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    @override
    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        names = [f"input_{position}" for position in range(len(self._inputs))]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    @override
    def proxy(self, node: Node) -> fx.Proxy:
        return TracedTensor(node, self)

    @override
    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            node = self._now.get(a.node, a.node)
            if "is_stale" in node.meta:
                self._judge.refuse(node, "it is changed in place through another view of it")
            return node
        argument = super().create_arg(a)
        if isinstance(argument, Node) and "value" not in argument.meta:  # has just been made for a constant
            argument.meta.update(value=a, bound=None, is_untraced=True)
        return argument

    @override
    def create_proxy(self, kind: str, target: Target, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        node.meta["path"] = self.scope.module_path
        if kind == "placeholder":
            value = self._inputs[int(str(target).removeprefix("input_"))]
            return self._known(node, value, self._judge.of_input(value))
        if kind == "get_attr":
            # A copy, for the module may change it in place.
            value = self._attribute(str(target)).clone()
            return self._known(node, value, None)
        values, keywords = map_arg(node.args, _value), map_arg(node.kwargs, _value)
        tensors = [each for each in pytree.tree_leaves((values, keywords)) if isinstance(each, Tensor)]
        versions = [tensor._version for tensor in tensors]  # noqa: SLF001  # tells of every change in place
        places = [_place(tensor) for tensor in tensors]
        value = self._run(node, values, keywords)
        changed = [t for t, before in zip(tensors, versions, strict=True) if t._version > before]  # noqa: SLF001
        bound = None
        if any(argument.meta["bound"] is not None for argument in node.all_input_nodes):
            if not any(isinstance(each, Tensor) for each in pytree.tree_leaves(value)):
                return self._size(node, value)
            if places != [_place(tensor) for tensor in tensors]:
                bound = self._judge.refuse(node, "it changes the shape of a tensor in place")
            else:
                traced, traced_keywords = map_arg(node.args, _traced), map_arg(node.kwargs, _traced)
                with self._running():
                    bound = self._judge.judge(node, self.operation(node), value, traced, traced_keywords)
        result = self._known(node, value, bound)
        self._note_changes(node, changed)
        return result

    def _known(self, node: Node, value: Any, bound: Bound | None) -> Any:
        """Return what the traced code gets: the structure of the value, with traced tensors."""
        node.meta.update(value=value, bound=bound)
        if isinstance(value, Tensor):
            return self.proxy(node)

        def part(parent: Node, key: Any, inner: Any) -> Any:
            child = self.create_node("call_function", operator.getitem, (parent, key), {})
            child.meta["path"] = parent.meta["path"]
            if bound is None or not isinstance(inner, Tensor) or inner.is_floating_point() or inner.is_complex():
                return self._known(child, inner, bound and Bound(bound.value))
            return self._known(child, inner, self._judge.refuse(child, JUMPS))

        if isinstance(value, dict):
            return {key: part(node, key, inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            parts = [part(node, position, inner) for position, inner in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value

    def _size(self, node: Node, value: Any) -> Any:
        """Return a number that was asked of a tensor, if it does not depend on its entries."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name not in _SIZES:
            msg = f"`{name}` makes the path through the network depend on the values of its input"
            raise TraceError(msg)
        return value

    def _run(self, node: Node, args: Any, kwargs: Any) -> Any:
        with self._running(), unchanged_generators(self._devices):
            return self.operation(node)(*args, **kwargs)

    def operation(self, node: Node) -> Callable[..., Any]:
        """Return the function that `node` calls."""
        if node.op == "call_module":
            forward: Callable[..., Any] = self.root.get_submodule(str(node.target)).forward
            return forward
        if node.op == "call_method":
            return lambda tensor, *args, **kwargs: getattr(tensor, str(node.target))(*args, **kwargs)
        function: Callable[..., Any] = node.target  # type: ignore[assignment]  # of call_function
        return function

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Let modules compute as they are, not trace."""
        self._is_running, before = True, self._is_running
        try:
            yield
        finally:
            self._is_running = before

    def _attribute(self, path: str) -> Any:
        with self._running():
            return operator.attrgetter(path)(self.root)

    def _note_changes(self, node: Node, changed: Sequence[Tensor]) -> None:
        """Let later uses of a tensor that `node` has changed use its result; those of other views have no bound."""
        if not changed:
            return
        memory = {_memory(tensor) for tensor in changed}
        result = node.meta["value"]
        for other in [each for each in self.graph.nodes if each is not node and "value" in each.meta]:
            tensor = other.meta["value"]
            if not isinstance(tensor, Tensor) or _memory(tensor) not in memory:
                continue
            if "is_untraced" in other.meta and node.meta["bound"] is not None:
                msg = "a tensor that `forward` has made is changed in place; `torch.zeros_like(x)` can be followed"
                raise TraceError(msg)
            if isinstance(result, Tensor) and _place(tensor) == _place(result):
                self._now[other] = node
            elif node.meta["bound"] is not None or other.meta["bound"] is not None:
                other.meta.update(bound=Bound(math.inf), is_stale=True)


def _value(node: Node) -> Any:
    return node.meta["value"]


def _traced(node: Node) -> Any:
    bound = node.meta["bound"]
    return node.meta["value"] if bound is None else Traced(node.meta["value"], bound)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
