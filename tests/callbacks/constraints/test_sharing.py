"""Which callbacks may share a weight: the table of the documentation, pair by pair."""

import re
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn

from lightning_reg import (
    AnchorPenalty,
    Constraint,
    ElasticNetPenalty,
    GroupLassoPenalty,
    KeepZeros,
    L1Penalty,
    L2Penalty,
    MaxNorm,
    MCPPenalty,
    MinMaxNorm,
    NMSparsity,
    NonNegative,
    Penalty,
    SpectralConstraint,
    SpectralNormalization,
    TargetSparsity,
    UnitNorm,
    WeightDecay,
)

PAGE = (Path(__file__).parents[3] / "docs" / "guides" / "constraints.md").read_text()
ROUNDING = 1e-6


def norms(weight):
    return weight.norm(dim=1)


def largest(weight):
    return torch.linalg.svdvals(weight)[0].item()


class Box(Constraint):
    def project(self, weights):
        for weight in weights:
            weight.clamp_(-0.3, 0.3)


class Towards(Penalty):
    """Pulls entries towards 1, so that it keeps no zero."""

    def penalty(self, weights):
        return sum((weight - 1).square().sum() for weight in weights)

    def proximal(self, weights, factors):
        for weight, factor in zip(weights, factors, strict=True):
            weight.add_((1 - weight) * (2 * factor / (1 + 2 * factor)))


@dataclass
class Member:
    """A callback that acts on all weights, its line in the table, and what it holds a weight to."""

    make: object
    line: str
    holds: object = lambda weight: True


MEMBERS = {
    "MaxNorm": Member(lambda: MaxNorm(0.5), "MaxNorm", lambda w: norms(w).max() <= 0.5 + ROUNDING),
    "MaxNorm of inputs": Member(
        lambda: MaxNorm(0.4, dim=1), "MaxNorm", lambda w: w.norm(dim=0).max() <= 0.4 + ROUNDING
    ),
    "UnitNorm": Member(UnitNorm, "UnitNorm", lambda w: torch.allclose(norms(w), torch.ones(4))),
    "MinMaxNorm": Member(
        lambda: MinMaxNorm(0.8, 0.9),
        "MinMaxNorm",
        lambda w: norms(w).min() >= 0.8 - ROUNDING and norms(w).max() <= 0.9 + ROUNDING,
    ),
    "NonNegative": Member(NonNegative, "NonNegative", lambda w: w.min() >= 0),
    "KeepZeros": Member(lambda: KeepZeros(0), "KeepZeros", lambda w: not w[:, 3].any()),
    "NMSparsity": Member(NMSparsity, "NMSparsity", lambda w: (w.view(-1, 4) != 0).sum(1).max() <= 2),
    "your own": Member(Box, "Constraint` of your own", lambda w: w.abs().max() <= 0.3),
    "L1 proximal": Member(lambda: L1Penalty(0.1, mode="proximal"), "L1Penalty", lambda w: (w == 0).sum() > 6),
    "L2 proximal": Member(lambda: L2Penalty(0.05, mode="proximal"), "L2Penalty"),
    "elastic net proximal": Member(
        lambda: ElasticNetPenalty(0.4, mode="proximal"), "ElasticNetPenalty", lambda w: (w == 0).sum() > 6
    ),
    "MCP proximal": Member(lambda: MCPPenalty(0.1, mode="proximal"), "MCPPenalty", lambda w: (w == 0).sum() > 6),
    "group lasso proximal": Member(
        lambda: GroupLassoPenalty(0.3, dim=1, mode="proximal"),
        "GroupLassoPenalty",
        lambda w: (w.norm(dim=0) == 0).sum() > 1,
    ),
    "TargetSparsity": Member(
        lambda: TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.4, schedule=lambda step: 1.0),
        "TargetSparsity",
        lambda w: (w == 0).float().mean() >= 0.4 - 1 / 64,
    ),
    "your own proximal": Member(lambda: Towards(0.01, mode="proximal"), "Penalty` of your own"),
    "anchor proximal": Member(lambda: AnchorPenalty(0.01, mode="proximal"), "AnchorPenalty"),
    "L1 loss": Member(lambda: L1Penalty(0.01), 'mode="loss"`'),
    "your own grad": Member(lambda: Towards(0.01, mode="grad"), 'mode="loss"`'),
    "decay": Member(lambda: WeightDecay(0.1), "WeightDecay"),
    "cautious decay": Member(lambda: WeightDecay(5.0, kind="cautious"), "WeightDecay"),
    "normalization": Member(
        lambda: SpectralNormalization(power_iterations=10),
        "SpectralNormalization",
        lambda w: largest(w) == pytest.approx(1, rel=0.02),
    ),
    "spectral rescale": Member(
        lambda: SpectralConstraint(0.7, method="rescale"),
        'SpectralConstraint(..., method="rescale")',
        lambda w: largest(w) <= 0.7001,
    ),
    "spectral clip": Member(lambda: SpectralConstraint(0.7), "SpectralConstraint(...)`"),
}
CONSTRAINTS = [name for name, member in MEMBERS.items() if isinstance(member.make(), Constraint)]
PAIRS = [pair for pair in combinations_with_replacement(MEMBERS, 2) if set(pair) & set(CONSTRAINTS)]


