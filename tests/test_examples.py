"""Every example runs, and the README's quickstart is true."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_quickstart_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)

    with caplog.at_level("INFO"):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})

    assert list(tmp_path.glob("lightning_logs/version_0/events.out.tfevents.*"))
    assert "Regularization plan" in caplog.text


def test_the_demo_prints_its_table_and_the_command_for_its_logs(tmp_path, monkeypatch, capsys):
    arguments = ["--max-epochs", "2", "--seed", "1", "--logdir", str(tmp_path / "some logs")]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *arguments])

    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("penalty  ")
    rows = [line.split() for line in table.splitlines()]
    assert [row[0] for row in rows[1:5]] == ["none", "l1", "l2", "elastic_net"]
    assert rows[1][-1] == "0.0%"
    assert all(float(row[-1].rstrip("%")) > 0 for row in rows[2:5])
    assert table.splitlines()[-1] == f"tensorboard --logdir '{tmp_path / 'some logs'}'"
    assert {path.name for path in (tmp_path / "some logs").iterdir()} == {"none", "l1", "l2", "elastic_net"}


def test_the_robust_digits_have_the_norms_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["robust_digits.py", "--max-epochs", "2", "--logdir", str(tmp_path)])

    runpy.run_path(str(ROOT / "examples" / "robust_digits.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("control  ")
    rows = {line.split()[0]: line.split() for line in table.splitlines()[1:6]}
    assert list(rows) == ["none", "l2", "spectral_penalty", "normalization", "constraint"]
    assert float(rows["constraint"][4]) <= 2.001
    assert float(rows["normalization"][4]) == pytest.approx(2, rel=0.4)


def test_the_gan_shows_its_samples_and_normalizes_its_critic(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spectral_gan.py", "--max-epochs", "2", "--logdir", str(tmp_path)])

    runpy.run_path(str(ROOT / "examples" / "spectral_gan.py"), run_name="__main__")

    *_, table = capsys.readouterr().out.partition("critic  ")
    plain, normalized = (line.split() for line in table.splitlines()[1:3])
    assert (plain[0], normalized[0]) == ("plain", "normalized")
    assert [float(norm) for norm in normalized[2:]] == pytest.approx([1, 1, 1], rel=0.4)
    assert float(plain[2]) > 1.5
    for name in ("plain", "normalized"):
        (file,) = (tmp_path / name / "version_0").glob("events.out.tfevents.*")
        assert b"samples" in file.read_bytes()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_explains_itself(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [example.name, "--help"])

    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(example), run_name="__main__")

    assert "--max-epochs" in capsys.readouterr().out
