"""The monitor on a CUDA device: the numbers of the CPU, and no waiting for the device while they are computed."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_reg import RegularizationMonitor
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.metrics import Sparsity, SpectralNorm, WeightNorm
from tests.event_files import histograms, scalars
from tests.metrics.layers import weights_by_name
from tests.models import Regressor, loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


def test_the_numbers_agree_with_numpy(trainer_of, tmp_path):
    module = Regressor()

    trainer_of(
        RegularizationMonitor(histograms=True), logger=TensorBoardLogger(tmp_path), accelerator="gpu", devices=1
    ).fit(module, loader())

    logged = scalars(tmp_path)
    for name, weight in weights_by_name(module.cpu()).items():
        assert logged[f"reg.weight_norm/{name}"][13] == pytest.approx(np.linalg.norm(weight), rel=1e-5)
        assert logged[f"reg.sparsity/{name}"][13] == 0
        assert histograms(tmp_path)[f"reg.weights/{name}"][13][:, 2].sum() == pytest.approx(weight.size)
        if weight.ndim == 2:
            assert logged[f"reg.spectral_norm/{name}"][13] == pytest.approx(np.linalg.norm(weight, 2), rel=1e-3)


@pytest.mark.parametrize(
    "make", [WeightNorm, lambda: Sparsity(0.1), lambda: Sparsity(dim=0), lambda: SpectralNorm(iterations=5)]
)
def test_a_statistic_is_computed_without_waiting(make):
    layers = [Layer(str(size), torch.randn(size, 3 * size, device="cuda")) for size in (8, 8, 500)]
    metric = make().to("cuda")
    metric.statistics(layers)  # kernels are loaded

    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.statistics(layers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
