"""All that drops in the models of transformers is set, and what is random besides is told: counted in torch itself."""

import random
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from lightning_reg import DropoutScheduler, Piecewise
from tests.callbacks.dropout import architectures

RATE = 0.123


def tensors(outputs) -> list[Tensor]:
    return [value for value in outputs.values() if isinstance(value, Tensor) and value.is_floating_point()]


class Module(LightningModule):
    def __init__(self, network, inputs):
        super().__init__()
        self.network = network
        self.inputs = inputs

    def training_step(self, batch, batch_idx):
        return sum(output.float().mean() for output in tensors(self.network(**self.inputs)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def constant(number):
    def draw(*size, **settings):
        settings.pop("generator", None)
        return torch.full(size[0] if size and not isinstance(size[0], int) else size, number, **settings)

    return draw


def are_alike(one, other):
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


class Watch(Callback):
    """In the first step, whether passes differ; in the second one, the rates of all that drops."""

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        network, inputs = pl_module.network, pl_module.inputs
        if batch_idx == 0:

            def outputs(seed, draw=torch.rand):
                torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
                with mock.patch.object(torch, "rand", draw):
                    return [output.clone() for output in tensors(network(**inputs))]

            # Layers are skipped with probability 0.05 in some models, by `torch.rand([])`.
            pairs = (outputs(5), outputs(6)), (outputs(5, constant(0.0)), outputs(5, constant(0.999)))
            self.is_random = not all(are_alike(*each) for pair in pairs for each in zip(*pair, strict=True))
        else:
            with architectures.counted(network) as rates:
                network(**inputs)
            self.rates = rates


@pytest.mark.sweep(share=0.04)
@pytest.mark.parametrize("name", architectures.NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_call_of_dropout_is_reached_and_other_randomness_is_named(trainer_of, name, recwarn):
    network = architectures.tiny(name, 0.3)
    inputs = architectures.inputs_of(network)
    with architectures.counted(network) as made, torch.no_grad():
        network(**inputs)
    watch = Watch()

    # 0 in the first step, to be found out; a rate that nobody else has in the second.
    scheduler = DropoutScheduler(Piecewise((0.0, RATE), (1,)))
    trainer_of(scheduler, watch, max_steps=2, max_epochs=1).fit(Module(network, inputs), [0, 0])

    told = [str(warning.message) for warning in recwarn if "schedule" in str(warning.message)]
    assert made
    assert watch.rates
    assert set(watch.rates) == {RATE} or told
    assert not watch.is_random or told
    assert not told or watch.is_random or set(watch.rates) != {RATE}
