"""Every recipe for LightningCLI runs and does what it says."""

import importlib.util
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from lightning_reg import Constraint, L1Penalty
from lightning_reg.metrics import Sparsity
from tests.documented import EXPORTED, documented
from tests.event_files import scalars, values_in
from tests.test_all_callbacks import plain

FOLDER = Path(__file__).parent.parent / "examples" / "cli"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.fixture(scope="session")
def main():
    """Import the program, once: of classes that exist twice, YAML cannot tell which is meant."""
    spec = importlib.util.spec_from_file_location("main", FOLDER / "main.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def run(main, tmp_path):
    """Return a function that runs a recipe for a few epochs, with its logs in `tmp_path`."""

    def start(recipe, *options, stage="fit"):
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        config = FOLDER / f"{recipe}.yaml"
        return main([stage, f"--config={config}", f"--trainer.default_root_dir={tmp_path}", *quiet, *options])

    return start


def weights(cli):
    return [parameter.detach() for parameter in cli.model.parameters() if parameter.ndim > 1]


def rates(cli, tmp_path):
    return list(scalars(tmp_path)["reg/dropout"].values())


def logged(cli, tmp_path):
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


def largest_norm(cli):
    return max(torch.linalg.matrix_norm(weight, 2).item() for weight in weights(cli))


def sparsity(tmp_path):
    return scalars(tmp_path)["reg/sparsity"]


def lengths(cli):
    return [weight.norm(dim=1) for weight in weights(cli)]


def zero_units(cli):
    return Sparsity(dim=0)(cli.model.encoder).item()


def active_units(cli):
    images, _ = next(iter(cli.datamodule.val_dataloader()))
    return (cli.model.encoder(images) > 0).float().mean().item()


# Checks that hold after forty steps.
OUTCOMES = {
    "l2": lambda cli, path: logged(cli, path)["reg/penalty/l2"] > 0,
    "anchor": lambda cli, path: logged(cli, path)["reg/penalty/anchor"] > 0,
    "activity": lambda cli, path: active_units(cli) < 0.5,  # 0.7 without it
    "l1_sparse": lambda cli, path: logged(cli, path)["reg/sparsity"] > 0.1 and (cli.model.head.weight != 0).all(),
    "mcp": lambda cli, path: 0.5 < sparsity(path)[39] < 0.7 and logged(cli, path)["reg/optimality/mcp"] > 0,
    "elastic_net": lambda cli, path: (
        {"reg/penalty/elastic_net", "reg/penalty/elastic_net-1"} <= logged(cli, path).keys()
    ),
    "group_lasso": lambda cli, path: 0 < zero_units(cli) < 1 and "reg/zero_units" in logged(cli, path),
    "target_sparsity": lambda cli, path: math.isclose(Sparsity()(weights(cli)).item(), 0.9, abs_tol=0.002),
    "path": lambda cli, path: (
        0 < (left := list(scalars(path)["reg/path/nonzero"].values()))[0] < left[3] and cli.trainer.global_step < 80
    ),
    "keep_zeros": lambda cli, path: (
        0.5 < sparsity(path)[19] <= sparsity(path)[39] < 0.9 and (cli.model.head.weight != 0).all()
    ),
    "nm_sparsity": lambda cli, path: all((w.view(-1, 4) != 0).sum(1).max() == 2 for w in weights(cli)),
    "max_norm": lambda cli, path: (
        math.isclose(lengths(cli)[0].max(), 0.7, rel_tol=1e-5)
        and 0.75 - 1e-5 < lengths(cli)[1].min() < lengths(cli)[1].max() < 0.9 + 1e-5
        and torch.allclose(lengths(cli)[2], torch.ones(10))
    ),
    "non_negative": lambda cli, path: all(w.min() == 0 for w in weights(cli)[:2]) and cli.model.head.weight.min() < 0,
    "nuclear_norm": lambda cli, path: all(torch.linalg.matrix_rank(w) < min(w.shape) for w in weights(cli)[:2]),
    "orthogonal": lambda cli, path: all(torch.linalg.svdvals(w)[-1] > 0.5 for w in weights(cli)[:2]),  # 0.2
    "spectral_penalty": lambda cli, path: logged(cli, path)["reg/penalty/spectral_norm"] > 0,
    "spectral_normalization": lambda cli, path: math.isclose(largest_norm(cli), 2, rel_tol=0.4),
    "spectral_constraint": lambda cli, path: 1.9 < largest_norm(cli) < 2.001,
    "early_dropout": lambda cli, path: 0.1 > rates(cli, path)[0] > 0 == rates(cli, path)[-1],
    "late_dropout": lambda cli, path: rates(cli, path)[0] == 0 and max(rates(cli, path)) > 0,
    "curriculum_dropout": lambda cli, path: (
        rates(cli, path) == sorted(rates(cli, path)) and rates(cli, path)[-1] > 0.39
    ),
    "mc_dropout": lambda cli, path: cli.model.encoder[2].p == 0.3,
    "lipschitz": lambda cli, path: (
        0 < logged(cli, path)["reg/lipschitz_lower"] < logged(cli, path)["reg/lipschitz_upper"] < 8
    ),
    "weight_decay": lambda cli, path: (
        list(scalars(path)["reg/weight_decay"].values()) == sorted(scalars(path)["reg/weight_decay"].values())
    ),
    "monitor": lambda cli, path: {"reg/weight_norm", "reg/small", "reg/spectral_norm"} <= logged(cli, path).keys(),
}


def test_every_recipe_is_here():
    assert sorted(OUTCOMES) == RECIPES


NAMED = set(re.findall(r"lightning_reg\.(\w+)", "".join(path.read_text() for path in FOLDER.glob("*.yaml"))))
# A callback without a recipe of its own has the example of its docstring for one.
DOCUMENTED = [L1Penalty, *(kind for kind in EXPORTED if kind.__name__ not in NAMED)]


@pytest.mark.parametrize("kind", DOCUMENTED, ids=lambda kind: kind.__name__)
def test_the_example_in_the_docstring_is_a_recipe(main, kind, tmp_path):
    callback = documented(kind, select=None)
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps({"trainer": {"callbacks": [plain(callback)]}}))  # YAML as well

    cli = main(["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"])

    assert repr(callback) in map(repr, cli.trainer.callbacks)
    # Constraints have nothing to count.
    tags = (value.tag for _, value in values_in(tmp_path)) if isinstance(callback, Constraint) else scalars(tmp_path)
    assert any(tag.startswith("reg/") for tag in tags)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_as_described(run, recipe, tmp_path):
    cli = run(recipe, "--trainer.max_epochs=4")

    assert OUTCOMES[recipe](cli, tmp_path)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each stage has a folder of its own
