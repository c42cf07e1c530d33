"""Penalties keep their promise beside `torch.compile`, and compile nothing again."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_reg import Linear
from tests.models import Silent, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, train_by_hand


class CompiledGraphs(Callback):
    """Counts the graphs compiled up to the end of each epoch."""

    def __init__(self):
        self.counts = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@both_modes
@pytest.mark.parametrize("part", ["module", "submodule"])
def test_compiled_models_train_to_the_same_weights_and_are_compiled_once(trainer_of, mode, part):
    make, term = PENALTIES["elastic_net"]
    module = Silent()
    compiled = module
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if part == "module":
        compiled = torch.compile(module, backend="aot_eager")
    else:
        module.network = torch.compile(module.network, backend="aot_eager")
    graphs = CompiledGraphs()
    penalty = make(mode=mode, select="network.*.weight", schedule=Linear(0.0, 1.0, 10))

    trainer_of(penalty, graphs).fit(compiled, loader())

    by_hand = train_by_hand(Silent(), loader(), term, factor=lambda step: min(step / 10, 1.0))
    actual = {name.replace("_orig_mod.", ""): weight for name, weight in weights_of(module).items()}
    assert_same_weights(actual, weights_of(by_hand))
    assert graphs.counts[0] == graphs.counts[1] > 0
