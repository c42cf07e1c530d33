"""The package's promises to users who install it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import lightning_reg

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_oldest_tested_versions_are_the_declared_ones():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints-min.txt").read_text(), flags=re.MULTILINE))
    declared = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(PROJECT["dependencies"]), flags=re.MULTILINE))

    assert {name: pinned[name] for name in ("lightning", "tensorboard", "torchmetrics")} == {
        name: declared[name] + ".0" * (2 - declared[name].count("."))
        for name in ("lightning", "tensorboard", "torchmetrics")
    }


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
def test_the_malicious_releases_of_lightning_are_excluded(package):
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    (versions,) = re.findall(rf"^{package}(?=[<>!=])(.*)", "\n".join(requirements), flags=re.MULTILINE)

    assert {"!=2.6.2", "!=2.6.3"} <= set(versions.split(","))


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-min.txt"])
def test_both_packages_of_lightning_are_tested_in_one_version(constraints):
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / constraints).read_text(), flags=re.MULTILINE))

    assert pinned["pytorch-lightning"] == pinned["lightning"]


def test_the_changelog_has_a_section_for_this_version_and_for_the_next():
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert sections[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d", sections[1])


def test_types_are_shipped():
    assert (Path(lightning_reg.__file__).parent / "py.typed").exists()


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_nothing_but_targets_of_the_makefile(workflow):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    commands = [step["run"].removeprefix("sudo ").split() for job in jobs for step in job["steps"] if "run" in step]

    assert commands
    assert all(make == "make" and target in targets for make, target in commands)


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert PROJECT["version"] == citation["version"]
    assert PROJECT["license"] == citation["license"]