def test_uncertain_images_are_shown_and_the_test_measures_the_mean_of_the_masks(run, tmp_path, capsys):
    run("mc_dropout", "--trainer.max_epochs=12")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    capsys.readouterr()

    run("mc_dropout", f"--ckpt_path={checkpoint}", stage="predict")
    head, *rows = capsys.readouterr().out.splitlines()
    cli = run("mc_dropout", f"--ckpt_path={checkpoint}", stage="test")

    assert head.split()[:4] == ["image", "label", "predicted", "probability"]
    entropies = [float(row.split()[4]) for row in rows]
    assert len(rows) == 5
    assert entropies == sorted(entropies, reverse=True)
    assert 0.5 < entropies[0] <= math.log(10)
    assert logged(cli, tmp_path)["test/accuracy"] > 0.85
    assert logged(cli, tmp_path)["reg/mc_dropout_mutual_information"] > 0


def test_the_printed_configuration_trains_in_the_same_way(run, main, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        run("late_dropout", "--trainer.max_epochs=1", "--print_config")
    config = tmp_path / "printed.yaml"
    config.write_text(capsys.readouterr().out)

    by_print = main(["fit", f"--config={config}"])
    by_recipe = run("late_dropout", "--trainer.max_epochs=1")

    assert [repr(callback) for callback in by_print.trainer.callbacks if "Dropout" in repr(callback)] == [
        repr(callback) for callback in by_recipe.trainer.callbacks if "Dropout" in repr(callback)
    ]
    torch.testing.assert_close(weights(by_print), weights(by_recipe), rtol=0, atol=0)


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]])
def test_the_program_explains_itself(main, capsys, arguments):
    with pytest.raises(SystemExit, match="0"):
        main(arguments)

    assert "--config" in capsys.readouterr().out


@pytest.mark.usefixtures("main")
def test_recipes_compare(tmp_path, monkeypatch, capsys):
    arguments = ["monitor", "early_dropout", "--max-epochs=1", f"--logdir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments, f"--picture={tmp_path / 'picture.png'}"])

    runpy.run_path(str(FOLDER / "compare.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("recipe  accuracy")
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["monitor", "early_dropout"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "reg/weight_norm" in scalars(tmp_path / "monitor")


@pytest.mark.parametrize(("argument", "text"), [("--help", "l1_sparse"), ("lasso", "there is no recipe lasso")])
def test_the_comparison_explains_itself(monkeypatch, capsys, argument, text):
    monkeypatch.setattr(sys, "argv", ["compare.py", argument])

    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / "compare.py"), run_name="__main__")

    printed = "".join(capsys.readouterr())
    assert "usage: " in printed
    assert text in printed
