"""Print the installed versions for a bug report: `python -m lightning_reg`."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

_PACKAGE = "lightning-reg"
_FOR_DEVELOPERS = {"dev", "docs", "packages"}


def _requirements() -> Iterator[tuple[str, str]]:
    """Yield the extra, or "", and the name of each required or optional package."""
    for line in metadata.requires(_PACKAGE) or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", requirement)
        if name and not (extra and extra[1] in _FOR_DEVELOPERS):
            yield extra[1] if extra else "", name[0]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import torch  # it takes a second, which a message of what is missing need not wait for

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or "no GPU"


def main() -> None:
    """Print the versions of this package and of its dependencies."""
    try:
        requirements = list(_requirements())
    except metadata.PackageNotFoundError:
        sys.exit("lightning_reg is not installed, only its source code is here. Run `pip install -e .` in its folder.")
    rows = [("lightning_reg", _version(_PACKAGE))]
    rows += [("python", platform.python_version()), ("system", platform.platform())]
    rows += [(name, _version(name)) for extra, name in requirements if not extra]
    rows += [("pytorch-lightning", _version("pytorch-lightning")), ("devices", _devices())]
    rows += [(f"{name} (extra: {extra})", _version(name)) for extra, name in requirements if extra]
    pages = [each.name for each in metadata.entry_points(group="tensorboard_plugins") if each.name == "lightning_reg"]
    rows.append(("page in TensorBoard", "registered" if pages else "not registered"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main()
