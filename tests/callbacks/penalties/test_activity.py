"""The penalty on what modules return, against loops that compute it from the outputs at hand."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_reg import ActivityPenalty, L2Penalty, Linear
from tests.models import Gan, Regressor, Silent, loader, momentum_sgd, weights_of
from tests.reference import assert_same_weights, train_with_term_of_batch

SIZES = {"l1": torch.abs, "l2": torch.square}
NETWORK = ["network.encoder", "network.conv"]


def size(outputs, norm="l1"):
    """Return the sum over units, as a mean over samples."""
    return sum(SIZES[norm](sample).sum() for sample in outputs.float()) / len(outputs)


def network_and_outputs(network, inputs):
    """Return what the network returns, and what its encoder and its convolution do."""
    encoded = network.encoder(inputs)
    convolved = network.conv(torch.tanh(network.norm(encoded)).unsqueeze(1))
    return network.head(torch.tanh(convolved).flatten(1)), (encoded, convolved)


def train_with_activity(module, term, *, forward=network_and_outputs, **settings):
    """Minimise the data loss + 0.1 * `factor(step)` * `term(outputs)`; return the weights and all terms."""

    def loss_and_term(inputs, targets):
        predictions, outputs = forward(module.network, inputs)
        return nn.functional.mse_loss(predictions, targets), lambda: 0.1 * term(outputs)

    return train_with_term_of_batch(module, loader(), loss_and_term, **settings)


@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_agrees_with_the_written_objective(fit, norm, accumulate):
    steps = 2 * -(-7 // accumulate)
    penalty = ActivityPenalty(0.1, select=NETWORK, norm=norm, schedule=Linear(1.0, 0.5, steps))

    actual = fit(penalty, accumulate_grad_batches=accumulate)

    expected, _ = train_with_activity(
        Regressor(),
        lambda outputs: sum(size(tensor, norm) for tensor in outputs),
        accumulate=accumulate,
        factor=lambda step: 1 - 0.5 * step / steps,
    )
    assert_same_weights(actual, expected)


def test_fp16_with_a_scale(fit):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0)

    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler())

    actual = fit(ActivityPenalty(0.1, select=NETWORK), plugins=[precision])

    expected, _ = train_with_activity(
        Regressor(), lambda outputs: sum(map(size, outputs)), scaler=scaler(), autocast=torch.float16
    )
    assert_same_weights(actual, expected, rtol=1e-5)


def test_an_optimizer_that_evaluates_its_closure_many_times(fit):
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=5)

    data = loader(28, batch_size=28, dtype=torch.float64)
    module = Regressor(lbfgs).double()
    optimizer = module.configure_optimizers()
    for inputs, targets in [*data, *data]:

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            predictions, outputs = network_and_outputs(module.network, inputs)
            loss = nn.functional.mse_loss(predictions, targets) + 0.1 * outputs[0].abs().sum() / len(inputs)
            loss.backward()
            return loss

        optimizer.step(closure)

    actual = fit(ActivityPenalty(0.1, select=NETWORK[0]), module=Regressor(lbfgs), data=data, precision="64-true")

    assert_same_weights(actual, weights_of(module))


def test_what_is_logged_is_the_mean_over_the_batches_of_a_step_and_adds_up_with_the_penalties_on_weights(trainer_of):
    penalty = L2Penalty(0.1)
    trainer = trainer_of(ActivityPenalty(0.1, select=NETWORK), penalty, max_epochs=1, accumulate_grad_batches=7)
    module = Regressor()
    squares = sum(weight.square().sum() for weight in weights_of(module).values() if weight.ndim > 1)

    trainer.fit(module, loader())

    _, terms = train_with_activity(Regressor(), lambda outputs: sum(map(size, outputs)), accumulate=7, epochs=1)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    data_loss = sum(Regressor().loss(batch).item() for batch in loader()) / 7
    assert logged["reg/penalty/activity"] == pytest.approx(sum(terms) / 7, rel=1e-5)
    assert logged["reg/penalty"] == pytest.approx(sum(terms) / 7 + 0.1 * squares.item(), rel=1e-5)
    assert logged["reg/penalty_ratio"] == pytest.approx(logged["reg/penalty"] / data_loss, rel=1e-5)


@dataclass
class Pair:
    first: Tensor
    second: list[Tensor]


class Nested(nn.Module):
    def forward(self, hidden):
        hidden = hidden + 0
        counts = torch.ones(3, dtype=torch.long)
        return {"pair": Pair(hidden, [2 * hidden]), "rest": (counts, hidden.detach(), None, 3.0, hidden.mean())}


class Once(Regressor):
    """Its network is one layer, whose output goes through `behind`."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.ModuleDict({"first": nn.Linear(5, 4), "behind": behind, "last": nn.Linear(4, 2)})

    def behind(self, hidden):
        return self.network["behind"](hidden)

    def loss(self, batch):
        hidden = self.behind(self.network["first"](batch[0]))
        return nn.functional.mse_loss(self.network["last"](hidden), batch[1])


