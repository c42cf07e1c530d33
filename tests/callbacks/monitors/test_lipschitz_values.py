"""The Lipschitz monitor writes the Jacobians and norms that autograd and NumPy find at that moment."""

import math
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, Dataset

from lightning_reg import LipschitzMonitor, SpectralConstraint, register_lipschitz_rule
from lightning_reg.callbacks.monitors import lipschitz_run
from lightning_reg.functional.lipschitz import budget as lipschitz_budget
from tests.callbacks.monitors.lipschitz import Passing, Recorder, true_lower
from tests.event_files import scalars
from tests.models import Gan, Regressor, loader, samples

GELU = 1.128905  # its largest slope
EVERY = {"every_n_steps": 1}


def sigma(layer):
    return np.linalg.norm(layer.weight.detach().float().numpy(), 2).item()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]},
    ],
    ids=["plain", "accumulation", "bf16", "fp16"],
)
def test_bounds_belong_to_the_weights_after_the_step_on_the_batch_of_the_step(fit, tmp_path, settings):
    recorder = Recorder()

    fit(recorder, LipschitzMonitor(**EVERY), module=Passing(), logger=TensorBoardLogger(tmp_path), **settings)

    logged = scalars(tmp_path)
    steps = list(logged["train/loss"])
    assert list(logged["reg/lipschitz_lower"]) == steps
    per_epoch = len(steps) // 2
    upper_steps = [0, per_epoch - 1, 2 * per_epoch - 1]
    for step in steps:
        lower = true_lower(recorder.networks[step], recorder.batches[step][0])
        assert logged["reg/lipschitz_lower"][step] == pytest.approx(lower, rel=1e-5)
    for tag in ("upper", "log10", "gap"):
        assert list(logged[f"reg/lipschitz_{tag}"]) == upper_steps
    for step in upper_steps:
        first, last = sigma(recorder.networks[step][0]), sigma(recorder.networks[step][2])
        upper = first * GELU * last
        assert logged["reg/lipschitz_upper"][step] == pytest.approx(upper, rel=1e-4)
        assert logged["reg/lipschitz_log10"][step] == pytest.approx(math.log10(upper), abs=1e-4)
        assert logged["reg/lipschitz_gap"][step] == pytest.approx(upper / logged["reg/lipschitz_lower"][step], rel=1e-4)
        assert logged["reg/lipschitz_gap"][step] >= 1
        assert logged["reg.lipschitz/network.0"][step] == pytest.approx(first, rel=1e-4)
        assert logged["reg.lipschitz/network.2"][step] == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("count", [1, 3, 100])
def test_as_many_samples_as_asked_for_are_looked_at(fit, tmp_path, count):
    recorder = Recorder()

    fit(recorder, LipschitzMonitor(samples=count, **EVERY), module=Passing(), logger=TensorBoardLogger(tmp_path))

    for step, value in scalars(tmp_path)["reg/lipschitz_lower"].items():
        inputs = recorder.batches[step][0][:count]
        assert value == pytest.approx(true_lower(recorder.networks[step], inputs), rel=1e-5)


def normalized_chain():
    return nn.Sequential(
        nn.Linear(5, 12),
        nn.BatchNorm1d(12),
        nn.Dropout(0.9),
        nn.ReLU(inplace=True),
        parametrizations.spectral_norm(nn.Linear(12, 6)),
        nn.GELU(),
        parametrizations.weight_norm(nn.Linear(6, 2)),
    )


def test_the_network_is_looked_at_as_it_is_in_evaluation(fit, tmp_path):
    recorder = Recorder()
    recorder.on_train_batch_end = lambda *args: None  # parametrized modules can't be copied in training

    module = Passing(normalized_chain)
    fit(LipschitzMonitor(**EVERY), module=module, logger=TensorBoardLogger(tmp_path))

    lower = true_lower_of_last_batch(module)
    assert scalars(tmp_path)["reg/lipschitz_lower"][13] == pytest.approx(lower, rel=1e-4)
    assert scalars(tmp_path)["reg/lipschitz_upper"][13] >= lower


def true_lower_of_last_batch(module):
    (*_, (inputs, _)) = loader()
    norms = []
    for row in inputs:
        matrix = torch.autograd.functional.jacobian(lambda point: module.eval().network(point[None])[0], row)
        norms.append(torch.linalg.svdvals(matrix)[0].item())
    return max(norms)


def test_pruned_weights_count_as_forward_uses_them(fit, tmp_path):
    module = Passing()
    prune.random_unstructured(module.network[0], "weight", amount=0.5)

    fit(LipschitzMonitor(**EVERY), module=module, logger=TensorBoardLogger(tmp_path))

    assert scalars(tmp_path)["reg/lipschitz_lower"][13] == pytest.approx(true_lower_of_last_batch(module), rel=1e-4)


