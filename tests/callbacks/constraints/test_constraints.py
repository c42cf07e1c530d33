"""Constraints in training: when they act, on which weights, in which layout; what they refuse, and what they say."""

import re

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from lightning_reg import Constraint, KeepZeros, MaxNorm, MinMaxNorm, NMSparsity, NonNegative, Select, UnitNorm
from tests.layouts import InputsFirst
from tests.models import Gan, Regressor, loader, weights_of


class Doubling(Constraint):
    """Counts its calls, and doubles a bias: an effect that adds up."""

    def __init__(self, *, select="network.encoder.bias"):
        super().__init__(select=Select(select, min_ndim=1))
        self.calls = 0

    def project(self, weights):
        self.calls += 1
        for weight in weights:
            weight.mul_(2)


class Overflowing(Regressor):
    """Every third loss, from the first on, has a gradient that overflows."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.calls, self.weights = 0, []

    def loss(self, batch):
        self.calls += 1
        return super().loss(batch) * (1e38 if self.calls % 3 == 1 else 1.0)

    def on_train_batch_end(self, *args):
        self.weights.append(weights_of(self))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def test_a_constraint_of_ones_own_acts_once_after_each_step(fit):
    constraint = Doubling()

    fit(constraint, accumulate_grad_batches=3)  # of seven batches: three steps an epoch

    assert constraint.calls == 6


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fit, fused):
    module = Overflowing(lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=fused))
    before = weights_of(module)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    fit(Doubling(), module=module, plugins=[plugin], max_epochs=1)

    name = "network.encoder.bias"
    first, second, third, fourth = (weights[name] for weights in module.weights[:4])
    assert torch.equal(first, before[name])
    assert (second - 2 * first).abs().max() <= 0.03  # doubled after a step of Adam
    assert (second - first).norm() > 0.5
    assert torch.equal(fourth, third)


def test_each_network_of_a_gan_is_constrained_after_its_own_steps(trainer_of):
    module = Gan()
    generator = Doubling(select="generator.0.bias")
    critic = MaxNorm(0.1, select="critic.*")

    trainer_of(generator, critic, max_epochs=1).fit(module, loader())

    assert generator.calls == 3  # at every second of seven batches
    assert module.critic[2].weight.norm(dim=1).max() <= 0.1 + 1e-6
    torch.testing.assert_close(module.critic[0].weight.norm(dim=1).max(), torch.tensor(0.1))


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_frozen_weights_and_steps_without_gradients_are_left_alone(fit):
    class Idle(Regressor):
        def training_step(self, batch, batch_idx):
            return None

    module = Regressor()
    module.network.encoder.weight.requires_grad_(requires_grad=False)
    before = weights_of(module)["network.encoder.weight"]

    after = fit(UnitNorm(), module=module, max_epochs=1)
    idle = fit(UnitNorm(), module=Idle(), max_epochs=1)

    assert torch.equal(after["network.encoder.weight"], before)
    torch.testing.assert_close(after["network.head.weight"].norm(dim=1), torch.ones(2))
    assert torch.equal(idle["network.head.weight"], weights_of(Regressor())["network.head.weight"])


def test_names_of_a_compiled_module_are_the_plain_ones(fit):
    module = Regressor()
    module.network = torch.compile(module.network, backend="eager")

    after = fit(UnitNorm(select="network.encoder.weight"), module=module, max_epochs=1)

    torch.testing.assert_close(after["network._orig_mod.encoder.weight"].norm(dim=1), torch.ones(7))


class Layers(nn.Module):
    """A layer of each layout; its output is a number."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.transposed = nn.ConvTranspose1d(4, 6, 3)
        self.grouped = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.depthwise = nn.ConvTranspose1d(4, 4, 3, groups=4)
        self.embedding = nn.Embedding(5, 4)
        self.inputs_first = InputsFirst(6, 4)

    def forward(self, inputs):
        parts = [
            self.linear(inputs),
            self.conv(torch.ones(1, 4, 5, 5)),
            self.transposed(torch.ones(1, 4, 5)),
            self.grouped(torch.ones(1, 4, 3, 3)),
            self.depthwise(torch.ones(1, 4, 5)),
            self.embedding(torch.arange(5)),
            self.inputs_first(inputs),
        ]
        return sum(part.square().sum() for part in parts) / 100


def units_of(network):
    """Return for each layer the weights into each of its output units, one by one."""
    transposed, grouped = network.transposed.weight, network.grouped.weight
    return {
        "linear": list(network.linear.weight),
        "conv": list(network.conv.weight),
        "transposed": [transposed[:, unit] for unit in range(6)],
        "grouped": [grouped[2 * group : 2 * group + 2, unit] for group in range(2) for unit in range(3)],
        "depthwise": [network.depthwise.weight[unit] for unit in range(4)],
        "embedding": list(network.embedding.weight),
        "inputs_first": [network.inputs_first.kernel[:, unit] for unit in range(4)],
    }


class OfLayers(Regressor):
    def __init__(self):
        super().__init__(sgd)
        self.network = Layers()

    def loss(self, batch):
        return self.network(torch.ones(1, 6))


