"""What a path leaves: a table, a figure, and a line for each strength in the loggers."""

import csv

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_reg import GroupLassoPenalty, L1Penalty, RegularizationPath
from tests.event_files import scalars, values_in
from tests.models import Regressor, loader

STRENGTHS = (0.1, 0.03, 0.01)


@pytest.fixture
def trained(trainer_of, tmp_path):
    """Return a function that trains along a path, with a logger in `tmp_path`, and returns path and module."""

    def train(penalty, *callbacks, **settings):
        path = RegularizationPath(penalty, strengths=STRENGTHS[::-1], epochs=2, monitor="val/loss", **settings)
        module = Regressor(lambda parameters: torch.optim.Adam(parameters, lr=0.02))
        has_checkpoints = bool(callbacks)
        trainer = trainer_of(
            path,
            *callbacks,
            max_epochs=-1,
            logger=TensorBoardLogger(tmp_path, name="", version=""),
            log_every_n_steps=4,
            enable_checkpointing=has_checkpoints,
        )
        trainer.fit(module, loader(), loader(count=12))
        return path, module

    return train


def l1():
    return L1Penalty(0.0, mode="proximal")


def test_loggers_have_each_strength_and_how_many_entries_are_left(trained, tmp_path):
    path, _ = trained(l1())

    logged, last_steps = scalars(tmp_path), [13, 27, 41]
    counts = [sum(int((w != 0).sum()) for w in path.result.weights(index).values()) for index in range(3)]
    assert logged["reg/path/strength"] == pytest.approx(dict(zip(last_steps, STRENGTHS, strict=True)))
    assert logged["reg/path/nonzero"] == pytest.approx(dict(zip(last_steps, counts, strict=True)))
    assert list(path.result.nonzeros) == counts
    assert 0 < counts[0] < counts[2]
    # The residual of the penalty that the path drives is logged as that of any other.
    assert logged["reg/optimality/l1"]


def test_a_checkpoint_is_kept_for_each_strength_under_its_name(trained, tmp_path):
    keep = ModelCheckpoint(
        tmp_path, filename="{reg/path/strength:.2f}", auto_insert_metric_name=False, save_top_k=-1, every_n_epochs=2
    )

    path, _ = trained(l1(), keep)

    for index, strength in enumerate(STRENGTHS):
        saved = torch.load(tmp_path / f"{strength:.2f}.ckpt", weights_only=True)["state_dict"]
        for name, weight in path.result.weights(index).items():
            assert torch.equal(weight, saved[name])


def test_the_table_has_a_row_for_each_strength(trained, tmp_path):
    path, _ = trained(l1())

    path.result.to_csv(tmp_path / "path.csv")

    with (tmp_path / "path.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["strength"]) for row in rows] == list(path.result.strengths)
    assert [int(row["nonzeros"]) for row in rows] == list(path.result.nonzeros)
    assert [float(row["score"]) for row in rows] == list(path.result.scores)
    assert [row["best"] for row in rows] == [str(index == path.result.best) for index in range(3)]


@pytest.mark.parametrize(
    ("penalty", "lines", "label"),
    [
        (lambda: L1Penalty(0.0, mode="proximal", select="*.encoder.weight"), 35, "weight"),
        (l1, 3, "entries left"),
        (lambda: GroupLassoPenalty(0.0, 1, mode="proximal", select="*.encoder.weight"), 5, "norm of each unit"),
    ],
    ids=["few entries", "many entries", "units"],
)
def test_the_figure_shows_weights_and_scores_and_the_choice(trained, penalty, lines, label):
    path, _ = trained(penalty())

    above, below = path.result.plot().axes

    *drawn, choice = above.get_lines()
    assert len(drawn) == lines
    assert all(tuple(line.get_xdata()) == STRENGTHS for line in drawn)
    assert choice.get_xdata()[0] == STRENGTHS[path.result.best]
    assert above.get_ylabel() == label
    assert tuple(below.get_lines()[0].get_ydata()) == path.result.scores
    assert below.get_ylabel() == "val/loss"
    assert below.get_xscale() == "log"


def test_tensorboard_shows_the_figure(trained, tmp_path):
    trained(l1())

    figures = [value for _, value in values_in(tmp_path) if value.tag == "reg/path"]
    assert [value.metadata.plugin_data.plugin_name for value in figures] == ["images"]
