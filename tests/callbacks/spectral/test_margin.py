"""The margin penalty, against loops with norms by SVD."""

import copy
import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import Linear, MarginPenalty
from lightning_reg.functional import margin_bounds
from lightning_reg.metrics import CertifiedAccuracy
from tests.callbacks.monitors.test_lipschitz_certificates import Pooled
from tests.callbacks.spectral.norms import norm
from tests.event_files import texts
from tests.models import Gan, Regressor, Silent, momentum_sgd, samples, weights_of
from tests.reference import assert_same_weights, shortfall, train_with_term_of_batch

CLASSES = 3


def loader(count=28, batch_size=4):
    inputs, targets = samples(count).tensors
    labels = torch.bucketize(targets[:, 0] + inputs[:, 0], torch.tensor([-0.5, 0.5]))
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch_size)


class Classifier(Silent):
    """Three classes, by a chain whose bound is a product."""

    def __init__(self, network=None, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = (
                nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, CLASSES))
                if network is None
                else network()
            )

    def forward(self, inputs):
        return self.network(inputs)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])


def term(network, logits, labels, radius=0.5):
    wide = logits.float() if logits.itemsize < 4 else logits
    return shortfall(wide, labels, network[4].weight, norm(network[0]) * norm(network[2]), radius)


def train_with_shortfall(module, term=term, **settings):
    """Minimise the data loss + 0.1 * `factor(step)` * `term(network, logits, labels)`; return weights and terms."""

    def loss_and_term(inputs, labels):
        logits = module.network(inputs)
        return nn.functional.cross_entropy(logits, labels), lambda: 0.1 * term(module.network, logits, labels)

    return train_with_term_of_batch(module, loader(), loss_and_term, **settings)


def penalty(**settings):
    return MarginPenalty(0.1, **({"radius": 0.5, "target": "network"} | settings))