def test_a_unit_holds_the_weights_into_one_output_unit_in_any_layout(fit):
    module = OfLayers()
    fit(UnitNorm(), module=module, max_epochs=1)

    for name, units in units_of(module.network).items():
        norms = torch.stack([unit.detach().norm() for unit in units])
        torch.testing.assert_close(norms, torch.ones(len(units)), msg=lambda text, name=name: f"{name}: {text}")


def test_input_units_lie_along_the_other_dimension(fit):
    module = OfLayers()
    fit(UnitNorm(dim=1, select=["*linear*", "*transposed*", "*kernel"]), module=module, max_epochs=1)

    network = module.network
    torch.testing.assert_close(network.linear.weight.norm(dim=0), torch.ones(6))
    torch.testing.assert_close(network.inputs_first.kernel.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(network.transposed.weight.flatten(1).norm(dim=1), torch.ones(4))


def test_the_convolution_of_transformers_has_its_units_in_columns(fit):
    class Conv1D(nn.Module):
        """The layer of GPT-2: its name is enough, transformers is not needed."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 2))

        def forward(self, inputs):
            return inputs @ self.weight

    Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
    module = Regressor()
    module.network = Conv1D()

    fit(UnitNorm(), module=module, max_epochs=1)

    torch.testing.assert_close(module.network.weight.norm(dim=0), torch.ones(2))


def test_the_remaining_entries_of_pruned_weights_keep_the_rule(fit):
    module = Regressor()
    prune.l1_unstructured(module.network.head, "weight", 0.5)
    hidden = module.network.head.weight_orig[module.network.head.weight_mask == 0].detach().clone()

    fit(UnitNorm(select="network.head.weight"), module=module, max_epochs=1)

    head = module.network.head
    torch.testing.assert_close((head.weight_orig * head.weight_mask).norm(dim=1), torch.ones(2))
    assert torch.equal(head.weight_orig[head.weight_mask == 0], hidden)


@pytest.mark.parametrize("normalized", [weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed_are_refused(fit, normalized):
    module = Regressor()
    normalized(module.network.head)

    with pytest.raises(ValueError, match=r"MaxNorm cannot control 'network\.head\.weight.*select=Select\(exclude="):
        fit(MaxNorm(1.0), module=module)


def test_the_action_on_each_weight_is_printed_before_training(fit, caplog):
    with caplog.at_level("INFO"):
        fit(MaxNorm(1.5, select="*.encoder.*"), NonNegative(select="*.head.*"), max_epochs=1)

    plan = caplog.text
    assert re.search(r"network\.encoder\.weight +7 x 5 +MaxNorm\(max_norm=1\.5, dim=0\)\n", plan)
    assert re.search(r"network\.head\.weight +2 x 21 +NonNegative\(\)\n", plan)
    assert re.search(r"network\.norm\.weight +7 +none: ", plan)


def test_an_average_that_need_not_keep_the_rule_warns(fit):
    averaging = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(averaging, "EMAWeightAveraging"):
        pytest.skip("since Lightning 2.6")
    with pytest.warns(UserWarning, match=r"EMAWeightAveraging averages weights.*UnitNorm.*`UnitNorm.project`"):
        fit(UnitNorm(), averaging.EMAWeightAveraging(), max_epochs=1)

    fit(MaxNorm(1.0), NonNegative(), averaging.EMAWeightAveraging(), max_epochs=1)  # warnings are errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaxNorm(0.0), ValueError, "`max_norm` must be a finite number > 0, got 0.0."),
        (lambda: MaxNorm("1"), TypeError, "`max_norm` must be a number"),
        (lambda: MaxNorm(1.0, dim=0.5), TypeError, "`dim` must be an int"),
        (lambda: MinMaxNorm(2.0, 1.0), ValueError, "`max_norm` must be at least `min_norm`=2.0, got 1.0."),
        (lambda: MinMaxNorm(0.0, 1.0, rate=1.5), ValueError, "`rate` must be in [0, 1], got 1.5."),
        (lambda: NMSparsity(4, 4), ValueError, "`n` must be below `m`=4, got 4."),
        (lambda: NMSparsity(0, 4), ValueError, "`n` must be an int >= 1, got 0."),
        (lambda: NMSparsity(schedule=1.0), TypeError, "`schedule` must be"),
        (lambda: KeepZeros(-1), ValueError, "`start` must be an int >= 0, got -1."),
        (lambda: KeepZeros(1.5), ValueError, "`start` must be an int >= 0 (steps), or a float in (0, 1]"),
        (lambda: KeepZeros(True), TypeError, "`start` must be a number"),
        (lambda: NonNegative(select=3), TypeError, "`include` must be"),
    ],
)
def test_bad_arguments_are_refused_with_the_rule(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_weight_without_the_dimension_is_refused(fit):
    with pytest.raises(ValueError, match=r"`dim` must be a dimension of every weight, got 2 for one of shape \(7, 5\)"):
        fit(MaxNorm(1.0, dim=2))


def test_one_callback_is_listed_once(fit):
    constraint = MaxNorm(1.0)
    with pytest.raises(MisconfigurationException, match="it is there 2 times"):
        fit(constraint, constraint)
