"""Training with the monitor ends in the same weights, bit for bit, and leaves the same module."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn.utils import parametrizations

from lightning_reg import RegularizationMonitor
from tests.models import Gan, Regressor, loader


class Noisy(Regressor):
    """With everything that a careless reader would disturb."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(
                parametrizations.spectral_norm(nn.Linear(5, 16)),
                nn.BatchNorm1d(16),
                nn.Dropout(0.3),
                nn.Unflatten(1, (4, 4)),
                parametrizations.weight_norm(nn.Conv1d(4, 4, 3)),
                nn.Flatten(),
                nn.Linear(8, 2),
            )


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (Noisy, {}),
        (Noisy, {"accumulate_grad_batches": 3}),
        (Noisy, {"log_every_n_steps": 5}),
        (Gan, {}),
        (Gan, {"log_every_n_steps": 5}),
    ],
)
def test_weights_buffers_and_random_numbers_are_the_same(trainer_of, tmp_path, make, settings):
    states = []
    for callbacks in ([], [RegularizationMonitor(histograms=True)]):
        module = make()
        modes = {name: part.training for name, part in module.named_modules()}
        torch.manual_seed(1)
        trainer_of(*callbacks, logger=TensorBoardLogger(tmp_path), **settings).fit(module, loader())
        assert {name: part.training for name, part in module.named_modules()} == modes
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
        states.append(module.state_dict() | {"random": torch.get_rng_state()})

    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