@pytest.mark.parametrize("target", [None, "network"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_agrees_with_the_written_objective(fit, target, accumulate):
    class Root(Classifier):
        def loss(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    steps = 2 * -(-7 // accumulate)
    callback = penalty(target=target, schedule=Linear(1.0, 0.5, steps))

    actual = fit(callback, module=Root(), data=loader(), accumulate_grad_batches=accumulate)

    expected, _ = train_with_shortfall(Classifier(), accumulate=accumulate, factor=lambda step: 1 - 0.5 * step / steps)
    assert_same_weights(actual, expected)


def test_fp16_with_a_scale(fit):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0)

    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler())

    actual = fit(penalty(), module=Classifier(), data=loader(), plugins=[precision])

    expected, _ = train_with_shortfall(Classifier(), scaler=scaler(), autocast=torch.float16)
    assert_same_weights(actual, expected, rtol=1e-4)


def test_what_is_logged_is_the_mean_over_the_batches_of_a_step(trainer_of):
    trainer = trainer_of(penalty(), max_epochs=1, accumulate_grad_batches=7)

    trainer.fit(Classifier(), loader())

    _, terms = train_with_shortfall(Classifier(), accumulate=7, epochs=1)
    assert trainer.callback_metrics["reg/penalty/margin"].item() == pytest.approx(sum(terms) / 7, rel=1e-5)
    assert trainer.callback_metrics["reg/penalty"].item() == pytest.approx(sum(terms) / 7, rel=1e-5)


class ConvNet(nn.Module):
    """Two convolutions, one of them with a stride, between functions and layers without weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 2, stride=2)
        self.norm = nn.GroupNorm(1, 4, eps=0.1)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, inputs):
        hidden = nn.functional.relu(self.first(inputs.unsqueeze(1)))
        hidden = self.norm(torch.sigmoid(self.second(hidden)))
        return self.last(hidden.flatten(1))


def term_of_convolutions(network, logits, labels):
    gain = norm(network.first) * norm(network.second) / 4  # the sigmoid has slopes up to 1 / 4
    gain = gain * network.norm.weight.abs().amax() / math.sqrt(0.1)
    return shortfall(logits, labels, network.last.weight, gain, 0.5)


def test_a_network_with_convolutions_and_a_normalization(fit):
    actual = fit(penalty(), module=Classifier(ConvNet), data=loader())

    expected, _ = train_with_shortfall(Classifier(ConvNet), term_of_convolutions)
    # Norms of convolutions are estimates.
    assert_same_weights(actual, expected, rtol=5e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("part", ["module", "network"])
def test_compiled_models_train_to_the_same_weights(trainer_of, part):
    torch._dynamo.reset()
    module = compiled = Classifier()
    if part == "module":
        compiled = torch.compile(module, backend="aot_eager")
    else:
        module.network = torch.compile(module.network, backend="aot_eager")

    trainer_of(penalty()).fit(compiled, loader())

    actual = {name.replace("_orig_mod.", ""): weight for name, weight in weights_of(module).items()}
    assert_same_weights(actual, train_with_shortfall(Classifier())[0])


def test_a_checkpointed_network_is_called_twice_and_counts_once(fit):
    class Checkpointed(Classifier):
        def loss(self, batch):
            logits = checkpoint(self.network, batch[0], use_reentrant=False)
            return nn.functional.cross_entropy(logits, batch[1])

    actual = fit(penalty(), module=Checkpointed(), data=loader())

    assert_same_weights(actual, train_with_shortfall(Classifier())[0])


def test_several_calls_have_the_same_labels_and_the_mean_of_their_terms(fit):
    class Twice(Classifier):
        def loss(self, batch):
            self.network(2 * batch[0])
            return super().loss(batch)

    class Reference(Classifier):
        def configure_optimizers(self):
            return momentum_sgd(self.parameters())

    expected = Reference()
    optimizer = expected.configure_optimizers()
    for inputs, labels in [*loader(), *loader()]:
        network = expected.network
        terms = [term(network, network(factor * inputs), labels) for factor in (1, 2)]
        optimizer.zero_grad()
        (nn.functional.cross_entropy(network(inputs), labels) + 0.1 * sum(terms) / 2).backward()
        optimizer.step()

    actual = fit(penalty(), module=Twice(), data=loader())

    assert_same_weights(actual, weights_of(expected))


def test_logits_that_change_in_place_later_and_calls_outside_of_the_training_step_do_not_matter(trainer_of):
    class Scaled(Classifier):
        def loss(self, batch):
            with torch.no_grad():
                self.network(batch[0])
            return nn.functional.cross_entropy(self.network(batch[0]).mul_(1.0).clamp_(-9, 9), batch[1])

    class Curious(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.__dict__["teacher"] = copy.deepcopy(pl_module.network)
            pl_module.network(batch[0])

    module = Scaled()
    trainer_of(penalty(), Curious(), val_check_interval=2).fit(module, loader(), loader())

    assert_same_weights(weights_of(module), train_with_shortfall(Classifier())[0])


def test_pruned_weights_count_as_the_network_uses_them(fit):
    module = Classifier()
    prune.l1_unstructured(module.network[2], "weight", 0.5)
    mask = module.network[2].weight_mask

    actual = fit(penalty(), module=module, data=loader())

    def masked(network, logits, labels):
        gain = norm(network[0]) * norm(network[2], network[2].weight_orig * mask)
        return shortfall(logits, labels, network[4].weight, gain, 0.5)

    expected = Classifier()
    prune.l1_unstructured(expected.network[2], "weight", 0.5)
    assert_same_weights(actual, train_with_shortfall(expected, masked)[0])


def test_frozen_layers_count_and_stay(fit):
    module, expected = Classifier(), Classifier()
    for each in (module, expected):
        each.network[0].requires_grad_(False)

    actual = fit(penalty(), module=module, data=loader())

    assert torch.equal(actual["network.0.weight"], Classifier().network[0].weight)
    assert_same_weights(actual, train_with_shortfall(expected)[0])


def test_a_second_training_begins_anew(fit):
    module, callback = Classifier(), penalty()
    for _ in range(2):
        actual = fit(callback, module=module, data=loader(), max_epochs=1)

    expected = Classifier()
    for _ in range(2):
        train_with_shortfall(expected, epochs=1)
    assert_same_weights(actual, weights_of(expected))
    assert not any(part._forward_hooks for part in module.modules())


def test_images_of_another_size_are_bounded_anew(fit):
    class Growing(Classifier):
        def loss(self, batch):
            length = 4 if self.global_step % 2 else 5
            return nn.functional.cross_entropy(self.network(batch[0][:, :length]), batch[1])

    expected = Growing(Pooled)
    optimizer = expected.configure_optimizers()
    for step, (inputs, labels) in enumerate([*loader(), *loader()]):
        length = 4 if step % 2 else 5
        logits = expected.network(inputs[:, :length])
        gain = torch.tensor(1.0 if length == 4 else math.sqrt(2))
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        (loss + 0.1 * shortfall(logits, labels, expected.network.last.weight, gain, 0.5)).backward()
        optimizer.step()

    actual = fit(penalty(), module=Growing(Pooled), data=loader())

    assert_same_weights(actual, weights_of(expected))


class Steep(nn.Module):
    """A network that takes a number besides its inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, inputs, slope=1.0):
        return self.last(torch.tanh(slope * self.first(inputs)))


def test_a_number_among_the_arguments_is_part_of_the_bound(fit):
    class Steeper(Classifier):
        def loss(self, batch):
            return nn.functional.cross_entropy(self.network(batch[0], 1.0 + self.global_step), batch[1])

    expected = Steeper(Steep)
    optimizer = expected.configure_optimizers()
    for step, (inputs, labels) in enumerate(loader()):
        network, slope = expected.network, 1.0 + step
        logits = network(inputs, slope)
        value = shortfall(logits, labels, network.last.weight, slope * norm(network.first), 0.5)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(logits, labels) + 0.1 * value).backward()
        optimizer.step()

    actual = fit(penalty(), module=Steeper(Steep), data=loader(), max_epochs=1)

    assert_same_weights(actual, weights_of(expected))


