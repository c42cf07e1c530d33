"""Two real runs, and a real TensorBoard process that serves them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_reg import (
    DropoutScheduler,
    ElasticNetPenalty,
    L1Penalty,
    L2Penalty,
    Linear,
    LipschitzMonitor,
    RegularizationMonitor,
    TargetSparsity,
)
from tests.models import Regressor, loader

_PATIENCE_SECONDS = 300  # the machine may be busy
PICTURES = Path(__file__).parent.parent.parent / "test-results"
RUNS = {
    "sparse": [TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5), ElasticNetPenalty(0.002, l1_ratio=0.25)],
    "small": [L2Penalty(0.05, mode="grad"), DropoutScheduler(Linear(0.0, 0.5, 0.5))],
}


class Tuned(Regressor):
    """With hyperparameters of the user's, which Lightning writes by itself."""

    def __init__(self, width: int = 7, name: str = "x") -> None:
        super().__init__()
        self.save_hyperparameters()

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", 0.5 + self.current_epoch / 10)


def train(name: str, folder: Path) -> None:
    # Of one run there are scalars of single layers, too.
    monitor = RegularizationMonitor(histograms=True, per_layer=name == "sparse" or "auto")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=1,
        logger=TensorBoardLogger(folder, name=None, version=name),
        callbacks=[
            *RUNS[name],
            monitor,
            LipschitzMonitor(target="network"),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Tuned(width=3 + len(name)), loader(), loader())


@pytest.fixture(scope="session")
def logs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    for name in RUNS:
        train(name, folder)
    return folder


class Server:
    """A TensorBoard process."""

    def __init__(
        self, folder: Path, *arguments: str, python: str = sys.executable, environment: dict[str, str] | None = None
    ) -> None:
        # Not in this folder, where Python would find the package that is being developed.
        self._process = subprocess.Popen(
            [python, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env=os.environ | (environment or {}),
        )
        self.lines: list[str] = []
        """Its output before it was ready."""
        for line in self._process.stderr:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+?)/? ", line):
                self.url = found[1]
                return
        pytest.fail("TensorBoard did not start:\n" + "".join(self.lines), pytrace=False)

    def get(self, path: str, **query: str):
        with urlopen(f"{self.url}/data/{path}?{urlencode(query)}") as answer:
            return json.load(answer)

    def post(self, path: str, body):
        request = Request(f"{self.url}/data/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            return json.load(answer)

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something that no message of TensorBoard's tells: ask again and again whether it is `done()`."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not done():
            if time.monotonic() > deadline:
                pytest.fail(f"TensorBoard has not loaded everything in {_PATIENCE_SECONDS} s", pytrace=False)
            time.sleep(0.1)

    def wait_for(self, runs) -> None:
        """Wait until the last thing that each run wrote has been loaded."""

        def loaded() -> bool:
            tags = self.get("plugin/scalars/tags")
            return all("reg/weight_norm" in tags.get(run, {}) for run in runs) and all(
                self.get("plugin/scalars/scalars", run=run, tag="reg/weight_norm")[-1][1] == 13 for run in runs
            )

        self.until(loaded)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._process.stderr.close()


@pytest.fixture(scope="session", params=[[], ["--load_fast=false"]], ids=["default loader", "Python loader"])
def server(request, logs) -> Iterator[Server]:
    server = Server(logs, *request.param)
    try:
        server.wait_for(RUNS)
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator:
    """One headless Chromium for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: `make browser`")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(programs.values()):
        pytest.skip("needs chromium and chromedriver: `make browser`")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    arguments = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    arguments += ["disable-background-networking", "disable-component-update"]
    arguments += [f"user-data-dir={tmp_path_factory.mktemp('browser')}", "window-size=1400,1200"]
    for argument in arguments:
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    PICTURES.mkdir(exist_ok=True)
    yield browser
    browser.quit()
