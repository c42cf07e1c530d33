"""Two processes train to the weights of one process on the same global batch."""

import logging

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero
from torch import nn
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

from lightning_reg import L1Penalty, L2Penalty, Linear, Penalty, Piecewise
from tests.distributed.training import PATTERN, Module, half, trainer_on
from tests.models import KeepWeights, Quartic, Regressor, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, train_by_hand

pytestmark = pytest.mark.distributed


class Expanded(Penalty):
    """Its gradient is one number, expanded to the shape of the weight."""

    elementwise = True

    def penalty(self, weights):
        return sum(weight.sum() for weight in weights)


class Transposed(Penalty):
    """Its gradient lies in memory as the transposed weight does."""

    def penalty(self, weights):
        return sum((weight.T.contiguous() ** 3).sum() for weight in weights)


MAKERS = {name: make for name, (make, _) in PENALTIES.items()} | {"own": lambda **kwargs: Quartic(0.1, **kwargs)}
TERMS = {name: term for name, (_, term) in PENALTIES.items()} | {
    "own": lambda weights: 0.1 * sum(weight.pow(4).sum() for weight in weights)
}
LAYOUTS = {
    "expanded": (lambda **kwargs: Expanded(0.1, **kwargs), lambda weights: 0.1 * sum(map(torch.sum, weights))),
    "transposed": (
        lambda **kwargs: Transposed(0.1, **kwargs),
        lambda weights: 0.1 * sum(weight.pow(3).sum() for weight in weights),
    ),
}


def train(name, mode, strategy, settings):
    """Run on each rank: train on its half of every global batch of four; return weights and logged values."""
    module = Module(unused="unused" in strategy)
    schedule = settings.pop("schedule", Linear(1.0, 0.5, 1.0))
    keep = KeepWeights()
    maker = MAKERS[name] if name in MAKERS else LAYOUTS[name][0]
    trainer = trainer_on(strategy, maker(mode=mode, select=PATTERN, schedule=schedule), keep, **settings)
    trainer.fit(module, half(), loader())
    return keep.weights, {key: float(value) for key, value in trainer.callback_metrics.items()}


