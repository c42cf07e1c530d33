"""The package as users get it: a wheel in an environment that has what it requires, and no extras.

`make release-check` installs such an environment anew, and names its Python in `RELEASE_PYTHON`.
"""

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
GIVEN = os.environ.get("RELEASE_PYTHON")


def run(*command: str, **options) -> str:
    """Return what a command prints; its output is the message if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, source: Path = ROOT) -> tuple[Path, Path]:
    """Build with what is installed here; return the wheel and the source distribution."""
    run(sys.executable, "-m", "hatchling", "build", "--directory", str(folder), cwd=source)
    (wheel,), (sources,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sources


def required(names: list[str]) -> set[metadata.Distribution]:
    """Return the distributions of these requirements, with all that they require in turn."""
    found = {}
    waiting = [Requirement(name) for name in names]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            distribution = metadata.distribution(requirement.name)
            found[distribution.name] = distribution
            for line in distribution.requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return set(found.values())


def environment(folder: Path, wheel: Path, *besides: str) -> Path:
    """Return the Python of an environment: the wheel, what it requires, and `besides`, linked from what is here."""
    if GIVEN:
        return Path(GIVEN).absolute()
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (described,) = packages.glob("lightning_reg-*.dist-info")
    requires = metadata.Distribution.at(described).requires or []
    wanted = [line for line in requires if "extra ==" not in line] + list(besides)
    for distribution in required(wanted):
        for file in distribution.files or []:
            top = file.parts[0]
            link = packages / top
            if top not in {"..", "__pycache__"} and not link.exists():
                link.symlink_to(distribution.locate_file(top))
    return python
