"""Output units are output units, whatever the layout of a weight; and the plan says what sits in no layer."""

import logging

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_reg import Constant, GroupLassoPenalty, L1Penalty, Select, SpectralNormPenalty, TargetSparsity
from lightning_reg.metrics import Sparsity
from tests.event_files import scalars
from tests.layouts import BESIDE_LAYERS, InputsFirst, InputsFirstConvolution, WithTokens
from tests.models import Regressor, loader, weights_of
from tests.reference import assert_same_weights

RATE = 0.1


class Alone(LightningModule):
    """One layer, of which the loss asks nothing: what moves its weights is the penalty."""

    def __init__(self, layer, rate=RATE):
        super().__init__()
        self.layer, self.rate = layer, rate

    def training_step(self, batch, batch_idx):
        return 0 * sum(parameter.sum() for parameter in self.layer.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def one_step(trainer_of, layer, *callbacks, **settings):
    trainer = trainer_of(*callbacks, max_steps=1, max_epochs=1, **settings)
    trainer.fit(Alone(layer), torch.zeros(1, 1))
    return trainer


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# A layer, its inputs, and its weight by (output unit, input, ...).
LAYERS = {
    "linear": (lambda: nn.Linear(5, 12), images(20, 5), lambda w: w),
    "transformers": (lambda: Conv1D(12, 5), images(20, 5), lambda w: w.T),
    "user": (lambda: InputsFirst(5, 12), images(20, 5), lambda w: w.T),
    "convolution": (lambda: nn.Conv2d(3, 12, 2), images(20, 3, 4, 4), lambda w: w),
    "transposed": (lambda: nn.ConvTranspose2d(3, 12, 2), images(20, 3, 4, 4), lambda w: np.swapaxes(w, 0, 1)),
    "transposed, a channel each": (
        lambda: nn.ConvTranspose1d(12, 12, 5, groups=12),
        images(20, 12, 4),
        lambda w: w,
    ),
    "user's convolution": (lambda: InputsFirstConvolution(3, 12, 2), images(20, 3, 4), lambda w: np.swapaxes(w, 0, 1)),
}


def weight_of(layer):
    return next(parameter for parameter in layer.parameters() if parameter.ndim > 1)


def by_units(units_first, weight):
    """Return a weight in float64 with a row for each output unit."""
    weight = units_first(weight.detach().double().numpy())
    return weight.reshape(len(weight), -1)


@pytest.mark.parametrize(("make", "inputs", "units_first"), LAYERS.values(), ids=LAYERS)
def test_units_that_are_zero_have_a_constant_output_and_the_others_have_shrunk(trainer_of, make, inputs, units_first):
    layer = make()
    with torch.no_grad():  # two of three units are small
        for unit, row in enumerate(units_first(weight_of(layer).detach().numpy())):
            row *= 0.01 if unit % 3 else 1.0
    before = by_units(units_first, weight_of(layer))
    lengths = np.linalg.norm(before, axis=1, keepdims=True)
    strength = 0.2 * lengths.max() / RATE / before.shape[1] ** 0.5

    one_step(trainer_of, layer, GroupLassoPenalty(strength, mode="proximal"))

    after = by_units(units_first, weight_of(layer))
    shrunk = before * np.maximum(1 - RATE * strength * before.shape[1] ** 0.5 / lengths, 0)
    np.testing.assert_allclose(after, shrunk, rtol=1e-5, atol=1e-8)
    output = layer(inputs).detach().transpose(0, 1).flatten(1)
    is_constant = (output == output[:, :1]).all(1).numpy()
    assert is_constant.tolist() == [bool(unit % 3) for unit in range(12)]
    assert ((after == 0).all(1) == is_constant).all()
    assert Sparsity(dim=0)(layer).item() == pytest.approx(is_constant.mean())


def formula(weight, dim):
    rows = np.swapaxes(weight, 0, dim).reshape(weight.shape[dim], -1)
    return rows.shape[1] ** 0.5 * np.linalg.norm(rows, axis=1).sum()


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
def test_layers_of_all_layouts_are_penalized_at_once(trainer_of, mode, dim):
    network = nn.ModuleList(make() for make, _, _ in LAYERS.values())
    orders = [units_first for _, _, units_first in LAYERS.values()]
    arrays = [order(weight_of(layer).detach().double().numpy()) for layer, order in zip(network, orders, strict=True)]

    trainer = one_step(trainer_of, network, GroupLassoPenalty(0.01, dim, mode=mode))

    expected = 0.01 * sum(formula(array, dim) for array in arrays)
    assert trainer.callback_metrics["reg/penalty/group_lasso"].item() == pytest.approx(expected, rel=1e-5)
    for layer, order, array in zip(network, orders, arrays, strict=True):
        moved = order(weight_of(layer).detach().double().numpy())
        others = tuple(axis for axis in range(array.ndim) if axis != dim % array.ndim)
        lengths = np.sqrt(np.square(array).sum(others, keepdims=True))
        step = RATE * 0.01 * (array.size / array.shape[dim]) ** 0.5
        np.testing.assert_allclose(moved, array * (1 - step / lengths), rtol=1e-5, atol=1e-8)


class Twin(Regressor):
    """The network of `Regressor`, with its linear layers as transformers writes them, if `inputs_first`."""

    def __init__(self, optimizer, *, inputs_first):
        super().__init__(optimizer)
        if inputs_first:
            for name in ("encoder", "head"):
                linear = getattr(self.network, name)
                layer = Conv1D(linear.out_features, linear.in_features)
                layer.weight.data, layer.bias.data = linear.weight.data.T.contiguous(), linear.bias.data
                setattr(self.network, name, layer)


def trained(fit, optimizer, callback, *, inputs_first, **settings):
    """Return the weights after training, with a row for each output."""
    weights = fit(callback(), module=Twin(optimizer, inputs_first=inputs_first), **settings)
    linear = ["network.encoder.weight", "network.head.weight"]
    return {name: weight.T if inputs_first and name in linear else weight for name, weight in weights.items()}


CALLBACKS = {
    "loss": lambda: GroupLassoPenalty(0.01),
    "gradient": lambda: GroupLassoPenalty(0.01, mode="grad"),
    "proximal": lambda: GroupLassoPenalty(0.01, mode="proximal"),
    "inputs": lambda: GroupLassoPenalty(0.01, 1, mode="proximal"),
    "target": lambda: TargetSparsity(GroupLassoPenalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0)),
    "target inputs": lambda: TargetSparsity(GroupLassoPenalty(0.0, 1, mode="proximal"), 0.5, schedule=Constant(1.0)),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
}


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_function_in_two_layouts_trains_to_the_same_weights(fit, optimizer, callback):
    expected = trained(fit, optimizer, callback, inputs_first=False)

    actual = trained(fit, optimizer, callback, inputs_first=True)

    assert_same_weights(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_target_of_units_is_met_and_logged(fit, tmp_path, dim):
    callback = TargetSparsity(GroupLassoPenalty(0.0, dim, mode="proximal"), 0.5, schedule=Constant(1.0))
    module = Twin(OPTIMIZERS["adam"], inputs_first=True)

    weights = fit(callback, module=module, logger=TensorBoardLogger(tmp_path))

    matrices = {name: weight for name, weight in weights.items() if weight.ndim > 1}
    rows = [w if name.endswith("conv.weight") else w.T for name, w in matrices.items()]
    units = torch.cat([(row.transpose(0, dim).flatten(1) == 0).all(1) for row in rows])
    assert units.float().mean().item() == pytest.approx(0.5, abs=0.5 / len(units))
    logged = scalars(tmp_path)["reg/target_sparsity/reached"]
    assert logged[max(logged)] == pytest.approx(units.float().mean().item())


def test_vanishing_strengths_belong_to_each_weight_in_order(trainer_of):
    network = nn.ModuleList([Conv1D(2, 3), nn.Linear(3, 4), Conv1D(4, 2)])

    class Ask(Callback):
        def on_train_start(self, trainer, pl_module):
            self.weights = [weight_of(layer).detach() for layer in network]
            parameters = [weight_of(layer) for layer in network]
            self.found = penalty.vanishing_strengths(parameters, [0.1] * 3)

    penalty, ask = GroupLassoPenalty(0.0, mode="proximal"), Ask()
    one_step(trainer_of, network, penalty, ask)

    for layer, weight, found in zip(network, ask.weights, ask.found, strict=True):
        rows = weight.double().numpy() if isinstance(layer, nn.Linear) else weight.double().numpy().T
        expected = np.linalg.norm(rows, axis=1) / (0.1 * rows.shape[1] ** 0.5)
        np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-5)


