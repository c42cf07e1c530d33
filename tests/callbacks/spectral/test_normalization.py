"""Spectral normalization trains W under W c / sigma(W), and leaves no trace in the module."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lightning_reg import L2Penalty, RegularizationMonitor, Select, SpectralNormalization
from tests.callbacks.spectral.norms import Loss, norm, normalized, train_normalized
from tests.models import Gan, RawManualSteps, Regressor, loader, weights_of
from tests.reference import assert_same_weights

LAYERS = ("encoder", "conv", "head")


def layers(module):
    return [getattr(module.network, name) for name in LAYERS]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def exactly(**settings):
    """So many iterations that the norm is exact."""
    return SpectralNormalization(power_iterations=20, **settings)


class Watch(Callback):
    """Calls a function after each batch and keeps the results."""

    def __init__(self, function):
        self.function, self.results = function, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.results.append(self.function(pl_module))


@pytest.mark.parametrize("kind", ["operator", "matrix"])
@pytest.mark.parametrize("bound", [1.0, 2.5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_agrees_with_a_loop_through_the_normalized_weights(kind, bound, accumulate, fit):
    actual = fit(
        exactly(norm_bound=bound, norm=kind),
        module=Regressor().double(),
        data=loader(dtype=torch.float64),
        accumulate_grad_batches=accumulate,
    )

    batches = loader(dtype=torch.float64)
    expected = train_normalized(Regressor().double(), batches, kind=kind, bound=bound, accumulate=accumulate)
    assert_same_weights(actual, expected, rtol=1e-8)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_an_optimizer_that_evaluates_its_closure_often_has_normalized_weights_each_time(line_search, fit):
    def optimizer(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3, line_search_fn=line_search)

    module = Regressor(optimizer).double()
    actual = fit(exactly(norm="matrix"), module=module, data=loader(8, dtype=torch.float64), max_epochs=1)

    by_hand = Regressor(optimizer).double()
    expected = lbfgs_by_hand(by_hand, loader(8, dtype=torch.float64))
    assert_same_weights(actual, expected, rtol=1e-6)


def lbfgs_by_hand(module, batches):
    optimizer = module.configure_optimizers()
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            weights = {f"module.{name}": weight for name, weight in normalized(module, "matrix").items()}
            loss = functional_call(Loss(module), weights, (batch,))
            loss.backward()
            return loss

        optimizer.step(closure)
    seen = dict(module.named_parameters()) | normalized(module, "matrix")
    return {name: weight.detach().clone() for name, weight in seen.items()}


@pytest.mark.parametrize("fused", [False, True])
def test_adam_and_its_decay_act_on_the_unnormalized_weights(fused, fit):
    def optimizer(parameters):
        return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.3, fused=fused)

    actual = fit(exactly(), module=Regressor(optimizer).double(), data=loader(dtype=torch.float64))

    expected = train_normalized(Regressor(optimizer).double(), loader(dtype=torch.float64))
    assert_same_weights(actual, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", ["operator", "matrix"])
def test_one_iteration_a_step_holds_the_norms_at_the_bound(kind, fit):
    norms = Watch(lambda module: [norm(layer, kind=kind).item() for layer in layers(module)])

    fit(SpectralNormalization(norm=kind), norms, module=Regressor(adam), max_epochs=10)

    assert len(norms.results) == 70
    torch.testing.assert_close(torch.tensor(norms.results), torch.ones(70, 3), rtol=0.02, atol=0)


def test_reading_weights_and_forward_passes_change_nothing(fit):
    class Reader(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for layer in layers(pl_module):
                layer.weight.sum()
            pl_module.network(batch[0])
            pl_module.network.eval()
            pl_module.network(batch[0])
            pl_module.network.train()

    expected = fit(SpectralNormalization())

    actual = fit(SpectralNormalization(), Reader())

    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_evaluation_is_deterministic_and_equal_in_both_modes(fit):
    (inputs, _) = next(iter(loader()))

    def outputs(module):
        first, second = module.network(inputs), module.network(inputs)
        third = module.network.eval()(inputs)
        module.network.train()
        return (first == second).all() and (first == third).all()

    watch = Watch(outputs)
    fit(SpectralNormalization(), watch)

    assert len(watch.results) == 14
    assert all(watch.results)


def test_activation_checkpointing_gives_the_same_gradients(fit):
    class Checkpointed(Regressor):
        def loss(self, batch):
            hidden = checkpoint(self.network, batch[0], use_reentrant=False)
            return nn.functional.mse_loss(hidden, batch[1])

    expected = fit(SpectralNormalization())

    actual = fit(SpectralNormalization(), module=Checkpointed())

    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class Twice(Regressor):
    """One layer, used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))

    def loss(self, batch):
        hidden = self.network[:2](self.network[:2](batch[0]))
        return nn.functional.mse_loss(self.network[2](hidden), batch[1])


