"""A tensor of which the sizes are known while a graph is traced."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx
from torch.fx.proxy import TraceError
from typing_extensions import override


class TracedTensor(fx.Proxy):
    """A tensor while tracing: its sizes are numbers, its entries are not, if they depend on the input."""

    @property
    def value(self) -> Tensor:
        """The tensor at the example input."""
        value: Tensor = self.node.meta["value"]
        return value

    @override
    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.value, name)
        if isinstance(attribute, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if callable(attribute):
            return lambda *args, **kwargs: self.tracer.create_proxy("call_method", name, (self, *args), kwargs)
        return attribute

    @override
    def __len__(self) -> int:
        return len(self.value)

    @override
    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, index) for index in range(len(self)))

    def _number(self) -> Tensor:
        if self.node.meta["bound"] is not None:
            msg = "the path through the network depends on the values of its input"
            raise TraceError(msg)
        return self.value

    @override
    def __bool__(self) -> bool:
        return bool(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __index__(self) -> int:
        return self._number().__index__()


def _in_place(name: str) -> Callable[[TracedTensor, Any], Any]:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul", "iand", "ior", "ixor", "imod"):
    setattr(TracedTensor, f"__{_name}__", _in_place(_name))
