"""The information before training: the plan, weight by weight, and a warning of a doubtful setting."""

import logging

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty
from tests.event_files import texts
from tests.models import Regressor


def plan_of(caplog: pytest.LogCaptureFixture) -> str:
    messages = [record.message for record in caplog.records if record.message.startswith("Regularization plan")]
    plans = [message for message in messages if "Weight decay from all sources" not in message]  # see test_decays.py
    assert len(plans) == 1
    return plans[0]


def test_one_table_shows_the_action_on_each_weight_or_the_reason_for_none(fit, tmp_path, caplog):
    module = Regressor()
    module.network.conv.weight.requires_grad_(requires_grad=False)

    with caplog.at_level(logging.INFO):
        fit(
            L1Penalty(0.1, select=["network.encoder.*", "network.conv.*"]),
            ElasticNetPenalty(0.02, select="network.encoder.*", mode="grad"),
            module=module,
            logger=TensorBoardLogger(tmp_path),
        )

    plan = plan_of(caplog)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in plan.splitlines()[1:]}
    assert rows["network.encoder.weight"] == "7 x 5 l1 0.1 + elastic_net 0.02"
    assert rows["network.encoder.bias"] == "7 none: 1 < 2 dimensions"
    assert rows["network.conv.weight"] == "3 x 1 x 3 l1 0.1 (not trained at the moment)"
    assert rows["network.head.weight"] == "2 x 21 none: matches no pattern of `select`"
    assert "ElasticNetPenalty(alpha=0.02, l1_ratio=0.5, select='network.encoder.*', mode='grad'" in plan
    text = texts(tmp_path)["reg/setup/text_summary"]
    assert "| `network.encoder.weight` | 7 x 5 | l1 0.1 + elastic_net 0.02 |" in text


class Deep(Regressor):
    """Two hundred layers, one of which is not like the others."""

    def __init__(self):
        super().__init__()
        blocks = ({"query": nn.Linear(4, 4), "up": nn.Linear(4, 8)} for _ in range(100))
        self.encoder = nn.ModuleList(map(nn.ModuleDict, blocks))
        self.encoder[42]["query"].weight.requires_grad_(requires_grad=False)


def test_layers_with_the_same_action_are_one_row_and_the_odd_one_has_its_own(fit, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(L2Penalty(0.001), L1Penalty(0.1, select="*.up.*"), module=Deep(), logger=TensorBoardLogger(tmp_path))

    lines = plan_of(caplog).splitlines()
    rows = {" ".join(line.split()) for line in lines}
    assert len(lines) < 40
    assert "encoder.{0..41,43..99}.query.weight x99 4 x 4 l2 0.001" in rows
    assert "encoder.42.query.weight 4 x 4 l2 0.001 (not trained at the moment)" in rows
    assert "encoder.{0..99}.up.weight x100 8 x 4 l2 0.001 + l1 0.1" in rows
    assert "total of L1Penalty: 100 of 408 weights, 3,200 numbers" in rows
    assert "encoder.42.query.weight" in texts(tmp_path)["reg/setup/text_summary"]
    assert "{" not in texts(tmp_path)["reg/setup/text_summary"]


def test_each_reason_is_shown_with_its_callback(fit, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(L1Penalty(0.1, select="network.encoder.*"), L2Penalty(0.1, select="network.head.*"))

    (row,) = (line for line in plan_of(caplog).splitlines() if "network.encoder.bias" in line)
    assert "1 < 2 dimensions (L1Penalty)" in row
    assert "matches no pattern of `select` (L2Penalty)" in row


def test_a_long_plan_is_cut_on_the_console_only(fit, tmp_path, caplog):
    module = Regressor()
    module.many = nn.ParameterList(nn.Parameter(torch.zeros(1, size)) for size in range(1, 101))

    with caplog.at_level(logging.INFO):
        fit(L1Penalty(0.1), module=module, logger=TensorBoardLogger(tmp_path))

    plan = plan_of(caplog)
    assert len(plan.splitlines()) < 40
    assert "many.99" not in plan
    assert "and 78 more rows" in plan
    assert "total of L1Penalty: 103 of 108 weights" in plan
    assert "many.99" in texts(tmp_path)["reg/setup/text_summary"]


@pytest.mark.parametrize("penalty", [L2Penalty(0.1), ElasticNetPenalty(0.1)])
def test_l2_with_weight_decay_warns_once(fit, penalty):
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.01, weight_decay=0.25))

    expected = "weight_decay=0.25 both shrink the same weights"
    with pytest.warns(UserWarning, match=expected) as warnings:
        fit(penalty, module=module)

    assert sum(expected in str(warning.message) for warning in warnings) == 1


@pytest.mark.parametrize(
    ("penalties", "names"),
    [
        ((L2Penalty(0.1), L2Penalty(0.1, select="network.head.*")), "L2Penalty"),
        ((L2Penalty(0.1), L1Penalty(0.1), ElasticNetPenalty(0.1, mode="grad")), "L2Penalty and ElasticNetPenalty"),
    ],
    ids=["of one class", "of two classes"],
)
def test_several_penalties_beside_weight_decay_are_one_warning(fit, penalties, names):
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.01, weight_decay=0.25))

    with pytest.warns(UserWarning, match=f"^{names} and the optimizer's weight_decay=0.25") as warnings:
        fit(*penalties, module=module)

    assert sum("both shrink the same weights" in str(warning.message) for warning in warnings) == 1


def test_the_largest_of_different_weight_decays_is_named(fit):
    class TwoGroups(Regressor):
        def configure_optimizers(self):
            groups = [(self.network.head, 0.0), (self.network.encoder, 0.25), (self.network.conv, 0.125)]
            return torch.optim.SGD(
                [{"params": list(part.parameters()), "weight_decay": decay} for part, decay in groups]
            )

    with pytest.warns(UserWarning, match="weight_decay=0.25 both shrink the same weights"):
        fit(L2Penalty(0.1), module=TwoGroups())


@pytest.mark.parametrize(
    "penalty",
    [L1Penalty(0.1), ElasticNetPenalty(0.1, 1.0), L2Penalty(0.0), L2Penalty(0.1, select="network.head.*")],
    ids=repr,
)
def test_no_warning_where_weight_decay_does_not_overlap(fit, penalty):
    class TwoGroups(Regressor):
        def configure_optimizers(self):
            head = list(self.network.head.parameters())
            others = [parameter for name, parameter in self.named_parameters() if "head" not in name]
            decay = 0.0 if isinstance(penalty, L2Penalty) and penalty.select else 0.25
            return torch.optim.SGD([{"params": head, "weight_decay": decay}, {"params": others, "weight_decay": 0.25}])

    fit(penalty, module=TwoGroups())  # warnings are errors