def table():
    """Return the page's table: line and column -> whether they share weights."""
    _, _, rest = PAGE.partition("| may have one weight together |")
    head, _, *lines = rest.partition("\n\n")[0].splitlines()
    columns = [cell.strip() for cell in head.strip(" |").split("|")]
    rows = [[cell.strip() for cell in line.strip(" |").split("|")] for line in lines]
    return {(row[0], column): cell for row in rows for column, cell in zip(columns, row[1:], strict=True)}


TABLE = table()


def may_share(one, other):
    """Look a pair up, in the direction that the table has."""
    line, column = (other, one) if one in CONSTRAINTS else (one, other)
    (cell,) = {
        cell
        for (row, head), cell in TABLE.items()
        if f"`{MEMBERS[line].line}" in row and f"`{MEMBERS[column].line}" in head
    }
    return {"yes": True, "no": False}[cell]


class OneLayer(LightningModule):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(16, 4)
        self.layer.weight.data = torch.randn(4, 16, generator=generator) / 4
        self.layer.weight.data[:, 3] = 0.0
        self.inputs = torch.randn(8, 16, generator=generator)

    def training_step(self, batch, batch_idx):
        return (self.layer(self.inputs) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


def test_the_table_has_all_constraints_on_both_sides():
    for name in CONSTRAINTS:
        assert any(f"`{MEMBERS[name].line}" in row for row, _ in TABLE)
        assert any(f"`{MEMBERS[name].line}" in column for _, column in TABLE)
    assert all(cell in {"yes", "no"} for cell in TABLE.values())


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_callbacks_that_may_share_a_weight_keep_both_rules_and_the_others_are_refused(one, other, trainer_of):
    shares = may_share(one, other)
    for pair in {(one, other), (other, one)}:
        module = OneLayer()
        trainer = trainer_of(*(MEMBERS[name].make() for name in pair), max_epochs=1, log_every_n_steps=100)
        if shares:
            trainer.fit(module, range(6))
            for name in pair:
                assert MEMBERS[name].holds(module.layer.weight.detach()), name
        else:
            with pytest.raises(MisconfigurationException, match=re.escape("both change 'layer.weight'")) as error:
                trainer.fit(module, range(6))
            assert "select=Select(exclude=...)" in str(error.value)


def test_each_with_weights_of_its_own_is_refused_nowhere(trainer_of):
    class Two(OneLayer):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(16, 4)

    trainer_of(UnitNorm(select="layer.*"), MaxNorm(0.5, select="second.*"), max_epochs=1).fit(Two(), range(1))


def test_convolutions_which_the_spectral_constraint_rescales_may_keep_their_zeros(trainer_of):
    class Convolution(OneLayer):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv1d(1, 4, 3)
            self.layer.weight.data[:, :, 1] = 0.0

        def training_step(self, batch, batch_idx):
            return (self.layer(self.inputs[:, None]) - 1).square().mean()

    module = Convolution()
    trainer_of(SpectralConstraint(0.5), KeepZeros(0), max_epochs=1).fit(module, range(3))

    assert not module.layer.weight[:, :, 1].any()
    assert module.layer.weight[:, :, 0].all()
