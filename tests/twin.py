"""`pytorch_lightning` in the place of `lightning.pytorch`, for all that tests and their processes import."""

import sys
from importlib import import_module

# Names that no other module of the package imports.
_MORE = ("cli", "tuner", "callbacks", "loggers", "plugins", "strategies")
_NAMES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def take_over() -> None:
    """Have every later `import lightning.pytorch` give the twin.

    The package under test has imported Lightning before, as it does for a user of the twin.
    """
    import_module("pytorch_lightning")
    import_module("lightning_reg.callbacks")
    for name in _MORE:
        import_module(f"pytorch_lightning.{name}")
    for name, module in list(sys.modules.items()):
        root, _, rest = name.partition(".")
        if root in _NAMES:
            sys.modules[".".join(filter(None, (_NAMES[root], rest)))] = module
    for name in _NAMES:
        setattr(sys.modules["lightning"], _NAMES[name].partition(".")[2], sys.modules[name])