def test_a_chain_under_the_spectral_constraint_never_stretches_to_the_end_of_training(fit, tmp_path):
    def adam(parameters):
        return torch.optim.Adam(parameters, lr=0.05)

    module = Passing(
        lambda: nn.Sequential(
            nn.Linear(5, 16), nn.ReLU(), nn.Unflatten(1, (2, 8)), nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(),
            nn.Flatten(), nn.Linear(32, 2),
        ),
        optimizer=adam,
    )  # fmt: skip

    fit(
        SpectralConstraint(1.0),
        LipschitzMonitor(**EVERY),
        module=module,
        logger=TensorBoardLogger(tmp_path),
        max_epochs=6,
        data=loader(),
    )

    logged = scalars(tmp_path)
    assert list(logged["reg/lipschitz_upper"]) == [0, 6, 13, 20, 27, 34, 41]
    assert max(logged["reg/lipschitz_upper"].values()) <= 1.0001
    assert min(logged["reg/lipschitz_upper"].values()) > 0.5
    assert max(logged["reg/lipschitz_lower"].values()) <= 1.0001


class Batches(Dataset):
    """Samples of any structure, made of five inputs and two targets."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.make(*samples(8)[index])


Pair = namedtuple("Pair", "number inputs targets")


@dataclass
class Record:
    inputs: torch.Tensor
    targets: torch.Tensor


class Anything(Passing):
    """Takes whatever batch it is told to take apart."""

    def __init__(self, unpack):
        super().__init__()
        self.unpack = unpack

    def training_step(self, batch, batch_idx):
        return super().training_step(self.unpack(batch), batch_idx)


@pytest.mark.parametrize(
    ("make", "unpack"),
    [
        (lambda x, y: x, lambda batch: (batch, batch[:, :2])),
        (lambda x, y: [x, y], lambda batch: batch),
        (lambda x, y: {"index": 1, "data": {"x": x, "y": y}}, lambda batch: batch["data"].values()),
        (lambda x, y: Pair(torch.tensor(3), x, y), lambda batch: batch[1:]),
    ],
    ids=["a tensor", "a list", "dictionaries", "a named tuple"],
)
def test_the_first_tensor_of_numbers_in_a_batch_is_the_input(fit, tmp_path, make, unpack):
    module = Anything(unpack)
    data = DataLoader(Batches(make), batch_size=8)

    fit(LipschitzMonitor(), module=module, data=data, logger=TensorBoardLogger(tmp_path))

    lower = true_lower(module.network, torch.stack([samples(8)[i][0] for i in range(8)]))
    assert scalars(tmp_path)["reg/lipschitz_lower"][1] == pytest.approx(lower, rel=1e-5)


def test_a_dataclass_as_a_batch(fit, tmp_path):
    module = Anything(lambda batch: (batch.inputs, batch.targets))
    data = DataLoader(
        samples(8), batch_size=8, collate_fn=lambda rows: Record(*map(torch.stack, zip(*rows, strict=True)))
    )

    fit(LipschitzMonitor(), module=module, data=data, logger=TensorBoardLogger(tmp_path))

    assert scalars(tmp_path)["reg/lipschitz_lower"][1] == pytest.approx(
        true_lower(module.network, samples(8).tensors[0]), rel=1e-5
    )


def second(batch):
    return batch[1]


def test_two_networks_of_a_gan_are_looked_at_each_on_its_own_inputs(fit, tmp_path):
    module = Gan()

    fit(
        LipschitzMonitor(target="generator", **EVERY),
        LipschitzMonitor(target="critic", input_transform=second, **EVERY),
        module=module,
        logger=TensorBoardLogger(tmp_path),
    )

    logged = scalars(tmp_path)
    (*_, (inputs, targets)) = loader()
    assert list(logged["reg/lipschitz_lower/critic"]) == list(range(14))
    for name, data in (("generator", inputs), ("critic", targets)):
        lower = true_lower(getattr(module, name), data)
        assert logged[f"reg/lipschitz_lower/{name}"][13] == pytest.approx(lower, rel=1e-5)
        assert logged[f"reg/lipschitz_upper/{name}"][13] >= lower
        assert {f"reg.lipschitz/{name}.0", f"reg.lipschitz/{name}.2"} <= logged.keys()


class Wide(nn.Module):
    """Too many inputs and outputs for the whole Jacobian."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(40, 40)

    def forward(self, inputs):
        return self.layer(inputs)


class Features(Regressor):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), Wide(), nn.Linear(40, 2))


def repeated(batch):
    return batch[0].repeat(1, 8)


