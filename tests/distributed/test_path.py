"""The path of two ranks is the path of one process."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_reg import GroupLassoPenalty, RegularizationPath
from lightning_reg.functional.tensors.shards import whole
from tests.distributed.training import Module, half, trainer_on
from tests.models import loader, samples, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

# Columns: under FSDP2 each is spread over both ranks. Without the weights of the head, its bias soon is at its optimum.
PATHS = {
    "searched": ("network.head.weight", {"strengths": 3, "smallest": 0.1}),
    "given": ("network.hidden.weight", {"strengths": [0.1, 0.03, 0.01]}),
    # So tolerant that each strength ends after two epochs, and the last starts on the line through those before.
    "extrapolated": ("network.hidden.weight", {"strengths": [0.03, 0.02, 0.012], "tolerance": 1e3}),
}


def path_of(name):
    select, strengths = PATHS[name]
    penalty = GroupLassoPenalty(0.0, dim=1, mode="proximal", select=select)
    settings = {"epochs": 4, "tolerance": 0.3, "monitor": "val/loss", "rule": "one_se", "relaxed_epochs": 2}
    return RegularizationPath(penalty, **(settings | strengths))


def module_of(name):
    momentum = 0.5 if name == "extrapolated" else 0.0
    return Module(lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=momentum))


def told(path, trainer):
    result = path.result
    weights = [result.weights(index) for index in range(3)]
    scores = (*result.scores, result.relaxed_score)
    return result.strengths, scores, result.nonzeros, result.best, weights, trainer.global_step


def train(name, strategy):
    """Run on each rank: train on its half of every global batch of four, validate on half."""
    path = path_of(name)
    trainer, module = trainer_on(strategy, path, max_epochs=-1), module_of(name)
    trainer.fit(module, half(), half(samples(12)))
    # What a checkpoint has, and not only copies that FSDP2 made for validation.
    return *told(path, trainer), {key: whole(value).clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_take_the_path_of_one_process(pool, name, strategy):
    path, module = path_of(name), module_of(name)
    trainer = trainer_on(None, path, max_epochs=-1)
    # Halves of batches are what two ranks validate: of these is the standard error.
    trainer.fit(module, loader(), DataLoader(samples(12), batch_size=2))
    strengths, scores, nonzeros, best, weights, steps = told(path, trainer)

    first, second = pool.run(train, name, strategy)

    assert first[:4] == second[:4]
    torch.testing.assert_close(first[4], second[4], rtol=0, atol=0)
    assert first[0] == pytest.approx(strengths, rel=1e-4)
    assert first[1] == pytest.approx(scores, rel=1e-4)
    assert (first[2], first[3]) == (nonzeros, best)
    torch.testing.assert_close(first[4], weights, rtol=1e-3, atol=1e-5)
    if name != "searched":  # when a search ends may depend on rounding
        assert first[5] == steps
        assert nonzeros[0] != nonzeros[-1]
    assert_same_weights(first[6], weights_of(module), rtol=1e-3)