class TwoForwards(Regressor):
    """Two forward passes before one backward."""

    def loss(self, batch):
        inputs, targets = batch
        one, other = self.network(inputs), self.network(-inputs)
        return nn.functional.mse_loss(one, targets) + nn.functional.mse_loss(other, -targets)


@pytest.mark.parametrize("make", [Twice, TwoForwards])
def test_layers_used_twice_have_one_weight(make, fit):
    actual = fit(exactly(), module=make().double(), data=loader(dtype=torch.float64))

    expected = train_normalized(make().double(), loader(dtype=torch.float64))
    assert_same_weights(actual, expected, rtol=1e-8)


def test_networks_of_a_gan_are_normalized_in_turn(trainer_of):
    gan = Gan()
    critic = Watch(lambda module: [norm(module.critic[index]).item() for index in (0, 2)])
    generator = copy.deepcopy(gan.generator)

    trainer_of(SpectralNormalization(select="critic.*"), critic, max_epochs=5).fit(gan, loader())

    torch.testing.assert_close(torch.tensor(critic.results), torch.ones(35, 2), rtol=0.02, atol=0)
    assert norm(gan.generator[0]).item() != pytest.approx(1, abs=0.01)
    assert not torch.equal(gan.generator[0].weight, generator[0].weight)


def test_steps_past_lightning_are_seen_too(trainer_of):
    module = RawManualSteps().double()
    trainer_of(exactly()).fit(module, loader(dtype=torch.float64))

    expected = train_normalized(Regressor().double(), loader(dtype=torch.float64))
    assert_same_weights(weights_of(module), expected, rtol=1e-8)


def test_the_first_forward_pass_in_eval_mode_is_right(trainer_of):
    seen = []

    class First(Regressor):
        def validation_step(self, batch, batch_idx):
            seen.append([norm(layer).item() for layer in layers(self)])

    wide = First()
    with torch.no_grad():
        wide.network.encoder.weight.copy_(100 * torch.randn(7, 5))
    trainer_of(SpectralNormalization(), max_epochs=1, num_sanity_val_steps=1).fit(wide, loader(), loader(4))

    torch.testing.assert_close(torch.tensor(seen[0]), torch.ones(3), rtol=1e-4, atol=0)


def test_a_large_layer_has_the_right_norm_before_the_first_step(fit):
    class Large(Regressor):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.network.unused = nn.Linear(700, 600)
            self.network.images = nn.Conv2d(4, 4, 5, padding=2)

    module = Large(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    fit(SpectralNormalization(), module=module, max_steps=1)

    assert norm(module.network.unused).item() == pytest.approx(1, rel=1e-3)
    assert norm(module.network.images).item() == pytest.approx(1, rel=1e-4)


def test_the_module_stays_plain_during_training(fit):
    module = Regressor()
    types = [type(part) for part in module.modules()]
    parameters = dict(module.named_parameters())
    buffers = [name for name, _ in module.named_buffers()]

    def is_plain(module):
        return (
            [type(part) for part in module.modules()] == types
            and all(parameter is parameters[name] for name, parameter in module.named_parameters())
            and [name for name, _ in module.named_buffers()] == buffers
            and list(module.state_dict()) == list(parameters)
            and not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())
        )

    watch = Watch(is_plain)
    fit(SpectralNormalization(), watch, module=module)

    assert all(watch.results)
    assert is_plain(module)


def test_the_optimizer_keeps_its_parameters_and_gets_rid_of_the_hooks(trainer_of):
    module = Regressor()
    trainer = trainer_of(SpectralNormalization())
    optimizers = []

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            optimizers.extend(trainer.optimizers)

    trainer.callbacks.append(Keep())
    trainer.fit(module, loader())

    held = [parameter for group in optimizers[0].param_groups for parameter in group["params"]]
    assert all(one is other for one, other in zip(held, module.parameters(), strict=True))
    assert not optimizers[0]._optimizer_step_pre_hooks
    assert not optimizers[0]._optimizer_step_post_hooks


