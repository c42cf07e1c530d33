"""Networks that pass their input on, their Jacobians by autograd and SVD, and certificates of linear ones."""

import copy

import numpy as np
import torch
from lightning.pytorch import Callback
from scipy.spatial.distance import cdist
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
    # Reshapings end what is bounded together: the bound is the product of constants.
    activation = nn.Sequential(nn.GELU(), nn.Unflatten(1, (2, 4)), nn.Flatten())
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 2))


def true_lower(network, inputs):
    """Return the largest singular value of the Jacobian over samples."""
    network = copy.deepcopy(network).double().eval()
    norms = []
    for row in inputs.double():
        matrix = torch.autograd.functional.jacobian(lambda point: network(point[None].clone())[0], row)
        norms.append(torch.linalg.svdvals(matrix.reshape(-1, row.numel()))[0].item())
    return max(norms)


def certified_by_planes(weight, bias, samples, radii):
    """Return the share of samples that lie farther than each radius from every plane between a class and theirs."""
    rows, offsets = (tensor.detach().double().numpy() for tensor in (weight, bias))
    inputs, labels = (tensor.numpy() for tensor in samples.tensors)
    logits = inputs @ rows.T + offsets
    margins = np.take_along_axis(logits, labels[:, None], 1) - logits
    np.put_along_axis(margins, labels[:, None], np.inf, 1)
    distances = (margins / np.maximum(cdist(rows, rows)[labels], 1e-9)).min(1)
    return [np.mean(distances > radius) for radius in radii]


class Recorder(Callback):
    """Keeps a copy of the network, and the batch, after every step."""

    def __init__(self):
        self.networks, self.batches = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.networks[step], self.batches[step] = copy.deepcopy(pl_module.network), batch