def by_hand(name, *, unused=False, accumulate=1, autocast=None):
    steps = 2 * -(-7 // accumulate)
    return weights_of(
        train_by_hand(
            Module(unused=unused),
            loader(),
            TERMS[name] if name in TERMS else LAYOUTS[name][1],
            accumulate=lambda epoch: accumulate,
            factor=lambda step: 1 - 0.5 * step / steps,
            autocast=autocast,
        )
    )


@both_modes
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_ranks_equal_one_process(pool, name, mode, strategy, accumulate):
    ranks = pool.run(train, name, mode, strategy, {"accumulate_grad_batches": accumulate})

    for weights, _ in ranks:
        assert_same_weights(weights, by_hand(name, accumulate=accumulate))


@pytest.mark.parametrize("name", LAYOUTS)
def test_uneven_shards_take_gradients_of_any_layout(pool, name):
    ranks = pool.run(train, name, "loss", "fsdp2", {})

    for weights, _ in ranks:
        assert_same_weights(weights, by_hand(name))


@pytest.mark.parametrize("name", ["l1", "l2", "elastic_net"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_fsdp1_in_grad_mode(pool, name, accumulate):
    ranks = pool.run(train, name, "grad", "fsdp1", {"accumulate_grad_batches": accumulate})

    for weights, _ in ranks:
        assert_same_weights(weights, by_hand(name, accumulate=accumulate))


@both_modes
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ddp_that_looks_for_unused_parameters(pool, mode, accumulate):
    settings = {"accumulate_grad_batches": accumulate}

    ranks = pool.run(train, "elastic_net", mode, "ddp_find_unused_parameters_true", settings)

    for weights, _ in ranks:
        assert_same_weights(weights, by_hand("elastic_net", unused=True, accumulate=accumulate))


@both_modes
def test_ddp_with_a_static_graph_and_a_penalty_that_sets_in_later(pool, mode):
    schedule = Piecewise((0.0, 1.0), (3,))

    ranks = pool.run(train, "elastic_net", mode, "static unused", {"schedule": schedule})

    module = train_by_hand(Module(unused=True), loader(), TERMS["elastic_net"], factor=schedule)
    for weights, _ in ranks:
        assert_same_weights(weights, weights_of(module))


@both_modes
def test_fp16_under_ddp(pool, mode):
    ranks = pool.run(train, "elastic_net", mode, "ddp", {"fp16": True})

    expected = by_hand("elastic_net", autocast=torch.float16)
    for weights, _ in ranks:
        # Halves of a batch round differently in fp16; without the scale, the penalty would be 1000 times off.
        assert_same_weights(weights, expected, rtol=1e-3)


@pytest.mark.twin
@pytest.mark.parametrize(
    ("strategy", "mode"), [("ddp", "loss"), ("ddp", "grad"), ("fsdp2", "loss"), ("fsdp2", "grad"), ("fsdp1", "grad")]
)
def test_every_rank_logs_the_values_of_one_process(pool, trainer_of, strategy, mode):
    ranks = pool.run(train, "elastic_net", mode, strategy, {})

    make, _ = PENALTIES["elastic_net"]
    trainer = trainer_of(make(schedule=Linear(1.0, 0.5, 1.0)))
    trainer.fit(Module(), loader())
    for _, logged in ranks:
        for key in ("reg/penalty", "reg/penalty/elastic_net", "reg/penalty_ratio"):
            assert logged[key] == pytest.approx(trainer.callback_metrics[key].item(), rel=1e-5)


def norms_of_shards():
    """Run on each rank: the functional layer on sharded and plain weights together."""
    from torch.distributed.device_mesh import init_device_mesh

    from lightning_reg.functional import elastic_net, l1_norm, squared_l2_norm

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    plain = [torch.randn(5, 3), torch.randn(1, 4), torch.randn(2, 2), torch.randn(3)]
    placements = [Shard(0), Shard(0), Replicate(), None]
    weights = [
        tensor if placement is None else distribute_tensor(tensor, mesh, [placement])
        for tensor, placement in zip(plain, placements, strict=True)
    ]
    for weight in weights:
        weight.requires_grad_()
    elastic_net(weights, 0.5, 0.3).backward()
    gradients = [w.grad.full_tensor() if hasattr(w.grad, "full_tensor") else w.grad for w in weights]
    return plain, gradients, l1_norm(weights).item(), squared_l2_norm(weights).item()


def test_norms_count_a_shard_once_and_a_replica_once(pool):
    for plain, gradients, l1, l2 in pool.run(norms_of_shards):
        assert l1 == pytest.approx(sum(tensor.abs().sum().item() for tensor in plain))
        assert l2 == pytest.approx(sum(tensor.square().sum().item() for tensor in plain))
        for tensor, gradient in zip(plain, gradients, strict=True):
            torch.testing.assert_close(gradient, 0.5 * (0.3 * tensor.sign() + 0.7 * tensor))


class PartialGradients(Regressor):
    """Like sequence parallelism: a weight is replicated, and each rank has a part of the sum that is its gradient."""

    def configure_model(self):
        if isinstance(self.network, nn.Linear):
            return
        self.network = nn.Linear(5, 2, bias=False)
        nn.init.constant_(self.network.weight, 0.5)
        mesh = self.device_mesh["tensor_parallel"]
        self.network.weight = nn.Parameter(distribute_tensor(self.network.weight.detach(), mesh, [Replicate()]))

    def training_step(self, batch, batch_idx):
        return self.network.weight.to_local(grad_placements=[Partial()]).sum() * 0.5

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_on_partial_gradients(name, mode):
    """Run on each rank: one step of sum(w) + 0.1 * penalty, each rank having half of the data gradient."""
    penalty = {"l1": L1Penalty, "l2": L2Penalty}[name](0.1, mode=mode)
    trainer = trainer_on("tensor parallel", penalty, keep := KeepWeights(), max_steps=1)
    trainer.fit(PartialGradients(), loader())
    return keep.weights["network.weight"], trainer.callback_metrics.get(f"reg/optimality/{name}")


class ShardedLoss(PartialGradients):
    def training_step(self, batch, batch_idx):
        return self.network.weight.sum()  # a DTensor, as with `loss_parallel`


def refuse_a_sharded_loss():
    """Run on each rank: return the error of a penalty in the loss."""
    trainer = trainer_on("tensor parallel", L2Penalty(0.1), max_steps=1)
    with pytest.raises(MisconfigurationException) as error:
        trainer.fit(ShardedLoss(), loader())
    return str(error.value)


def test_a_loss_that_is_sharded_is_refused_with_the_remedy(pool):
    for message in pool.run(refuse_a_sharded_loss):
        assert 'a loss that is a DTensor. Use mode="grad"' in message


def test_a_gradient_that_is_spread_as_parts_of_a_sum_gets_the_penalty_once(pool):
    for weight, _ in pool.run(train_on_partial_gradients, "l2", "grad"):
        torch.testing.assert_close(weight, torch.full((2, 5), 0.5 - 0.1 * (1.0 + 0.2 * 0.5)))


def test_the_distance_from_optimality_is_of_all_parts_of_a_gradient(pool):
    for weight, distance in pool.run(train_on_partial_gradients, "l1", "proximal"):
        torch.testing.assert_close(weight, torch.full((2, 5), 0.5 - 0.1 * (1.0 + 0.1)))
        assert float(distance) == pytest.approx((1.0 + 0.1) / 0.1)


def written_by(folder):
    """Run on each rank: train with a TensorBoard logger; return the plans that this rank printed."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(rank_zero.__name__)
    logger.addHandler(handler)
    trainer = trainer_on("ddp", MAKERS["l1"](), max_epochs=1, logger=TensorBoardLogger(folder, version=0))
    trainer.fit(Module(), loader())
    logger.removeHandler(handler)
    return [message for message in messages if message.startswith("Regularization plan")]


def test_rank_zero_alone_prints_the_plan_and_writes_events(pool, tmp_path):
    first, second = pool.run(written_by, str(tmp_path))

    assert len(first) == 1
    assert not second
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
