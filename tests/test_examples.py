"""Every example runs, and does what it says."""

import logging
import re
import runpy
import sys
from pathlib import Path

import pytest
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.event_files import scalars, values_in

ROOT = Path(__file__).parent.parent


def assert_picture(path):
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(autouse=True)
def _lightning_logs_as_before():
    """A program may be quiet for itself, and not for the tests that come after it."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


def test_the_demo_prints_its_table_and_the_command_for_its_logs(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "2", "--seed", "1", "--logdir", str(tmp_path / "some logs")]
    arguments += ["--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")

    told, _, table = capsys.readouterr().out.partition("regularization  ")
    rows = [line.split() for line in table.splitlines()]
    names = ["none", "l2", "elastic_net", "l1", "sparse", "dropout"]
    assert [row[0] for row in rows[1:7]] == names
    # Nothing but a line for each method before it is trained.
    assert [line.partition(":")[0] for line in told.splitlines() if line.strip()] == names
    assert "tab Regularization" in table
    assert rows[1][-1] == rows[6][-1] == "0.0%"
    assert all(float(row[-1].rstrip("%")) > 0 for row in rows[2:6])
    assert [row[-2] == "0.0%" for row in rows[1:6]] == [True] * 4 + [False]  # exact zeros
    assert table.splitlines()[-1] == f"tensorboard --logdir '{tmp_path / 'some logs'}'"
    assert {path.name for path in (tmp_path / "some logs").iterdir()} == set(names)
    assert_picture(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_sparse_network_shrinks_to_a_smaller_one_with_the_same_outputs(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "6", "--logdir", str(tmp_path), "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["sparse_digits.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "sparse_digits.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("training  ")
    rows = {row[:17].strip(): row[17:].split() for row in table.splitlines()[1:9]}
    assert rows["dense"][1:3] == rows["L1 in the loss"][1:3] == ["0.0%", "0.0%"]
    assert rows["target 90% zeros"][1] == "90.0%"
    assert rows["target 50% units"][2] == "50.0%"
    assert rows["dense"][5] == "17226"
    assert int(rows["target 50% units"][5]) < 17226 / 2
    assert all(float(row[-1]) <= 1e-5 for row in rows.values())
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 8
    assert_picture(tmp_path / "picture.png")


def test_the_robust_digits_have_the_norms_that_were_asked_for_and_accuracy_from_both_sides(
    tmp_path, monkeypatch, capsys
):
    arguments = ["--max-epochs", "5", "--starts", "1"]
    arguments += ["--logdir", str(tmp_path), "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["robust_digits.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "robust_digits.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("control  ")
    table, _, worst = table.partition("control  ")
    rows = {line.split()[0]: line.split() for line in table.splitlines()[1:7]}
    assert list(rows) == ["none", "l2", "spectral_penalty", "normalization", "constraint", "margin"]
    assert float(rows["constraint"][4]) <= 2.001
    assert float(rows["normalization"][4]) == pytest.approx(2, rel=0.4)
    assert_picture(tmp_path / "picture.png")
    for line in worst.splitlines()[1:7]:
        name, *shares = [cell.rstrip("%") for cell in line.split() if cell != "to"]
        from_below, from_above = ([float(share) for share in shares[start::2]] for start in (0, 1))
        clean = float(rows.pop(name)[1].rstrip("%"))
        assert all(0 < below <= above <= clean for below, above in zip(from_below, from_above, strict=True))
        for side in (from_below, from_above):
            assert side == sorted(side, reverse=True)
        logged = scalars(tmp_path / name)
        for radius, share in zip((0.1, 0.25, 0.5), from_below, strict=True):
            (certified,) = logged[f"reg/certified_accuracy@{radius}"].values()
            assert 100 * certified == pytest.approx(share, abs=0.051)
    assert not rows


def test_the_gan_shows_its_samples_and_normalizes_its_critic(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "2", "--logdir", str(tmp_path), "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["spectral_gan.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "spectral_gan.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("critic  ")
    plain, normalized = (line.split() for line in table.splitlines()[1:3])
    assert (plain[0], normalized[0]) == ("plain", "normalized")
    assert [float(norm) for norm in normalized[2:]] == pytest.approx([1, 1, 1], rel=0.4)
    assert float(plain[2]) > 1.5
    for name in ("plain", "normalized"):
        (file,) = (tmp_path / name / "version_0").glob("events.out.tfevents.*")
        assert b"samples" in file.read_bytes()
    assert_picture(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_path_leaves_ever_fewer_pixels_and_the_most_useful_ones(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "6", "--strengths", "4", "--weakest", "0.001", "--strongest", "0.1"]
    arguments += ["--pixels", "30", "--refit-epochs", "8", "--logdir", str(tmp_path / "logs")]
    arguments += ["--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["path.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "path.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("strength  pixels  accuracy")
    rows = [line.split() for line in table.splitlines()[1:5]]
    counts = [int(row[1]) for row in rows]
    assert 64 > counts[0] > counts[1] > counts[3]
    assert sum("<- chosen" in line for line in table.splitlines()[1:5]) == 1
    (again,) = re.findall(r"^ +(\d+) +([\d.]+)%$", table, re.MULTILINE)
    assert 0 < int(again[0]) <= 30
    assert float(again[1]) > 80
    assert_picture(tmp_path / "picture.png")
    figures = [value for _, value in values_in(tmp_path / "logs" / "version_0") if value.tag == "reg/path"]
    assert [value.metadata.plugin_data.plugin_name for value in figures] == ["images"]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_explains_itself(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [example.name, "--help"])

    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(example), run_name="__main__")

    assert "--max-epochs" in capsys.readouterr().out


def test_the_bagging_example_prints_both_tables(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "2", "--models", "2", "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["bagging.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "bagging.py"), run_name="__main__")

    first, second = (table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n")[-2:])
    assert len(first) == 7
    assert len({line.split()[-1] for line in first}) == 7  # every way of averaging has its own outcome
    assert second[-3].split()[1] == second[-3].split()[2]
    assert_picture(tmp_path / "picture.png")


def test_the_sweep_logs_its_curve_as_a_figure_and_under_hparams(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "3", "--strengths", "2", "--weakest", "1e-4", "--strongest", "1.0"]
    arguments += ["--logdir", str(tmp_path), "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["strength_sweep.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "strength_sweep.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("strength  training error")
    rows = [line.split() for line in table.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["0.0e+00", "1.0e-04", "1.0e+00"]
    assert float(rows[2][1].rstrip("%")) > 70 > float(rows[1][1].rstrip("%"))  # ten classes: only zeros are left
    assert_picture(tmp_path / "picture.png")
    figures = [value for _, value in values_in(tmp_path / "sweep") if value.tag == "sweep/error_of_strength"]
    assert [value.metadata.plugin_data.plugin_name for value in figures] == ["images"]
    for strength, train, test in rows:
        run = list(values_in(tmp_path / f"l2_{strength}"))
        (start,) = (value for _, value in run if value.tag == "_hparams_/session_start_info")
        hparams = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info.hparams
        assert hparams["strength"].number_value == pytest.approx(float(strength), rel=0.05)
        logged = scalars(tmp_path / f"l2_{strength}")
        assert [f"{100 * logged[f'error/{name}'][0]:.1f}%" for name in ("train", "test")] == [train, test]


def test_the_gallery_shows_every_example_with_a_picture_of_less_than_160_kb():
    gallery = (ROOT / "examples" / "README.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", gallery)
    examples = [path.stem for path in (ROOT / "examples").glob("*.py")]

    for picture in pictures:
        assert 0 < (ROOT / "examples" / picture).stat().st_size < 160_000, picture
    for example in [*examples, "cli/main", "cli/compare"]:
        assert f"examples/{example}.py" in gallery, example
    assert {path.name for path in (ROOT / "examples" / "pictures").iterdir()} == {Path(item).name for item in pictures}
    # Each but the screenshots says how it is made.
    screenshots = {
        f"examples/pictures/{name}.png" for name in ("quickstart", "regularization_tab", "compare_strengths")
    }
    assert {f"examples/{picture}" for picture in pictures} - screenshots == set(
        re.findall(r"--picture (\S+\.png)", gallery)
    )


def test_gradients_grow_against_weights_but_not_with_corrected_decay(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "45", "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["weight_decay.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "weight_decay.py"), run_name="__main__")

    _, *rows = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("decay ", "de", "co"))
    ]
    middle, end = ({row[0]: float(row[position]) for row in rows} for position in (1, 2))
    assert end["decoupled"] > 1.3 * middle["decoupled"]
    assert end["corrected"] < middle["corrected"]
    # In balance, the middle corresponds to half the rate.
    assert middle["decoupled"] == pytest.approx((2 * 0.05 / 0.25) ** 0.5, rel=0.2)
    assert_picture(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_low_ranks_become_a_smaller_network_with_the_same_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["low_rank.py", "--max-epochs", "8", "--picture", str(tmp_path / "picture.png")])

    runpy.run_path(str(ROOT / "examples" / "low_rank.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("strength     ranks")
    rows = [line.split() for line in table.splitlines()[1:]]
    sizes = [int(row[3]) for row in rows]
    assert rows[0][1] == "64-64-10"
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 17226 > 2 * sizes[-1]
    assert all(float(row[-1]) <= 1e-5 for row in rows)
    assert_picture(tmp_path / "picture.png")


def test_elastic_weight_consolidation_keeps_more_of_the_first_task(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "6", "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["ewc.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "ewc.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("kept by")
    before, after, second = (
        {row[0]: float(row[position].rstrip("%")) for row in map(str.split, table.splitlines()[1:4])}
        for position in (-3, -2, -1)
    )
    assert min(before.values()) > 95
    assert after["nothing"] < 60
    assert after["elastic"] > after["AnchorPenalty"] > after["nothing"] + 20
    assert min(second.values()) > 75
    assert_picture(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("recipe", "is_true"),
    [
        (
            "dictionary_inputs",
            lambda values: 0 < values["reg/lipschitz_lower"] < values["reg/lipschitz_upper"] < 2,
        ),
        (
            "hugging_face",
            # Of two layers of 128 units each; the rate of Adam times the decay.
            lambda values: 0.05 < values["reg/zero_units"] < 0.95 and values["reg/weight_decay"] == 3e-4,
        ),
    ],
)
def test_a_recipe_for_other_peoples_modules_works_as_described(recipe, is_true, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    runpy.run_path(str(ROOT / "examples" / "recipes" / f"{recipe}.py"), run_name="__main__")

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    values = {words[0]: float(words[1]) for words in lines if len(words) == 2 and "/" in words[0]}
    assert is_true(values), values
