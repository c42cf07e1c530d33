"""Train with every recipe in this folder, or with the named ones, and compare their effects.

    python examples/cli/compare.py --picture cli.png
    python examples/cli/compare.py monitor l2 l1_sparse

Prints the accuracy of each run, and writes all logs to one folder for TensorBoard.
"""

import argparse
import importlib
import shlex
from collections.abc import Mapping
from itertools import cycle, product
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = ("reg/weight_norm", "reg/sparsity", "reg/spectral_norm_max", "reg/dropout")

Curve = list[tuple[int, float]]


def train(recipe: Path, max_epochs: int, logdir: Path) -> dict[str, Curve]:
    """Train with a recipe; return its logs, from tag to steps and values."""
    options = [
        f"--trainer.max_epochs={max_epochs}",
        "--trainer.logger=lightning.pytorch.loggers.TensorBoardLogger",
        f"--trainer.logger.save_dir={logdir}",
        f"--trainer.logger.name={recipe.stem}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.enable_checkpointing=false",
    ]
    # Python finds `main.py` beside this file, because it searches the folder of the program for modules.
    cli = importlib.import_module("main").main(["fit", f"--config={recipe}", *options])
    events = EventAccumulator(cli.trainer.log_dir).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def draw(curves: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Save a picture with one chart for each of `TAGS`."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    styles = list(product(["-", "--", ":"], colormaps["tab10"](range(10))))
    lines = {}
    for axes, tag in zip(figure.subplots(2, 2).flat, TAGS, strict=True):
        axes.set(title=tag, xlabel="step")
        for (recipe, logged), (dashes, color) in zip(curves.items(), cycle(styles), strict=False):
            if tag in logged:
                (lines[recipe],) = axes.plot(*zip(*logged[tag], strict=True), linestyle=dashes, color=color)
    if lines:
        shown = [recipe for recipe in curves if recipe in lines]
        figure.legend([lines[recipe] for recipe in shown], shown, loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train with every recipe, print the accuracies, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
    parser.add_argument("recipes", nargs="*", metavar="recipe", help=f"default: all of {', '.join(recipes)}")
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/cli"))
    parser.add_argument("--picture", type=Path, help="where to save a picture of it, such as cli.png")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.recipes if name not in recipes]
    if unknown:
        parser.error(f"there is no recipe {', '.join(unknown)}")

    chosen = arguments.recipes or recipes
    curves = {name: train(recipes[name], arguments.max_epochs, arguments.logdir) for name in chosen}

    width = max(map(len, curves))
    print(f"\n{'recipe':>{width}}  accuracy")
    for name, logged in curves.items():
        print(f"{name:>{width}}  {logged['val/accuracy'][-1][1]:8.1%}")
    if arguments.picture:
        draw(curves, arguments.picture)
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
