"""Exact zeros on two ranks: the same as in one process, also where groups are spread over both."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lightning_reg import (
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    MCPPenalty,
    NuclearNormPenalty,
    TargetSparsity,
)
from tests.distributed.training import PATTERN, Module, half, trainer_on
from tests.models import KeepWeights, loader, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

PENALTIES = {
    "l1": lambda: L1Penalty(0.01, mode="proximal", select=PATTERN),
    "elastic_net": lambda: ElasticNetPenalty(0.02, 0.6, mode="proximal", select=PATTERN),
    "mcp": lambda: MCPPenalty(0.05, 3.0, mode="proximal", select=PATTERN),
    "filters": lambda: GroupLassoPenalty(0.02, mode="proximal", select=PATTERN),
    # Shards are rows: a column, which is one input unit, is spread over both ranks.
    "inputs": lambda: GroupLassoPenalty(0.02, dim=1, mode="proximal", select=PATTERN),
    "inputs, gradient": lambda: GroupLassoPenalty(0.02, dim=1, mode="grad", select=PATTERN),
    "target": lambda: TargetSparsity(L1Penalty(0.0, mode="proximal", select=PATTERN), 0.6),
    "target of each": lambda: TargetSparsity(L1Penalty(0.0, mode="proximal", select=PATTERN), 0.5, scope="layer"),
    "target inputs, floor": lambda: TargetSparsity(
        GroupLassoPenalty(0.0, dim=1, mode="proximal", select=PATTERN), 0.4, floor=0.3
    ),
    "target filters": lambda: TargetSparsity(GroupLassoPenalty(0.0, mode="proximal", select=PATTERN), 0.4),
    "target inputs": lambda: TargetSparsity(GroupLassoPenalty(0.0, dim=1, mode="proximal", select=PATTERN), 0.4),
}
RANKS = {"rank": lambda: NuclearNormPenalty(0.1, mode="proximal", select=PATTERN)}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
}


def train(name, optimizer, strategy):
    """Run on each rank: train on its half of every global batch of four; return weights and logged values."""
    keep = KeepWeights()
    trainer = trainer_on(strategy, (PENALTIES | RANKS)[name](), keep, max_epochs=3)
    trainer.fit(Module(OPTIMIZERS[optimizer]), half())
    return keep.weights, {key: float(value) for key, value in trainer.callback_metrics.items() if "reg/" in key}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_end_with_the_weights_and_zeros_of_one_process(pool, name, optimizer, strategy):
    module, trainer = Module(OPTIMIZERS[optimizer]), trainer_on(None, PENALTIES[name](), max_epochs=3)
    trainer.fit(module, loader())
    expected = weights_of(module)

    (first, logged), (second, _) = pool.run(train, name, optimizer, strategy)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, expected, rtol=1e-4)
    for key, weight in expected.items():
        assert torch.equal(first[key] == 0, weight == 0), key
    matrices = [weight for weight in expected.values() if weight.ndim > 1]
    assert any((weight == 0).any() for weight in matrices) or "gradient" in name
    for key, value in logged.items():
        assert value == pytest.approx(trainer.callback_metrics[key].item(), rel=1e-3), key


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_end_with_the_weights_and_ranks_of_one_process(pool, strategy):
    module, trainer = Module(OPTIMIZERS["sgd"]), trainer_on(None, RANKS["rank"](), max_epochs=3)
    trainer.fit(module, loader())
    expected = weights_of(module)

    (first, logged), (second, _) = pool.run(train, "rank", "sgd", strategy)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, expected, rtol=1e-4)
    assert torch.linalg.matrix_rank(first["network.encoder.weight"]) < 5
    for key, weight in expected.items():
        if weight.ndim > 1:
            assert torch.linalg.matrix_rank(first[key]) == torch.linalg.matrix_rank(weight), key
    assert "reg/optimality/nuclear_norm" in logged
    for key, value in logged.items():
        assert value == pytest.approx(trainer.callback_metrics[key].item(), rel=1e-3), key


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fsdp1_works_on_its_flat_shards(pool, optimizer):
    module = Module(OPTIMIZERS[optimizer])
    trainer_on(None, PENALTIES["elastic_net"](), max_epochs=3).fit(module, loader())

    (first, _), (second, _) = pool.run(train, "elastic_net", optimizer, "fsdp1")

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-4)
    assert all(torch.equal(first[key] == 0, weight == 0) for key, weight in weights_of(module).items())


def operators_on_shards(dim):
    """Run on each rank: operators of tensors sharded along either dimension; return whole results."""
    from lightning_reg.functional import group_lasso, group_soft_threshold, soft_threshold

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    plain, thresholds = torch.randn(5, 3), 0.5 * torch.rand(5, 3)
    results = []
    for placement in (Shard(0), Shard(1), Replicate()):
        weight, threshold = (distribute_tensor(tensor, mesh, [placement]) for tensor in (plain, thresholds))
        found = [
            *soft_threshold([weight], threshold),
            *group_soft_threshold([weight], 0.4, dim=dim),
            *group_soft_threshold([weight], threshold, dim=dim),
        ]
        results += [tensor.full_tensor() for tensor in found]
        results.append(group_lasso([weight], dim=dim))
    return plain, thresholds, results


@pytest.mark.parametrize("dim", [0, 1])
def test_operators_of_sharded_tensors_agree_with_the_whole_tensor(pool, dim):
    from lightning_reg.functional import group_lasso, group_soft_threshold, soft_threshold

    for plain, thresholds, results in pool.run(operators_on_shards, dim):
        expected = [
            *soft_threshold([plain], thresholds),
            *group_soft_threshold([plain], 0.4, dim=dim),
            *group_soft_threshold([plain], thresholds, dim=dim),
            group_lasso([plain], dim=dim),
        ]
        for index, found in enumerate(results):
            torch.testing.assert_close(found, expected[index % 4])
