"""The monitor writes the numbers that NumPy and SciPy find in the weights at that moment."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn.utils import parametrizations, prune
from torchmetrics import MeanMetric, Metric

from lightning_reg import L1Penalty, RegularizationMonitor, Select
from lightning_reg.metrics import Sparsity, WeightNorm
from tests.event_files import histograms, scalars
from tests.functional.spectral.responses import sup_norm
from tests.metrics.layers import layers_of_every_kind, weights_by_name
from tests.metrics.test_spectral_norm import CONVOLUTIONS
from tests.models import Regressor, loader


class EveryLayer(LightningModule):
    """Trains layers of every kind, each on its own noise."""

    def __init__(self, *, automatic: bool = True) -> None:
        super().__init__()
        self.layers = layers_of_every_kind()
        self.automatic_optimization = automatic

    def loss(self) -> torch.Tensor:
        layers = self.layers
        embedded = layers["embedding"](torch.arange(5)).unsqueeze(1)
        with torch.autocast("cpu", enabled=False):  # some CPUs have no LSTM in bfloat16
            hidden, _ = layers["lstm"](embedded)
        attended, _ = layers["attention"](hidden, hidden, layers["norm"](hidden))
        outputs = [layers["head"](embedded), attended, layers["conv1"](attended.permute(1, 2, 0))]
        outputs += [layers["conv2"](torch.ones(1, 2, 7, 7)), layers["conv3"](torch.ones(1, 1, 4, 4, 4))]
        outputs += [layers["up"](torch.ones(1, 3, 4, 4)), layers["grouped"](torch.ones(1, 4, 5, 5))]
        return sum((output - 1).square().mean() for output in outputs)

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.loss()
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss())
            optimizer.step()
        return None

    def configure_optimizers(self):
        weights = list(self.layers.parameters())
        if self.automatic_optimization:
            return torch.optim.Adam(weights, lr=0.02)
        return [torch.optim.Adam(weights[:4], lr=0.02), torch.optim.SGD(weights[4:], lr=0.01)]


class Recorder(Callback):
    """Keeps the weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        arrays = weights_by_name(pl_module)
        self.weights[trainer.fit_loop.epoch_loop._batches_that_stepped] = {n: a.copy() for n, a in arrays.items()}


@pytest.mark.parametrize(
    ("automatic", "settings"),
    [(True, {}), (False, {}), (True, {"accumulate_grad_batches": 3}), (True, {"precision": "bf16-mixed"})],
    ids=["automatic", "manual", "accumulation", "mixed precision"],
)
def test_every_kind_of_layer_and_of_training_step(trainer_of, tmp_path, automatic, settings):
    recorder, module = Recorder(), EveryLayer(automatic=automatic)
    trainer = trainer_of(
        recorder, RegularizationMonitor(per_layer=True), logger=TensorBoardLogger(tmp_path), **settings
    )

    trainer.fit(module, range(4))

    logged = scalars(tmp_path)
    names = [f"layers.{name}" for name in weights_by_name(module.layers)]
    assert {tag for tag in logged if tag.startswith("reg.")} == {
        f"reg.{metric}/{name}" for metric in ("weight_norm", "sparsity", "spectral_norm") for name in names
    }
    steps = list(logged["reg/weight_norm"])
    assert steps == list(recorder.weights)
    for step, weights in recorder.weights.items():
        norms = {name: np.linalg.norm(weight) for name, weight in weights.items()}
        for name in names:
            assert logged[f"reg.weight_norm/{name}"][step] == pytest.approx(norms[name], rel=1e-5)
            assert logged[f"reg.sparsity/{name}"][step] == (weights[name] == 0).mean()
            if name.split(".")[1] not in CONVOLUTIONS:
                largest = np.linalg.norm(weights[name], 2)
                assert logged[f"reg.spectral_norm/{name}"][step] == pytest.approx(largest, rel=1e-3)
        each = list(norms.values())
        assert logged["reg/weight_norm"][step] == pytest.approx(np.linalg.norm(each), rel=1e-5)
        for statistic in (np.min, np.median, np.max):
            tag = f"reg/weight_norm_{statistic.__name__.removeprefix('a')}"
            assert logged[tag][step] == pytest.approx(statistic(each), rel=1e-5)
        assert logged["reg/spectral_norm"][step] == logged["reg/spectral_norm_max"][step]
    for name in CONVOLUTIONS:
        truth = sup_norm(module.layers[name])  # for images of any size
        assert 0.98 * truth <= logged[f"reg.spectral_norm/layers.{name}"][steps[-1]] <= truth * (1 + 1e-4)


