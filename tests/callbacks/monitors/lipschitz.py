"""Networks that pass their input on, and the Jacobians of networks by autograd and SVD."""

import copy

import torch
from lightning.pytorch import Callback
from torch import nn

from tests.models import Regressor


class Passing(Regressor):
    """A module whose `forward` calls its network."""

    def __init__(self, network=None, **kwargs):
        super().__init__(**kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = network() if network else chain()

    def forward(self, inputs):
        return self.network(inputs)


def chain():
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 2))


def true_lower(network, inputs):
    """Return the largest singular value of the Jacobian over samples."""
    network = copy.deepcopy(network).double().eval()
    norms = []
    for row in inputs.double():
        matrix = torch.autograd.functional.jacobian(lambda point: network(point[None].clone())[0], row)
        norms.append(torch.linalg.svdvals(matrix.reshape(-1, row.numel()))[0].item())
    return max(norms)


class Recorder(Callback):
    """Keeps a copy of the network, and the batch, after every step."""

    def __init__(self):
        self.networks, self.batches = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.networks[step], self.batches[step] = copy.deepcopy(pl_module.network), batch