@pytest.mark.parametrize("moment", ["training_step", "on_before_optimizer_step", "update"])
def test_an_exception_leaves_normalized_weights(moment, fit):
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            if moment == "update":
                raise ZeroDivisionError

    class Module(Regressor):
        def training_step(self, batch, batch_idx):
            if moment == "training_step":
                raise ZeroDivisionError
            return self.loss(batch)

        def on_before_optimizer_step(self, optimizer):
            if moment == "on_before_optimizer_step":
                raise ZeroDivisionError

    module = Module(lambda parameters: Failing(parameters, lr=0.1))
    parameters = dict(module.named_parameters())
    with pytest.raises(ZeroDivisionError):
        fit(SpectralNormalization(4.0), module=module)

    torch.testing.assert_close([norm(layer).item() for layer in layers(module)], [4.0] * 3, rtol=1e-3, atol=0)
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())


def test_fit_and_evaluation_in_any_order_normalize_once(trainer_of):
    module = Regressor()
    trainer = trainer_of(SpectralNormalization(2.0), max_epochs=1)
    before = weights_of(module)

    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    torch.testing.assert_close(weights_of(module), before, rtol=0, atol=0)
    for epochs in (1, 2, 3):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, loader(), loader())
        after = weights_of(module)
        trainer.validate(module, loader(), verbose=False)
        (first, *_) = trainer.predict(module, loader())
        trainer.test(module, loader(), verbose=False)

        torch.testing.assert_close(weights_of(module), after, rtol=0, atol=0)
        torch.testing.assert_close(first, module.network(next(iter(loader()))[0]))
        torch.testing.assert_close([norm(layer).item() for layer in layers(module)], [2.0] * 3, rtol=0.02, atol=0)


def test_copies_and_pickles_of_the_module_during_training_work_alone(fit):
    inputs, _ = next(iter(loader()))

    def copies(module):
        file = io.BytesIO()
        torch.save(module.network, file)
        file.seek(0)
        networks = [
            copy.deepcopy(module.network),
            copy.deepcopy(module).network,
            pickle.loads(pickle.dumps(module.network)),
            torch.load(file, weights_only=False),
        ]
        expected = module.network(inputs)
        for network in networks:
            nn.init.zeros_(network.encoder.weight) if network is networks[0] else None
        return all(torch.equal(network(inputs), expected) for network in networks[1:])

    watch = Watch(copies)
    actual = fit(SpectralNormalization(), watch)

    assert all(watch.results)
    torch.testing.assert_close(actual, fit(SpectralNormalization()), rtol=0, atol=0)


def test_the_monitor_shows_the_normalized_weights(trainer_of, tmp_path):
    shown = Watch(lambda module: None)
    trainer = trainer_of(
        SpectralNormalization(1.5), RegularizationMonitor(), shown, logger=CSVLogger(tmp_path), max_epochs=1
    )
    trainer.fit(Regressor(), loader())

    for statistic in ("min", "median", "max"):
        assert float(trainer.callback_metrics[f"reg/spectral_norm_{statistic}"]) == pytest.approx(1.5, rel=0.02)


def test_the_monitor_and_normalization_do_not_disturb_one_another(trainer_of, fit, tmp_path):
    module = Regressor()
    trainer_of(SpectralNormalization(), RegularizationMonitor(), logger=CSVLogger(tmp_path)).fit(module, loader())

    torch.testing.assert_close(weights_of(module), fit(SpectralNormalization()), rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [torch.bfloat16])
def test_mixed_precision_trains_as_the_loop_does(autocast, fit):
    actual = fit(SpectralNormalization(), precision="bf16-mixed")

    expected = train_normalized(Regressor(), loader(), autocast=autocast)
    assert_same_weights(actual, expected, rtol=0.02)


def scaler(scale=1024.0):
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_of_fp16_does_not_matter(fused, fit):
    def optimizer(parameters):
        return torch.optim.Adam(parameters, lr=0.02, fused=fused)

    actual = fit(SpectralNormalization(), module=Regressor(optimizer), plugins=[scaler()])

    expected = train_normalized(Regressor(optimizer), loader(), autocast=torch.float16)
    assert_same_weights(actual, expected, rtol=0.02)


def test_a_step_that_the_scaler_skips_leaves_the_weights_as_they_are(fit):
    watch = Watch(weights_of)

    fit(SpectralNormalization(), watch, plugins=[scaler(2.0**60)], max_steps=2)

    torch.testing.assert_close(watch.results[0], watch.results[1], rtol=0, atol=0)
    torch.testing.assert_close(
        [float(norm(nn.Linear(1, 1), watch.results[0][f"network.{name}.weight"])) for name in ("encoder", "head")],
        [1.0, 1.0],
        rtol=1e-4,
        atol=0,
    )