class Normalizing(Steep):
    """A network that divides its inputs by a running scale."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, inputs):
        if self.training:
            self.scale.lerp_(inputs.abs().amax(), 0.3)
        return super().forward(inputs / self.scale)


def test_a_buffer_that_changes_during_training_counts_as_it_is(fit):
    expected = Classifier(Normalizing)

    def scaled(network, logits, labels):
        return shortfall(logits, labels, network.last.weight, norm(network.first) / network.scale, 0.5)

    train_with_shortfall(expected, scaled)

    actual = fit(penalty(), module=Classifier(Normalizing), data=loader())

    assert expected.network.scale > 1.5
    assert_same_weights(actual, weights_of(expected))


def test_a_table_shows_the_layers_of_the_bound(fit, tmp_path):
    fit(penalty(), module=Classifier(), data=loader(), logger=TensorBoardLogger(tmp_path))

    table = texts(tmp_path)["reg/setup_margin/text_summary"]
    assert "| `0.weight` | 7 x 5 | factor |" in table
    assert "| `4.weight` | 3 x 4 | rows |" in table


def test_certified_accuracy_grows_at_about_the_same_accuracy(trainer_of):
    images, digits = map(torch.as_tensor, load_digits(n_class=4, return_X_y=True))
    images, example = images.float() / 16, torch.zeros(1, 64)
    data = DataLoader(TensorDataset(images[:300], digits[:300]), batch_size=100)
    shares = []
    for callbacks in ([], [MarginPenalty(4.0, radius=0.8, target="network")]):
        module = Classifier(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)))
        module.optimizer_factory = lambda parameters: torch.optim.Adam(parameters, lr=0.02)
        trainer_of(*callbacks, max_epochs=20).fit(module, data)
        with torch.no_grad():
            accuracy = CertifiedAccuracy((0.0, 0.5))
            shares.append(accuracy(module.network(images[300:]), digits[300:], margin_bounds(module.network, example)))

    (plain, plain_certified), (trained, certified) = shares
    assert trained > plain - 0.03
    assert certified > plain_certified + 0.1


REFUSED = {
    "residual": (lambda: Residual(), r"for Residual it is not proportional to the constants of 'inner', as in a sum"),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, CLASSES)),
        r"the scale of '1', a BatchNorm1d, follows the data",
    ),
    "last layer": (
        lambda: nn.Sequential(nn.Linear(5, CLASSES), nn.Tanh()),
        "its last operation is not a linear layer",
    ),
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs):
        return self.last(inputs + self.inner(inputs).relu())


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_network_whose_bound_is_no_product_is_refused_by_name_with_the_remedy(fit, make, reason):
    with pytest.raises(MisconfigurationException, match=f"{reason}.*use SpectralConstraint"):
        fit(penalty(), module=Classifier(make), data=loader())


def test_a_weight_that_a_parametrization_computes_is_refused(fit):
    module = Classifier()
    parametrizations.weight_norm(module.network[0])

    with pytest.raises(MisconfigurationException, match=r"cannot follow the norm of 'network.0.weight'.*weight norm"):
        fit(penalty(), module=module, data=loader())


def labelled(change):
    inputs, labels = loader().dataset.tensors
    return DataLoader(TensorDataset(inputs, change(labels)), batch_size=4)


LABELS = {
    "soft": (
        lambda y: nn.functional.one_hot(y, CLASSES).float(),
        r"4 samples, whole numbers of shape \(4,\), got torch.float32 of shape \(4, 3\).*`label_transform`",
    ),
    "several": (lambda y: y[:, None].expand(-1, 2), r"got torch.int64 of shape \(4, 2\)"),
    "floats": (lambda y: y.float(), r"got torch.float32 of shape \(4,\)"),
    "too large": (lambda y: y + 1, "classes from 0 to 2, because `target` returns 3 logits, got 1 to 3"),
    "ignored": (lambda y: y - 1, "got -1 to 1"),
}


@pytest.mark.parametrize(("change", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_are_not_one_class_for_each_sample_are_refused(fit, change, message):
    class Any(Classifier):
        def loss(self, batch):
            return self.network(batch[0]).square().mean()

    with pytest.raises(MisconfigurationException, match=message):
        fit(penalty(), module=Any(), data=labelled(change))


def test_labels_of_another_number_of_samples_are_refused(fit):
    class Half(Classifier):
        def loss(self, batch):
            return self.network(batch[0][:2]).square().mean()

    with pytest.raises(MisconfigurationException, match=r"each of 2 samples.*got torch.int64 of shape \(4,\)"):
        fit(penalty(), module=Half(), data=loader())


def test_a_batch_without_labels_is_refused_and_a_function_finds_them(fit):
    class Named(Classifier):
        def loss(self, batch):
            return super().loss((batch["x"], batch["y"]))

    rows = [{"x": inputs, "y": label} for inputs, label in loader().dataset]
    data = DataLoader(rows, batch_size=4)

    with pytest.raises(MisconfigurationException, match=r"the batch is a dict. Pass `label_transform`"):
        fit(penalty(), module=Named(), data=data)
    actual = fit(penalty(label_transform=lambda batch: batch["y"]), module=Named(), data=data)

    assert_same_weights(actual, train_with_shortfall(Classifier())[0])


SHAPES = {
    "one output": (lambda: nn.Linear(5, 1), r"at least two classes, got \(4, 1\)"),
    "sequences": (lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 3)), r"got \(4, 5, 3\)"),
    "several tensors": (lambda: Several(), r"got \(4, 3\), \(4, 3\)"),
}


class Several(nn.Linear):
    def __init__(self):
        super().__init__(5, CLASSES)

    def forward(self, inputs):
        return super().forward(inputs), super().forward(inputs)


@pytest.mark.parametrize(("make", "message"), SHAPES.values(), ids=SHAPES)
def test_a_target_that_returns_no_logits_is_refused(fit, make, message):
    class Any(Classifier):
        def loss(self, batch):
            outputs = self.network(batch[0])
            return (outputs[0] if isinstance(outputs, tuple) else outputs).square().mean()

    with pytest.raises(MisconfigurationException, match=f"must return logits, one tensor.*{message}.*`target=`"):
        fit(penalty(), module=Any(make), data=loader())


KEYWORDS = {
    "the input": (
        None,
        lambda network, inputs: network(input=inputs),
        r"input not among the positional arguments of Sequential.forward",
    ),
    "a number": (
        Steep,
        lambda network, inputs: network(inputs, slope=9.0),
        r"slope not among the positional arguments of Steep.forward",
    ),
}


@pytest.mark.parametrize(("make", "call", "message"), KEYWORDS.values(), ids=KEYWORDS)
def test_keyword_arguments_are_refused_because_the_bound_would_miss_them(fit, make, call, message):
    class Keywords(Classifier):
        def loss(self, batch):
            return nn.functional.cross_entropy(call(self.network, batch[0]), batch[1])

    with pytest.raises(MisconfigurationException, match=message):
        fit(penalty(), module=Keywords(make), data=loader())


def test_an_unknown_target_is_refused_with_the_nearest_names(fit):
    with pytest.raises(ValueError, match=r"`target` 'netwrk' is not a module of Classifier. Nearest names: network"):
        fit(penalty(target="netwrk"), module=Classifier(), data=loader())


def test_a_module_without_forward_needs_a_target(fit):
    with pytest.raises(MisconfigurationException, match=r"Regressor has no `forward`. Pass `target=`.*\['network'\]"):
        fit(penalty(target=None), module=Regressor())


def test_a_target_that_is_never_called_warns(fit):
    with pytest.warns(UserWarning, match="MarginPenalty adds nothing for 'Classifier', which was not called"):
        fit(penalty(target=None), module=Classifier(), data=loader())


def test_manual_optimization_is_refused(fit):
    with pytest.raises(MisconfigurationException, match="MarginPenalty does not work with manual optimization"):
        fit(penalty(target="critic"), module=Gan())