def test_a_histogram_over_the_layers_counts_each_layer_once(fit, tmp_path):
    module = Regressor()

    fit(RegularizationMonitor(per_layer=True), module=module, logger=TensorBoardLogger(tmp_path))

    bars = histograms(tmp_path)["reg/weight_norm_over_layers"]
    norms = sorted(np.linalg.norm(weight) for weight in weights_by_name(module).values())
    last = bars[max(bars)]
    assert last[:, 2].sum() == len(norms) == 3
    assert last[0, 0] == pytest.approx(norms[0], rel=1e-5)
    assert last[-1, 1] == pytest.approx(norms[-1], rel=1e-5)


@pytest.mark.parametrize("every_n_epochs", [1, 2])
def test_histograms_of_weights_count_every_entry_at_the_end_of_epochs(fit, tmp_path, every_n_epochs):
    module = Regressor()

    fit(
        RegularizationMonitor(histograms=True, every_n_epochs=every_n_epochs, select="*.encoder.*"),
        module=module,
        logger=TensorBoardLogger(tmp_path),
        max_epochs=4,
    )

    bars = histograms(tmp_path)
    assert [tag for tag in bars if tag.startswith("reg.weights/")] == ["reg.weights/network.encoder"]
    steps = bars["reg.weights/network.encoder"]
    assert list(steps) == [7 * epoch - 1 for epoch in range(every_n_epochs, 5, every_n_epochs)]
    weight = module.network.encoder.weight.detach().numpy()
    expected, edges = np.histogram(weight, bins=64)
    # TensorBoard shows 30 bars of these 64.
    assert steps[27][:, 2].sum() == pytest.approx(expected.sum())
    assert steps[27][0, 0] == pytest.approx(edges[0], rel=1e-5)
    assert steps[27][-1, 1] == pytest.approx(edges[-1], rel=1e-5)