def small_steps(parameters):
    return torch.optim.SGD(parameters, lr=0.002)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_break_in_one_step_and_are_restored_train_on(value, precision, fit):
    class Breaks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                self.kept = copy.deepcopy(pl_module.state_dict())
                pl_module.network.encoder.weight.detach()[0, 0] = value
            if trainer.global_step == 5:
                pl_module.load_state_dict(self.kept)

    def norms_of(module):
        if not module.network.encoder.weight.isfinite().all():
            return None
        return [norm(layer, layer.weight.detach()).item() for layer in layers(module)]

    norms = Watch(norms_of)
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    data = loader(dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
    fit(SpectralNormalization(), Breaks(), norms, module=module, data=data, precision=precision)

    assert norms.results[4] is None
    assert np.array(norms.results[5:]) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_half_precision_loses_no_more_than_a_loop_that_keeps_both_weights(precision, dtype, fit):
    data = loader(dtype=dtype)
    callback = SpectralNormalization(3.0, norm="matrix")
    actual = fit(callback, module=Regressor(small_steps), data=data, precision=precision, max_epochs=20)

    exact = train_normalized(Regressor(small_steps), loader(), kind="matrix", bound=3.0, epochs=20)
    by_hand = train_normalized(Regressor(small_steps).to(dtype), data, kind="matrix", bound=3.0, epochs=20)
    for name in ("network.encoder.weight", "network.head.weight"):
        error, usual = ((weights[name] - exact[name]).norm() for weights in (actual, by_hand))
        assert actual[name].dtype == dtype
        assert error < 1.15 * usual


def test_clipping_sees_the_gradients_of_normalized_weights(fit):
    norms = []

    class Module(Regressor):
        def on_before_optimizer_step(self, optimizer):
            own = {name: parameter.grad.clone() for name, parameter in self.named_parameters()}
            self.zero_grad()
            self.loss(self.batch).backward()
            norms.append(all(torch.equal(parameter.grad, own[name]) for name, parameter in self.named_parameters()))

        def training_step(self, batch, batch_idx):
            self.batch = batch
            return self.loss(batch)

    fit(SpectralNormalization(), module=Module(), gradient_clip_val=0.1)

    assert len(norms) == 14
    assert all(norms)


@pytest.mark.parametrize("mode", ["loss", "grad"])
@pytest.mark.parametrize("first", [True, False])
def test_penalties_are_of_the_normalized_weights_in_any_order(mode, first, fit):
    class Penalized(Regressor):
        def loss(self, batch):
            term = sum(parameter.square().sum() for parameter in self.network.parameters() if parameter.ndim > 1)
            return super().loss(batch) + 0.1 * term

    callbacks = [exactly(), L2Penalty(0.1, mode=mode)]
    actual = fit(*callbacks[:: 1 if first else -1], module=Regressor().double(), data=loader(dtype=torch.float64))

    expected = train_normalized(Penalized().double(), loader(dtype=torch.float64))
    assert_same_weights(actual, expected, rtol=1e-8)


def test_a_frozen_weight_is_normalized_when_it_is_first_trained(fit):
    class Thawing(Regressor):
        def __init__(self):
            super().__init__()
            self.network.encoder.requires_grad_(False)
            self.before = self.network.encoder.weight.clone()

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                assert torch.equal(self.network.encoder.weight, self.before)
                self.network.encoder.requires_grad_(True)

    module = Thawing()
    fit(SpectralNormalization(), module=module)

    torch.testing.assert_close([norm(layer).item() for layer in layers(module)], [1.0] * 3, rtol=0.02, atol=0)


def test_the_choice_of_weights_is_kept(fit):
    plain = weights_of(Regressor())

    trained = fit(SpectralNormalization(select=Select(exclude="*.head.*")), module=Regressor(small_steps), max_steps=1)

    head = trained["network.head.weight"]
    assert float(torch.linalg.matrix_norm(head, 2)) == pytest.approx(
        float(torch.linalg.matrix_norm(plain["network.head.weight"], 2)), rel=0.1
    )
    assert float(torch.linalg.matrix_norm(trained["network.encoder.weight"], 2)) == pytest.approx(1, rel=1e-3)