def train_once_by_hand(loss_of):
    """Minimise what is returned for weights by name and a batch."""
    module = Once(nn.Identity())
    optimizer = momentum_sgd(module.parameters())
    for inputs, targets in [*loader(), *loader()]:
        optimizer.zero_grad()
        loss_of(module.network, inputs, targets).backward()
        optimizer.step()
    return weights_of(module)


def test_a_layer_that_works_in_place_behind_the_module_does_not_change_the_penalty(fit):
    def loss_of(network, inputs, targets):
        hidden = network["first"](inputs)
        return nn.functional.mse_loss(network["last"](hidden.relu()), targets) + 0.1 * size(hidden)

    actual = fit(ActivityPenalty(0.1, select="network.first"), module=Once(nn.ReLU(inplace=True)))

    assert_same_weights(actual, train_once_by_hand(loss_of))


def test_every_floating_tensor_that_is_returned_counts_wherever_it_is(fit):
    class Unpacking(Once):
        def behind(self, hidden):
            return super().behind(hidden)["pair"].second[0]

    def loss_of(network, inputs, targets):
        hidden = network["first"](inputs)
        term = size(hidden) + size(2 * hidden) + hidden.mean().abs()
        return nn.functional.mse_loss(network["last"](2 * hidden), targets) + 0.1 * term

    actual = fit(ActivityPenalty(0.1, select="network.behind"), module=Unpacking(Nested()))

    assert_same_weights(actual, train_once_by_hand(loss_of))


def test_each_call_with_a_gradient_counts_even_if_its_result_is_unused(fit):
    class Twice(Once):
        def loss(self, batch):
            with torch.no_grad():
                self.network["first"](batch[0])
            self.network["first"](3 * batch[0])
            return super().loss(batch)

    def loss_of(network, inputs, targets):
        hidden, other = network["first"](inputs), network["first"](3 * inputs)
        return nn.functional.mse_loss(network["last"](hidden), targets) + 0.1 * (size(hidden) + size(other))

    actual = fit(ActivityPenalty(0.1, select="network.first"), module=Twice(nn.Identity()))

    assert_same_weights(actual, train_once_by_hand(loss_of))


def test_a_checkpointed_module_is_called_twice_and_counts_once(fit):
    class Checkpointed(Silent):
        def loss(self, batch):
            return nn.functional.mse_loss(checkpoint(self.network, batch[0], use_reentrant=False), batch[1])

    actual = fit(ActivityPenalty(0.1, select=NETWORK), module=Checkpointed())

    assert_same_weights(actual, train_with_activity(Regressor(), lambda outputs: sum(map(size, outputs)))[0])


class Curious(Callback):
    """Calls the network, with gradients, outside of `training_step`."""

    def look(self, trainer, pl_module, *_):
        pl_module.loss(next(iter(loader()))).backward()
        pl_module.zero_grad()

    on_train_batch_start = on_train_batch_end = on_train_start = look


@pytest.mark.parametrize("first", [True, False])
def test_neither_evaluation_nor_what_other_callbacks_do_counts(trainer_of, first):
    callbacks = [ActivityPenalty(0.1, select=NETWORK), Curious()]
    module = Regressor()

    trainer_of(*callbacks[:: 1 if first else -1], val_check_interval=2).fit(module, loader(), loader())

    expected, _ = train_with_activity(Regressor(), lambda outputs: sum(map(size, outputs)))
    assert_same_weights(weights_of(module), expected)