def test_a_submodule_with_many_outputs_is_estimated_from_below(fit, tmp_path):
    module = Features()

    fit(
        LipschitzMonitor(target="network.2", input_transform=repeated),
        module=module,
        logger=TensorBoardLogger(tmp_path),
    )

    logged, truth = scalars(tmp_path), sigma(module.network[2].layer)
    assert 0.85 * truth <= logged["reg/lipschitz_lower"][13] <= truth * (1 + 1e-5)
    assert logged["reg/lipschitz_upper"][13] == pytest.approx(truth, rel=1e-4)
    assert logged["reg.lipschitz/network.2.layer"][13] == pytest.approx(truth, rel=1e-4)


def test_names_are_the_users_under_torch_compile(fit, tmp_path):
    module = Passing()
    module.network = torch.compile(module.network, backend="eager")

    fit(
        LipschitzMonitor(target="network"),
        LipschitzMonitor(target="network.0"),
        module=module,
        logger=TensorBoardLogger(tmp_path),
    )

    logged = scalars(tmp_path)
    layers = module.network._orig_mod
    assert logged["reg.lipschitz/network.0"][13] == pytest.approx(sigma(layers[0]), rel=1e-4)
    assert logged["reg/lipschitz_lower/network.0"][13] == pytest.approx(sigma(layers[0]), rel=1e-4)
    assert logged["reg/lipschitz_lower/network"][13] == pytest.approx(
        true_lower(layers, loader().dataset.tensors[0][-4:]), rel=1e-5
    )


@pytest.mark.parametrize("whole", [True, False], ids=["the LightningModule", "its network"])
def test_a_compiled_model_is_looked_at_by_default(fit, tmp_path, whole):
    module = Passing()
    if whole:
        module.compile(backend="eager")
    else:
        module.network.compile(backend="eager")

    fit(LipschitzMonitor(), module=module, logger=TensorBoardLogger(tmp_path))

    logged = scalars(tmp_path)
    assert logged["reg/lipschitz_upper"][13] == pytest.approx(
        GELU * sigma(module.network[0]) * sigma(module.network[2]), rel=1e-4
    )