def test_nan_and_infinite_weights_are_logged_as_such_and_training_goes_on(fit, tmp_path):
    class Diverged(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                with torch.no_grad():
                    self.network.encoder.weight[0, 0] = torch.nan
                    self.network.head.weight[0, 0] = torch.inf

        def training_step(self, batch, batch_idx):
            return self.network.conv.weight.square().sum()

    fit(
        RegularizationMonitor(histograms=True, per_layer=True),
        module=Diverged(),
        logger=TensorBoardLogger(tmp_path),
        max_epochs=1,
    )

    logged = scalars(tmp_path)
    assert np.isfinite(logged["reg/weight_norm"][2])
    for step in (3, 6):
        assert np.isnan(logged["reg.weight_norm/network.encoder"][step])
        assert np.isnan(logged["reg.spectral_norm/network.encoder"][step])
        assert np.isinf(logged["reg.weight_norm/network.head"][step])
        assert np.isnan(logged["reg/weight_norm"][step])
        assert np.isnan(logged["reg/weight_norm_median"][step])
        assert np.isfinite(logged["reg.weight_norm/network.conv"][step])
        assert logged["reg/sparsity"][step] == 0
    assert histograms(tmp_path)["reg.weights/network.encoder"][6][:, 2].sum() == 34  # the finite ones of 35


def test_normalized_weight_normed_and_pruned_layers_are_measured_as_forward_uses_them(fit, tmp_path):
    module = Regressor()
    parametrizations.spectral_norm(module.network.encoder)
    parametrizations.weight_norm(module.network.conv)
    prune.random_unstructured(module.network.head, "weight", amount=0.5)

    fit(RegularizationMonitor(per_layer=True), module=module, logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = scalars(tmp_path)
    module.eval().network(torch.ones(1, 5))  # computes the pruned weight anew
    for name in ("encoder", "conv", "head"):
        weight = getattr(module.network, name).weight.detach().double().numpy()
        last = max(logged[f"reg.weight_norm/network.{name}"])
        assert logged[f"reg.weight_norm/network.{name}"][last] == pytest.approx(np.linalg.norm(weight), rel=1e-5)
        assert logged[f"reg.sparsity/network.{name}"][last] == pytest.approx((weight == 0).mean())
    assert logged["reg.spectral_norm/network.encoder"][6] == pytest.approx(1, abs=0.02)
    assert logged["reg.sparsity/network.head"][6] == 0.5


def test_frozen_weights_are_left_out_for_as_long_as_they_are_frozen(fit, tmp_path):
    class Unfreezing(Regressor):
        def on_train_epoch_start(self):
            self.network.head.requires_grad_(self.current_epoch == 1)

    fit(RegularizationMonitor(per_layer=True), module=Unfreezing(), logger=TensorBoardLogger(tmp_path))

    logged = scalars(tmp_path)
    assert list(logged["reg.weight_norm/network.encoder"]) == list(range(14))
    assert list(logged["reg.weight_norm/network.head"]) == list(range(7, 14))


def test_a_model_that_is_frozen_as_a_whole_logs_nothing(fit, tmp_path):
    class Frozen(Regressor):
        def on_train_start(self):
            for weight in (self.network.encoder.weight, self.network.conv.weight, self.network.head.weight):
                weight.requires_grad_(False)

    fit(RegularizationMonitor(per_layer=True), module=Frozen(), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    assert not [tag for tag in scalars(tmp_path) if tag.startswith("reg")]


def test_any_selection_and_metrics_of_the_users_own(fit, tmp_path):
    class Largest(Metric):
        full_state_update = False

        def __init__(self):
            super().__init__()
            self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")

        def update(self, weights):
            self.largest = torch.maximum(self.largest, weights.abs().max())

        def compute(self):
            return self.largest

    module, own, mean = Regressor(), Largest(), MeanMetric()
    metrics = {"largest": own, "mean": mean, "l1": WeightNorm(1), "units": Sparsity(1e9, dim=0)}

    fit(
        RegularizationMonitor(
            per_layer=True, metrics=metrics, select=Select(["*.encoder.*", "*.norm.weight"], min_ndim=1)
        ),
        module=module,
        logger=TensorBoardLogger(tmp_path),
    )

    logged = scalars(tmp_path)
    arrays = {
        name: getattr(module.network, part).get_parameter(leaf).detach().numpy()
        for name, part, leaf in (
            ("network.encoder", "encoder", "weight"),
            ("network.encoder.bias", "encoder", "bias"),
            ("network.norm", "norm", "weight"),
        )
    }
    assert {tag.split("/", 1)[1] for tag in logged if tag.startswith("reg.")} == set(arrays)
    for name, array in arrays.items():
        assert logged[f"reg.largest/{name}"][13] == pytest.approx(abs(array).max())
        assert logged[f"reg.mean/{name}"][13] == pytest.approx(array.mean(), rel=1e-4, abs=1e-6)
        assert logged[f"reg.l1/{name}"][13] == pytest.approx(abs(array).sum(), rel=1e-5)
        assert logged[f"reg.units/{name}"][13] == 1
    assert logged["reg/largest"][13] == pytest.approx(max(abs(array).max() for array in arrays.values()))
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    assert logged["reg/mean"][13] == pytest.approx(everything.mean(), rel=1e-4, abs=1e-6)
    assert own.largest == 0  # the user's objects are left alone
    assert mean.update_count == 0


def test_weights_of_exact_zeros_show(fit, tmp_path):
    class Thinning(Regressor):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            with torch.no_grad():
                weight = self.network.encoder.weight
                weight[weight.abs() < 0.2] = 0

    module = Thinning()
    fit(L1Penalty(0.01), RegularizationMonitor(per_layer=True), module=module, logger=TensorBoardLogger(tmp_path))

    share = (module.network.encoder.weight == 0).double().mean().item()
    assert 0 < share == pytest.approx(scalars(tmp_path)["reg.sparsity/network.encoder"][13])


def test_the_monitor_sees_the_weights_that_a_loader_of_one_batch_trains(fit, tmp_path):
    fit(RegularizationMonitor(per_layer=True), data=loader(4), max_epochs=1, logger=TensorBoardLogger(tmp_path))

    assert list(scalars(tmp_path)["reg/weight_norm"]) == [0]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_under_the_old_weight_norm_the_weight_in_forward_is_written(trainer_of, tmp_path):
    module = Regressor()
    torch.nn.utils.weight_norm(module.network.encoder)

    trainer_of(RegularizationMonitor(per_layer=True), max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(
        module, loader()
    )

    encoder = module.network.encoder
    weight = (encoder.weight_g * encoder.weight_v / encoder.weight_v.norm(dim=1, keepdim=True)).detach().numpy()
    logged = scalars(tmp_path)
    assert list(logged["reg.weight_norm/network.encoder"].values())[-1] == pytest.approx(
        np.linalg.norm(weight), rel=1e-5
    )
    assert not any("weight_" in tag.rpartition("/")[2] for tag in logged if tag.startswith("reg."))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_layer_without_entries_does_not_spoil_the_summaries(trainer_of, tmp_path):
    module = Regressor()
    module.network.none = torch.nn.Linear(5, 0)

    trainer_of(RegularizationMonitor(per_layer=True), max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(
        module, loader()
    )

    logged = scalars(tmp_path)
    written = {tag.rpartition("/")[2] for tag in logged if tag.startswith("reg.sparsity/")}
    assert written == {"network.encoder", "network.conv", "network.head"}
    for tag in ("sparsity", "sparsity_max", "weight_norm_min", "spectral_norm_median"):
        assert all(np.isfinite(list(logged[f"reg/{tag}"].values())))
    assert min(logged["reg/weight_norm_min"].values()) > 0
