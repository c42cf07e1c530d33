"""The penalty on activations on two ranks: a mean over the global batch."""

import pytest
import torch

from lightning_reg import ActivityPenalty, Linear
from tests.callbacks.penalties.test_activity import size, train_with_activity
from tests.distributed.test_spectral import Parallel
from tests.distributed.training import Module, half, trainer_on
from tests.models import KeepWeights, loader, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed


def forward(network, inputs):
    """Return what the network returns, and what two of its layers do."""
    encoded = network.encoder(inputs)
    hidden = network.hidden(torch.tanh(encoded))
    return network.head(network.bottleneck(torch.tanh(hidden))), (encoded, hidden)


def by_hand(strategy="ddp", **settings):
    return train_with_activity(
        Module(unused="unused" in strategy),
        lambda outputs: sum(map(size, outputs)),
        factor=lambda step: 1 - 0.5 * min(step / 10, 1),
        forward=forward,
        **settings,
    )


def train(strategy, settings):
    """Run on each rank: train on its half of every global batch of four; return weights and logged values."""
    keep = KeepWeights()
    penalty = ActivityPenalty(0.1, select=["network.encoder", "network.hidden"], schedule=Linear(1.0, 0.5, 10))
    trainer = trainer_on(strategy, penalty, keep, **settings)
    trainer.fit(Module(unused="unused" in strategy), half(), loader())
    return keep.weights, trainer.callback_metrics["reg/penalty/activity"].item()


# A static graph and accumulation do not go together in torch.
@pytest.mark.parametrize(
    ("strategy", "accumulate"),
    [("ddp", 1), ("ddp", 3), ("ddp_find_unused_parameters_true", 3), ("static unused", 1), ("fsdp2", 3), ("fsdp1", 3)],
)
def test_two_ranks_equal_one_process(pool, strategy, accumulate):
    ranks = pool.run(train, strategy, {"accumulate_grad_batches": accumulate})

    expected, terms = by_hand(strategy, accumulate=accumulate)
    for weights, logged in ranks:
        assert_same_weights(weights, expected)
        assert logged == pytest.approx(terms[-1], rel=1e-5)  # the last window has one batch


def test_fp16_under_ddp(pool):
    ranks = pool.run(train, "ddp", {"fp16": True})

    expected, _ = by_hand(autocast=torch.float16)
    for weights, _ in ranks:
        # Halves of a batch round differently in fp16; without the scale, the penalty would be 1000 times off.
        assert_same_weights(weights, expected, rtol=1e-3)


def train_in_parts():
    """Run on each rank: train with layers split in two, by columns and by rows."""
    keep = KeepWeights()
    penalty = ActivityPenalty(0.1, select=["network.0", "network.2"])
    trainer_on("tensor parallel", penalty, keep, max_epochs=3).fit(Parallel(), loader(dtype=torch.float64))
    return keep.weights


def test_tensor_parallelism_trains_as_one_process_does(pool):
    for weights in pool.run(train_in_parts):
        module = Parallel()
        optimizer = module.configure_optimizers()
        for inputs, targets in [*loader(dtype=torch.float64)] * 3:
            hidden = module.network[0](inputs)
            outputs = module.network[2](hidden.tanh())
            term = (hidden.abs().sum() + outputs.abs().sum()) / len(inputs)
            optimizer.zero_grad()
            (torch.nn.functional.mse_loss(outputs, targets) + 0.1 * term).backward()
            optimizer.step()
        assert_same_weights(weights, weights_of(module))