def test_a_penalty_alone_takes_tensors_as_they_are():
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])

    assert GroupLassoPenalty(1.0, 1).penalty([weight]).item() == pytest.approx(5 * 2**0.5)
    assert GroupLassoPenalty(1.0, 0).value([weight]).item() == pytest.approx(7 * 2**0.5)


# Parameters that sit in no layer


class Tokens(Regressor):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(WithTokens(), nn.Linear(7, 2))


@pytest.mark.parametrize("kind", [L1Penalty, GroupLassoPenalty, SpectralNormPenalty])
def test_it_is_penalized_by_default_and_the_plan_marks_it(fit, caplog, kind):
    with caplog.at_level(logging.INFO):
        fit(kind(0.01), module=Tokens())

    lines = next(r.message for r in caplog.records if r.message.startswith("Regularization plan")).splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[3:]}
    action = rows["network.1.weight"].removeprefix("2 x 7 ")
    assert action.endswith(" 0.01")
    assert rows["network.0.encoder.weight"] == f"7 x 5 {action}"
    for name, shape in BESIDE_LAYERS.items():
        assert rows[f"network.0.{name}"] == f"{shape}, in no layer {action}"
    assert "in no layer" not in rows["network.0.encoder.bias"]


@pytest.mark.parametrize(
    "select",
    [
        Select(module_types=[nn.Linear]),
        ["*.weight"],
        Select(exclude=[f"*{name}" for name in BESIDE_LAYERS]),
    ],
    ids=["types", "a pattern", "patterns that exclude"],
)
def test_a_selection_leaves_it_out(trainer_of, select):
    module = Tokens()
    weights = [module.network[0].encoder.weight, module.network[1].weight]
    expected = 0.01 * sum(weight.abs().sum().item() for weight in weights)
    trainer = trainer_of(L1Penalty(0.01, select=select), max_steps=1, max_epochs=1)

    trainer.fit(module, loader())

    assert trainer.callback_metrics["reg/penalty/l1"].item() == pytest.approx(expected, rel=1e-5)


def test_its_groups_lie_along_the_dimension_of_the_tensor(trainer_of):
    layer = WithTokens()
    arrays = {name: weight.double().numpy() for name, weight in weights_of(layer).items() if name in BESIDE_LAYERS}

    trainer = one_step(trainer_of, layer, GroupLassoPenalty(0.01, select=[f"*{name}" for name in BESIDE_LAYERS]))

    expected = 0.01 * sum(formula(array, 0) for array in arrays.values())
    assert trainer.callback_metrics["reg/penalty/group_lasso"].item() == pytest.approx(expected, rel=1e-5)
