"""Constraints on two ranks: the rules of one process, also where units and groups are spread over both."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lightning_reg import Constraint, KeepZeros, L1Penalty, MaxNorm, NMSparsity, NonNegative, Piecewise, UnitNorm
from tests.distributed.test_proximal import OPTIMIZERS
from tests.distributed.training import Module, half, trainer_on
from tests.models import KeepWeights, loader, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed


class Centered(Constraint):
    """One of a user, that needs whole weights."""

    def project(self, weights):
        for weight in weights:
            weight.sub_(weight.mean())


# Shards are rows: what comes out of one input unit is spread over both ranks, and so are neighbours along dimension 0.
CONSTRAINTS = {
    "norms": lambda: [
        UnitNorm(select="network.encoder.weight"),
        MaxNorm(0.2, dim=1, select="network.hidden.weight"),
        NonNegative(select="network.bottleneck.weight"),
        Centered(select="network.head.weight"),
    ],
    "zeros": lambda: [
        NMSparsity(2, 5, select="network.encoder.weight"),
        NMSparsity(1, 3, dim=0, select="network.hidden.weight"),
        L1Penalty(0.1, mode="proximal", select="network.bottleneck.weight", schedule=Piecewise((1.0, 0.0), (8,))),
        KeepZeros(8, select="network.bottleneck.weight"),
    ],
}


def train(name, strategy):
    """Run on each rank: train on its half of every global batch of four; return the whole weights."""
    keep = KeepWeights()
    trainer_on(strategy, *CONSTRAINTS[name](), keep, max_epochs=3).fit(Module(OPTIMIZERS["adam"]), half())
    return keep.weights


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_end_with_the_weights_of_one_process(pool, name, strategy):
    module = Module(OPTIMIZERS["adam"])
    trainer_on(None, *CONSTRAINTS[name](), max_epochs=3).fit(module, loader())
    expected = weights_of(module)

    first, second = pool.run(train, name, strategy)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, expected, rtol=1e-4)
    encoder, hidden, bottleneck, head = (
        first[f"network.{layer}.weight"] for layer in ("encoder", "hidden", "bottleneck", "head")
    )
    if name == "norms":
        torch.testing.assert_close(encoder.norm(dim=1), torch.ones(7))
        torch.testing.assert_close(hidden.norm(dim=0).max(), torch.tensor(0.2))
        assert bottleneck.min() >= 0
        assert head.sum().abs() < 1e-6
    else:
        assert ((encoder != 0).sum(1) == 2).all()
        assert ((hidden != 0).sum(0) == 1).all()
        assert torch.equal(bottleneck == 0, expected["network.bottleneck.weight"] == 0)
        assert (bottleneck == 0).any()


def projected(placement, dim):
    """Run on each rank: put a sharded tensor through constraints; return whole results, and the tensor."""
    torch.manual_seed(0)
    plain = torch.randn(8, 8)
    results = []
    for constraint in (MaxNorm(2.0, dim=dim), UnitNorm(dim=dim), NonNegative(), NMSparsity(2, 4, dim=dim)):
        weight = distribute_tensor(plain.clone(), init_device_mesh("cpu", (2,)), [placement])
        constraint.project([weight])
        results.append(weight.full_tensor())
        # As training does where output units lie along another dimension.
        weight = distribute_tensor(plain.T.clone(), init_device_mesh("cpu", (2,)), [placement])
        constraint.project([weight.permute(1, 0)])
        torch.testing.assert_close(weight.full_tensor().T, results[-1])
    return plain, results


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=["rows", "columns", "replicas"])
def test_sharded_tensors_go_where_the_whole_one_does(pool, placement, dim):
    for plain, (limited, unit, positive, sparse) in pool.run(projected, placement, dim):
        other = 1 - dim
        norms = plain.norm(dim=other, keepdim=True)
        torch.testing.assert_close(limited, plain * (2 / norms).clamp(max=1))
        torch.testing.assert_close(unit, plain / norms)
        assert torch.equal(positive, plain.relu())
        groups = plain.movedim(dim, 1).reshape(-1, 4)
        smallest = groups.abs().argsort(dim=1)[:, :2]
        assert torch.equal(sparse.movedim(dim, 1).reshape(-1, 4), groups.scatter(1, smallest, 0.0))


def refused():
    with pytest.raises(MisconfigurationException) as error:
        trainer_on("fsdp1", MaxNorm(1.0)).fit(Module(OPTIMIZERS["sgd"]), loader())
    return str(error.value)


def test_flat_shards_are_refused_with_a_remedy(pool):
    for message in pool.run(refused):
        assert "MaxNorm does not support" in message
        assert "FSDP2" in message
