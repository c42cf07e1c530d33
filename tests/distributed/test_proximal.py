"""Exact zeros on two ranks: the same as in one process, also where groups are spread over both."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg import (
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    MCPPenalty,
    NuclearNormPenalty,
    TargetSparsity,
)
from tests.distributed.test_penalty import PATTERN, FSDP1OnCpu, Network
from tests.models import KeepWeights, Regressor, loader, samples, weights_of
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
STRATEGIES = {
    "fsdp1": lambda: FSDP1OnCpu(auto_wrap_policy={nn.Linear}),
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}


class Module(Regressor):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        torch.manual_seed(0)
        self.network = Network()
        self.network.unused = nn.Identity()

    def configure_model(self):
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for part in (self.network.hidden, self.network.bottleneck):
            fully_shard(part, mesh=mesh)
        fully_shard(self.network, mesh=mesh)


def trainer_of(*callbacks, **settings):
    defaults = {"max_epochs": 3, "log_every_n_steps": 1, "logger": False, "use_distributed_sampler": False}
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **(defaults | quiet | settings))


def train(name, optimizer, strategy):
    """Run on each rank: train on its half of every global batch of four; return weights and logged values."""
    keep = KeepWeights()
    strategy = STRATEGIES[strategy]() if strategy in STRATEGIES else strategy
    trainer = trainer_of((PENALTIES | RANKS)[name](), keep, devices=2, strategy=strategy)
    data = samples()
    sampler = DistributedSampler(data, num_replicas=2, rank=distributed.get_rank(), shuffle=False)
    trainer.fit(Module(OPTIMIZERS[optimizer]), DataLoader(data, batch_size=2, sampler=sampler))
    return keep.weights, {key: float(value) for key, value in trainer.callback_metrics.items() if "reg/" in key}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_end_with_the_weights_and_zeros_of_one_process(pool, name, optimizer, strategy):
    module, trainer = Module(OPTIMIZERS[optimizer]), trainer_of(PENALTIES[name]())
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
    module, trainer = Module(OPTIMIZERS["sgd"]), trainer_of(RANKS["rank"]())
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
    trainer_of(PENALTIES["elastic_net"]()).fit(module, loader())

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
