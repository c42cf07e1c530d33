"""Training with the Lipschitz monitor ends in the same weights, bit for bit, and leaves the same module."""

import copy

import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrizations

from lightning_reg import LipschitzMonitor, MonteCarloDropout, SpectralNormalization
from tests.callbacks.monitors.lipschitz import Passing
from tests.models import Gan, loader


class Noise(nn.Module):
    """Draws random numbers in evaluation, too."""

    def forward(self, inputs):
        return inputs + 0.1 * torch.randn_like(inputs)


def noisy():
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(5, 16)),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        Noise(),
        nn.Unflatten(1, (4, 4)),
        parametrizations.weight_norm(nn.Conv1d(4, 4, 3)),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


class Noisy(Passing):
    """With everything that a careless reader would disturb."""

    def __init__(self):
        super().__init__(noisy)
        self.gradients = []

    def on_train_start(self):
        self.network[3].train(False)  # the user's own mixture of modes

    def on_before_zero_grad(self, optimizer):
        self.gradients += [parameter.grad.clone() for parameter in self.parameters() if parameter.grad is not None]


def fp16():
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]


@pytest.mark.filterwarnings("ignore:LipschitzMonitor knows no upper bound")  # of noise
@pytest.mark.parametrize(
    ("make", "others", "settings"),
    [
        (Noisy, list, {}),
        (Noisy, list, {"accumulate_grad_batches": 3}),
        (Noisy, list, {"log_every_n_steps": 5}),
        (Noisy, list, {"plugins": fp16}),
        (Noisy, lambda: [lightning_callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1)], {}),
        (Passing, lambda: [SpectralNormalization(2.0)], {}),
        (Gan, list, {}),
    ],
    ids=["plain", "accumulation", "rare logging", "fp16", "averaging", "normalization", "manual"],
)
def test_weights_buffers_gradients_and_random_numbers_are_the_same(trainer_of, tmp_path, make, others, settings):
    states = []
    target = "generator" if make is Gan else None
    for monitors in ([], [LipschitzMonitor(target=target, every_n_steps=1)]):
        module = make()
        torch.manual_seed(1)
        made = {name: value() if callable(value) else value for name, value in settings.items()}
        trainer_of(*others(), *monitors, logger=TensorBoardLogger(tmp_path), **made).fit(module, loader())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
        state = dict(module.state_dict()) | {"random": torch.get_rng_state()}
        states.append((state, getattr(module, "gradients", []), [part.training for part in module.modules()]))

    torch.testing.assert_close(states[1][:2], states[0][:2], rtol=0, atol=0)
    assert states[1][2] == states[0][2]


@pytest.mark.skipif(not hasattr(lightning_callbacks, "EMAWeightAveraging"), reason="came with Lightning 2.6")
@pytest.mark.filterwarnings("ignore:LipschitzMonitor knows no upper bound")
def test_an_average_of_weights_is_the_same(trainer_of, tmp_path):
    states = []
    for monitors in ([], [LipschitzMonitor(every_n_steps=1)]):
        module = Noisy()
        torch.manual_seed(1)
        average = lightning_callbacks.EMAWeightAveraging(decay=0.9)
        trainer_of(average, *monitors, logger=TensorBoardLogger(tmp_path)).fit(module, loader(), loader())
        states.append(copy.deepcopy(dict(module.state_dict())))

    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_an_error_in_training_leaves_the_flags_as_they_were(trainer_of, tmp_path):
    class Failing(Passing):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 3:
                raise ZeroDivisionError

    monitor, module = LipschitzMonitor(every_n_steps=1), Failing()
    with pytest.raises(ZeroDivisionError):
        trainer_of(monitor, logger=TensorBoardLogger(tmp_path)).fit(module, loader())

    assert all(part.training for part in module.modules())
    trainer_of(monitor, logger=TensorBoardLogger(tmp_path)).fit(Passing(), loader())


def test_monte_carlo_dropout_in_validation_runs_is_not_touched(trainer_of, tmp_path):
    class Dropping(Passing):
        def __init__(self):
            super().__init__(lambda: nn.Sequential(nn.Linear(5, 9), nn.Dropout(0.5), nn.Linear(9, 2)))

    predictions = []
    for monitors in ([], [LipschitzMonitor(every_n_steps=1)]):
        module = Dropping()
        trainer = trainer_of(MonteCarloDropout(5, seed=1), *monitors, logger=TensorBoardLogger(tmp_path))
        torch.manual_seed(1)
        trainer.fit(module, loader())
        predictions.append([batch.mean for batch in trainer.predict(module, loader())])

    torch.testing.assert_close(predictions[1], predictions[0], rtol=0, atol=0)