class Copying(Callback):
    """Trains with a copy of the network beside, as self-distillation does, and keeps one in a file."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.__dict__["teacher"] = copy.deepcopy(pl_module.network)
        pl_module.__dict__["stored"] = pickle.loads(pickle.dumps(pl_module.network))


def test_copies_of_the_module_do_not_count(fit):
    class Distilled(Regressor):
        def loss(self, batch):
            for other in (self.teacher, self.stored):
                other(batch[0])
            return super().loss(batch)

    actual = fit(ActivityPenalty(0.1, select=NETWORK), Copying(), module=Distilled())

    assert_same_weights(actual, train_with_activity(Regressor(), lambda outputs: sum(map(size, outputs)))[0])


@pytest.mark.parametrize("dropped", [None, "constant"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_the_user_drops_adds_nothing(fit, dropped):
    class Dropping(Regressor):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx % 2:
                return loss
            return None if dropped is None else torch.zeros((), requires_grad=True)

    module = Regressor()
    optimizer = module.configure_optimizers()
    for index, (inputs, targets) in [*enumerate(loader())] * 2:
        optimizer.zero_grad()
        if index % 2:
            predictions, outputs = network_and_outputs(module.network, inputs)
            (nn.functional.mse_loss(predictions, targets) + 0.1 * sum(map(size, outputs))).backward()
        if index % 2:
            optimizer.step()

    actual = fit(ActivityPenalty(0.1, select=NETWORK), module=Dropping())

    assert_same_weights(actual, weights_of(module))


# torch.compile looks at `.grad` of what it gets, also behind a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("part", ["module", "network", "network in place", "layers"])
def test_compiled_models_train_to_the_same_weights(trainer_of, part):
    torch._dynamo.reset()
    module = compiled = Silent()
    if part == "module":
        compiled = torch.compile(module, backend="aot_eager")
    elif part == "network":
        module.network = torch.compile(module.network, backend="aot_eager")
    elif part == "network in place":
        module.network.compile(backend="aot_eager")
    else:
        module.network.encoder = torch.compile(module.network.encoder, backend="aot_eager")
        module.network.conv.compile(backend="aot_eager")

    trainer_of(ActivityPenalty(0.1, select=NETWORK)).fit(compiled, loader())

    expected, _ = train_with_activity(Regressor(), lambda outputs: sum(map(size, outputs)))
    actual = {name.replace("_orig_mod.", ""): weight for name, weight in weights_of(module).items()}
    assert_same_weights(actual, expected)


def test_a_graph_that_was_compiled_before_warns(fit):
    torch._dynamo.reset()
    module = Silent()
    module.network.compile(backend="aot_eager")
    module.loss(next(iter(loader()))).backward()

    with pytest.warns(
        UserWarning, match=r"nothing for 'network.conv', which was not called .*`torch.compiler.reset\(\)`"
    ):
        fit(ActivityPenalty(0.1, select="network.conv"), module=module)


def test_a_module_that_is_never_called_warns_once_with_its_name(fit):
    with pytest.warns(UserWarning, match="adds nothing for 'network.dropout', which was not called") as caught:
        fit(ActivityPenalty(0.1, select=["network.dropout", "network.conv"]))

    assert [("adds nothing" in str(warning.message)) for warning in caught].count(True) == 1


def test_a_module_that_is_called_without_a_graph_warns(fit):
    class Checkpointed(Silent):
        def loss(self, batch):
            hidden = batch[0].requires_grad_()
            return nn.functional.mse_loss(checkpoint(self.network, hidden, use_reentrant=True), batch[1])

    with pytest.warns(UserWarning, match=r"'network.conv': in the first step .* `use_reentrant=False`"):
        fit(ActivityPenalty(0.1, select="network.conv"), module=Checkpointed())


def test_a_module_that_is_frozen_to_the_end_warns(fit):
    module = Silent()
    module.network.encoder.requires_grad_(False)

    with pytest.warns(UserWarning, match=r"'network.encoder': nothing that it returned had a gradient, in the whole"):
        fit(ActivityPenalty(0.1, select="network.encoder"), module=module)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_second_training_begins_anew(fit, compiled):
    module, penalty = Silent(), ActivityPenalty(0.1, select=NETWORK)
    if compiled:
        torch._dynamo.reset()
        module.network.compile(backend="aot_eager")
    for _ in range(2):
        actual = fit(penalty, module=module, max_epochs=1)

    expected = Regressor()
    for _ in range(2):
        train_with_activity(expected, lambda outputs: sum(map(size, outputs)), epochs=1)
    assert_same_weights(actual, weights_of(expected))
    assert not any(part._forward_hooks for part in module.modules())


def test_manual_optimization_is_refused(fit):
    with pytest.raises(
        MisconfigurationException, match=r"ActivityPenalty does not work with manual optimization.*`training_step`"
    ):
        fit(ActivityPenalty(0.1, select="critic.*"), module=Gan())


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(fit):
    with pytest.raises(
        ValueError, match=r"'network.encodr' matches no module that returns something.*: network.encoder,"
    ):
        fit(ActivityPenalty(0.1, select="network.encodr"))


def test_modules_must_be_chosen():
    with pytest.raises(TypeError, match="`select` must choose modules"):
        ActivityPenalty(0.1, select=None)
