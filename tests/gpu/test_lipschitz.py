"""The Lipschitz monitor on a CUDA device: the Jacobians of the CPU, and nothing changed."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_reg import LipschitzMonitor
from lightning_reg.functional import jacobian_norm
from tests.callbacks.monitors.lipschitz import Passing, true_lower
from tests.event_files import scalars
from tests.functional.lipschitz.test_jacobian import Recurrent
from tests.models import loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


NETWORKS = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True)), (2, 6, 6)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "recurrent, which cuDNN differentiates in training only": (Recurrent, (6, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_jacobians_agree_with_the_cpu(name):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network, x = make(), torch.randn(4, *shape)
    before = torch.cuda.get_rng_state()

    norms = jacobian_norm(network.cuda(), x.cuda(), iterations=40)

    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert norms.max().item() == pytest.approx(true_lower(network.cpu(), x), rel=2e-3)  # TF32


class Dropping(Passing):
    def __init__(self):
        super().__init__(lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 2)))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_bounds_agree_with_float32_and_nothing_is_changed(trainer_of, tmp_path, precision):
    states = []
    for monitors in ([], [LipschitzMonitor(every_n_steps=1)]):
        module = Dropping()
        torch.manual_seed(1)
        trainer = trainer_of(
            *monitors, logger=TensorBoardLogger(tmp_path), accelerator="gpu", devices=1, precision=precision
        )
        trainer.fit(module, loader())
        states.append({name: tensor.cpu() for name, tensor in module.state_dict().items()})

    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    logged = scalars(tmp_path)
    lower = true_lower(module.network.cpu(), loader().dataset.tensors[0][-4:])
    assert logged["reg/lipschitz_lower"][13] == pytest.approx(lower, rel=2e-3)
    assert logged["reg/lipschitz_gap"][13] >= 1
