"""The table that says who decays which weight."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_reg import DropoutScheduler, L2Penalty, Linear, RegularizationMonitor, Select, WeightDecay
from tests.event_files import texts
from tests.models import Regressor


def rows(tmp_path):
    """Return the last column by weight; nothing without the table."""
    text = texts(tmp_path).get("reg/setup_decayed_by/text_summary", "")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("`").removeprefix("network."): action for name, _, action in cells}


@pytest.mark.parametrize(
    "callback", [RegularizationMonitor(), DropoutScheduler(Linear(0.0, 0.5, 1.0)), L2Penalty(0.0)], ids=repr
)
@pytest.mark.filterwarnings("ignore:.* and the optimizer's weight_decay")
def test_it_is_shown_whichever_callback_is_there(fit, tmp_path, callback):
    # An epoch has 7 steps, of which each takes 0.1 * 0.5 of a weight.
    module = Regressor(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5))

    fit(callback, module=module, logger=TensorBoardLogger(tmp_path))

    table = rows(tmp_path)
    matrix = "AdamW 0.5, time scale 2.86 epochs"
    assert table["encoder.weight"] == table["head.weight"] == matrix
    assert table["encoder.bias"] == f"{matrix} (a bias, usually not decayed)"
    assert table["norm.weight"] == f"{matrix} (a norm scale, usually not decayed)"


def test_the_table_shows_single_double_and_missing_decay(fit, tmp_path):
    def optimizer(parameters):
        encoder, *rest = list(parameters)
        return torch.optim.SGD([{"params": [encoder], "weight_decay": 0.1}, {"params": rest}], lr=0.05, momentum=0.9)

    callbacks = [L2Penalty(0.01, select=["*.encoder.*", "*.head.*"]), WeightDecay(0.2, select="*.conv.*")]
    with pytest.warns(UserWarning, match="both shrink the same weights"):
        fit(*callbacks, module=Regressor(optimizer), logger=TensorBoardLogger(tmp_path))

    table = rows(tmp_path)
    # With momentum 0.9 a gradient acts ten times: 0.05 * 0.1 * 10 of a weight in a step, 7 steps in an epoch.
    assert table["encoder.weight"] == "twice: SGD 0.1, group 0, time scale 2.86 epochs + l2 0.01"
    assert table["head.weight"] == "l2 0.01"
    assert table["conv.weight"] == "WeightDecay, decoupled 0.2, time scale 14.3 epochs"
    assert table["norm.weight"] == "none: not decayed"


def test_adams_decay_has_no_time_scale_for_it_is_in_the_gradient(fit, tmp_path):
    module = Regressor(lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.5))

    fit(RegularizationMonitor(), module=module, logger=TensorBoardLogger(tmp_path))

    assert rows(tmp_path)["head.weight"] == "Adam 0.5"


def test_without_decay_there_is_no_table(fit, tmp_path):
    fit(RegularizationMonitor(), logger=TensorBoardLogger(tmp_path))

    assert rows(tmp_path) == {}


def test_a_requested_decay_of_biases_has_no_remark(fit, tmp_path):
    decay = WeightDecay(0.1, select=Select("*.bias", min_ndim=1))

    fit(decay, logger=TensorBoardLogger(tmp_path))

    assert rows(tmp_path)["head.bias"] == "WeightDecay, decoupled 0.1, time scale 28.6 epochs"
