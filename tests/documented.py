"""Every exported callback as its docstring shows it: tests that walk all callbacks have new ones by themselves."""

import doctest
import inspect

from lightning.pytorch import Callback

import lightning_reg
from lightning_reg import callbacks
from lightning_reg.callbacks.trainer.settings import settings_of

EXPORTED = [
    item
    for name in callbacks.__all__
    if issubclass(item := getattr(callbacks, name), Callback) and not inspect.isabstract(item)
]


def documented(kind: type[Callback], **settings: object) -> Callback:
    """Return the callback of the example in its docstring, with some settings replaced."""
    space = {name: getattr(lightning_reg, name) for name in lightning_reg.__all__}
    made = []

    class Watched(kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    # Examples read attributes as well; what they construct is what counts.
    Watched.__name__ = Watched.__qualname__ = kind.__name__
    Watched.__signature__ = inspect.signature(kind)
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(kind)):
        exec(compile(example.source, kind.__name__, "exec"), space | {kind.__name__: Watched})
    return kind(**(settings_of(made[0]) | settings))