@pytest.mark.parametrize(("precision", "rel"), [("64-true", 1e-6), ("bf16-true", 0.03)])
def test_modules_compute_in_their_own_precision(fit, tmp_path, precision, rel):
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}[precision]
    module = Passing()

    fit(
        LipschitzMonitor(**EVERY),
        module=module,
        data=loader(dtype=torch.float32),
        logger=TensorBoardLogger(tmp_path),
        precision=precision,
    )

    assert module.network[0].weight.dtype == dtype
    logged = scalars(tmp_path)
    lower = true_lower(module.network, loader().dataset.tensors[0][-4:])
    assert logged["reg/lipschitz_lower"][13] == pytest.approx(lower, rel=rel)
    assert logged["reg/lipschitz_upper"][13] >= logged["reg/lipschitz_lower"][13]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_logged_as_nan_and_training_goes_on(fit, tmp_path, value):
    class Diverged(Passing):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                with torch.no_grad():
                    self.network[0].weight[0, 0] = value

    fit(LipschitzMonitor(**EVERY), module=Diverged(), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = scalars(tmp_path)
    assert math.isfinite(logged["reg/lipschitz_lower"][2])
    for step in (3, 6):
        assert math.isnan(logged["reg/lipschitz_lower"][step])
    for tag in ("reg/lipschitz_upper", "reg/lipschitz_log10", "reg/lipschitz_gap", "reg.lipschitz/network.0"):
        assert math.isnan(logged[tag][6]), tag


def test_bounds_beyond_the_range_of_float32_show_in_their_logarithm(fit, tmp_path):
    class Huge(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(5, 5, bias=False) for _ in range(3)], nn.Linear(5, 2))
            for layer in self.layers[:3]:
                nn.init.constant_(layer.weight, 1e15)

        def forward(self, inputs):
            return self.layers(inputs)

    class Still(Passing):
        def training_step(self, batch, batch_idx):
            return self.network.layers[3].weight.square().sum()

    fit(LipschitzMonitor(), module=Still(Huge), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = scalars(tmp_path)
    assert logged["reg/lipschitz_upper"][6] == math.inf
    assert 45 < logged["reg/lipschitz_log10"][6] < 50


def test_a_constant_network_has_bounds_of_zero_that_meet(fit, tmp_path):
    class Zero(Passing):
        def on_train_batch_start(self, batch, batch_idx):
            torch.nn.init.zeros_(self.network[2].weight)

        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            torch.nn.init.zeros_(self.network[2].weight)

    fit(LipschitzMonitor(), module=Zero(), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = {tag: steps[6] for tag, steps in scalars(tmp_path).items() if tag.startswith("reg/")}
    assert logged == {
        "reg/lipschitz_lower": 0,
        "reg/lipschitz_upper": 0,
        "reg/lipschitz_log10": -math.inf,
        "reg/lipschitz_gap": 1,
    }


class Doubling(nn.Module):
    def forward(self, inputs):
        return 2 * inputs


def test_an_upper_bound_that_a_sample_contradicts_is_reported_once(fit, tmp_path):
    register_lipschitz_rule(Doubling, lambda module, inputs: 1.5)  # as an error of a rule of ours would be
    module = Passing(lambda: nn.Sequential(nn.Linear(5, 2), Doubling()))

    with pytest.warns(UserWarning, match=r"upper bound of .* one of the two is wrong.* Please report it") as caught:
        fit(LipschitzMonitor(**EVERY), module=module, logger=TensorBoardLogger(tmp_path))

    assert sum("one of the two is wrong" in str(warning.message) for warning in caught) == 1
    logged = scalars(tmp_path)
    assert logged["reg/lipschitz_gap"][13] == pytest.approx(1.5 / 2, rel=1e-3)


def test_bounds_that_rounding_alone_puts_in_disorder_are_not_reported(fit, tmp_path):
    fit(LipschitzMonitor(**EVERY), module=Passing(lambda: nn.Linear(5, 2)), logger=TensorBoardLogger(tmp_path))

    logged = scalars(tmp_path)
    assert logged["reg/lipschitz_gap"][13] == pytest.approx(1, rel=1e-3)  # and no warning


def test_a_monitor_that_has_used_up_its_budget_logs_cheaper_bounds_and_warns(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(lipschitz_run, "_GRACE", -1.0)
    recorder = Recorder()

    with pytest.warns(UserWarning, match=r"used up its budget, 0 of the training time: 2 norms of layers are bounded"):
        fit(recorder, LipschitzMonitor(budget=0, **EVERY), module=Passing(), logger=TensorBoardLogger(tmp_path))

    logged = scalars(tmp_path)
    assert set(logged["reg/lipschitz_cheap_norms"].values()) == {2}
    for step, value in logged["reg/lipschitz_upper"].items():
        matrices = [recorder.networks[step][index].weight.detach().numpy() for index in (0, 2)]
        schur = [math.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf)) for matrix in matrices]
        cheap = [min(own, np.linalg.norm(matrix)) for own, matrix in zip(schur, matrices, strict=True)]
        assert value == pytest.approx(GELU * math.prod(cheap), rel=1e-4)


def test_a_layer_that_would_exceed_the_budget_is_bounded_in_the_cheaper_way_before_it_begins(
    fit, tmp_path, monkeypatch
):
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds)
    monkeypatch.setattr(lipschitz_budget, "time", clock)
    # The trial that tells the speed, for a matrix of 512 x 512, takes 4 of the 5 free seconds.
    monkeypatch.setattr(lipschitz_budget, "norm_upwards", lambda _: setattr(clock, "seconds", clock.seconds + 4))
    network = nn.Sequential(nn.Linear(5, 600), nn.Linear(600, 600), nn.Linear(600, 2))
    module = Passing(lambda: network, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4))
    recorder = Recorder()

    with pytest.warns(UserWarning, match=r"would exceed its budget, 0.05 of the training time: 1 norms of layers"):
        fit(recorder, LipschitzMonitor(**EVERY), module=module, logger=TensorBoardLogger(tmp_path))

    assert clock.seconds == 4
    logged = scalars(tmp_path)
    assert set(logged["reg/lipschitz_cheap_norms"].values()) == {1}
    for step in logged["reg/lipschitz_upper"]:
        matrix = recorder.networks[step][1].weight.detach().numpy()
        schur = math.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf))
        assert logged["reg.lipschitz/network.0"][step] == pytest.approx(sigma(recorder.networks[step][0]), rel=1e-4)
        assert logged["reg.lipschitz/network.1"][step] == pytest.approx(min(schur, np.linalg.norm(matrix)), rel=1e-4)


class Clock(Callback):
    """Each look at the time takes a second, and each step 100."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1
        return self.now

    def on_train_batch_start(self, *_):
        self.now += 100


@pytest.mark.parametrize(("budget", "is_exact"), [(0, False), (0.05, True)])
def test_the_budget_is_a_share_of_the_training_time_after_five_seconds(fit, tmp_path, monkeypatch, budget, is_exact):
    clock = Clock()
    monkeypatch.setattr(lipschitz_budget, "time", clock)
    monitor = LipschitzMonitor(budget=budget, **EVERY)

    with nullcontext() if is_exact else pytest.warns(UserWarning, match="used up its budget"):
        fit(clock, monitor, module=Passing(), logger=TensorBoardLogger(tmp_path), max_epochs=4)

    logged = scalars(tmp_path)
    cheap = list(logged.get("reg/lipschitz_cheap_norms", {}))
    steps = list(logged["reg/lipschitz_upper"])
    assert len(steps) == 5
    assert steps[0] not in cheap
    assert (steps[-1] in cheap) is not is_exact
