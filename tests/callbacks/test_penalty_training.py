"""Penalties in the odder ways of training: by hand, resumed, frozen, cut short."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint, ModelPruning
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty, Linear, Penalty
from tests.models import Regressor, Silent, loader, samples, weights_of
from tests.reference import PENALTIES, add_term_gradient, assert_same_weights, matrices, train_by_hand

both_modes = pytest.mark.parametrize("mode", ["loss", "grad"])


class Gan(LightningModule):
    """Two networks, each with an optimizer; the critic steps twice as often."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
        self.critic = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def critic_loss(self, batch):
        inputs, targets = batch
        return (
            nn.functional.softplus(self.critic(self.generator(inputs))).mean()
            + nn.functional.softplus(-self.critic(targets)).mean().exp()
        )

    def generator_loss(self, batch):
        return nn.functional.softplus(-self.critic(self.generator(batch[0]))).mean()

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        self.toggle_optimizer(critic)
        critic.zero_grad()
        self.manual_backward(self.critic_loss(batch))
        critic.step()
        self.untoggle_optimizer(critic)
        if batch_idx % 2:
            self.toggle_optimizer(generator)
            generator.zero_grad()
            self.manual_backward(self.generator_loss(batch) / 2)
            self.manual_backward(self.generator_loss(batch) / 2)
            generator.step()
            self.untoggle_optimizer(generator)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.critic.parameters(), lr=0.05),
        ]


@pytest.mark.parametrize("precision", [None, "16-mixed"])
def test_each_network_of_a_gan_is_penalized_once_per_step_of_its_own(trainer_of, precision):
    schedule = Linear(0.0, 1.0, 1.0)
    module, term = Gan(), PENALTIES["elastic_net"][1]
    plugins = []
    if precision:
        plugins = [MixedPrecision(precision, "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]
    trainer = trainer_of(ElasticNetPenalty(0.05, 0.3, mode="grad", schedule=schedule), max_epochs=1, plugins=plugins)

    trainer.fit(module, loader())

    by_hand = Gan()
    generator, critic = by_hand.configure_optimizers()
    for index, batch in enumerate(loader()):
        steps = [(critic, by_hand.critic, by_hand.critic_loss)]
        if index % 2:
            steps.append((generator, by_hand.generator, by_hand.generator_loss))
        for optimizer, network, loss in steps:
            by_hand.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=precision is not None):
                value = loss(batch)
            value.backward()
            add_term_gradient(term, matrices(network), index / 7)
            optimizer.step()
    # In fp16 the gradients of the activations round differently with and without the scale.
    assert_same_weights(weights_of(module), weights_of(by_hand), rtol=1e-2 if precision else 1e-6)


def test_loss_mode_refuses_manual_optimization_and_names_the_remedy(trainer_of):
    with pytest.raises(MisconfigurationException, match=r'manual optimization.*Use mode="grad"'):
        trainer_of(L1Penalty(0.1)).fit(Gan(), loader())


@both_modes
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(fit, trainer_of, tmp_path, mode, accumulate):
    def penalty():
        return ElasticNetPenalty(0.05, mode=mode, schedule=Linear(1.0, 0.0, 1.0))

    settings = {"max_epochs": 4, "accumulate_grad_batches": accumulate}
    uninterrupted = fit(penalty(), **settings)
    interrupted, resumed = Regressor(), Regressor(seed=1)
    for module, checkpoint in ((interrupted, None), (resumed, tmp_path / "epoch=1.ckpt")):
        keep_all = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
        trainer = trainer_of(penalty(), keep_all, **settings, enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=checkpoint)

    assert_same_weights(weights_of(resumed), uninterrupted, rtol=0.0)


class Thaw(BaseFinetuning):
    """Freezes the encoder before training and lets it go at the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.network.encoder)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.network.encoder, optimizer, lr=0.05, initial_denom_lr=1.0)


@both_modes
def test_a_weight_is_penalized_from_the_step_on_at_which_it_is_unfrozen(fit, mode):
    def optimizer(parameters):
        return torch.optim.SGD([parameter for parameter in parameters if parameter.requires_grad], lr=0.05)

    actual = fit(L2Penalty(0.1, mode=mode), Thaw(), module=Regressor(optimizer))

    by_hand = Regressor(optimizer)
    by_hand.network.encoder.requires_grad_(requires_grad=False)
    frozen_optimizer = by_hand.configure_optimizers()
    by_hand.configure_optimizers = lambda: frozen_optimizer

    def term(weights):
        return 0.1 * sum(weight.square().sum() for weight in weights)

    train_by_hand(by_hand, loader(), term, epochs=1)
    by_hand.network.encoder.requires_grad_(requires_grad=True)
    frozen_optimizer.add_param_group({"params": list(by_hand.network.encoder.parameters())})
    train_by_hand(by_hand, loader(), term, epochs=1)
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
def test_a_weight_frozen_for_good_keeps_its_value(fit, mode):
    module = Regressor()
    module.network.encoder.requires_grad_(requires_grad=False)
    before = weights_of(module)["network.encoder.weight"]

    after = fit(L2Penalty(1.0, mode=mode), module=module)["network.encoder.weight"]

    torch.testing.assert_close(after, before, rtol=0, atol=0)


@both_modes
def test_a_trainable_weight_in_no_optimizer_gets_no_gradient(fit, mode):
    class WithTeacher(Regressor):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Linear(5, 5)

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=0.05)

    module = WithTeacher()
    fit(L2Penalty(1.0, mode=mode), module=module)

    assert module.teacher.weight.grad is None


@both_modes
def test_pruned_weights_stay_pruned(fit, mode):
    module = Regressor()
    pruning = ModelPruning("l1_unstructured", [(module.network.head, "weight")], amount=0.5)

    fit(L1Penalty(0.01, mode=mode), pruning, module=module)

    assert (module.network.head.weight == 0).float().mean() >= 0.5


@both_modes
def test_parametrized_weights_are_penalized_through_their_trained_tensor(fit, mode):
    def module():
        module = Regressor()
        nn.utils.parametrizations.weight_norm(module.network.encoder)
        return module

    actual = fit(L2Penalty(0.1, mode=mode, select="network.encoder.weight"), module=module())

    def select(module):
        parametrizations = module.network.encoder.parametrizations.weight
        return [parametrizations.original0, parametrizations.original1]

    def term(weights):
        return 0.1 * sum(weight.square().sum() for weight in weights)

    assert_same_weights(actual, weights_of(train_by_hand(module(), loader(), term, select=select)))


@both_modes
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_changes_nothing(fit, mode):
    class Skipping(Regressor):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    actual = fit(L2Penalty(0.1, mode=mode), module=Skipping(), max_epochs=1)

    # With momentum even a gradient of zero would move the weights.
    by_hand = train_by_hand(
        Regressor(),
        list(loader())[::2],
        lambda weights: 0.1 * sum(weight.square().sum() for weight in weights),
        epochs=1,
    )
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
def test_backward_passes_whose_gradients_are_thrown_away_do_not_count(fit, mode):
    class Impatient(Regressor):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    actual = fit(L2Penalty(0.1, mode=mode), module=Impatient(), max_epochs=1)

    by_hand = train_by_hand(
        Regressor(), list(loader())[1::2], lambda weights: 0.1 * sum(w.square().sum() for w in weights), epochs=1
    )
    assert_same_weights(actual, weights_of(by_hand))


def test_both_modes_agree_where_lightning_itself_adds_up_too_much(fit):
    # Within a step that closes a window, LBFGS evaluates several times, and Lightning zeroes no gradient in between.
    results = [
        fit(
            L2Penalty(0.1, mode=mode),
            module=Regressor(lambda parameters: torch.optim.LBFGS(parameters, lr=0.01, max_iter=3)),
            data=loader(dtype=torch.float64),
            precision="64-true",
            accumulate_grad_batches=2,
        )
        for mode in ("loss", "grad")
    ]

    assert_same_weights(*results)


def test_a_step_of_one_optimizer_leaves_the_gradients_of_the_other_alone(trainer_of):
    class Together(Gan):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(self.critic_loss(batch))
            for optimizer in optimizers:
                optimizer.step()

    module, by_hand = Together(), Gan()
    trainer_of(L2Penalty(0.1, mode="grad"), max_epochs=1).fit(module, loader())

    optimizers = by_hand.configure_optimizers()
    for batch in loader():
        by_hand.zero_grad()
        by_hand.critic_loss(batch).backward()
        add_term_gradient(lambda weights: 0.1 * sum(w.square().sum() for w in weights), matrices(by_hand), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(weights_of(module), weights_of(by_hand))


@both_modes
def test_a_loss_that_is_nan_trains_on_to_nan(fit, mode):
    class Diverged(Regressor):
        def loss(self, batch):
            return super().loss(batch) * float("nan")

    weights = fit(L1Penalty(0.1, mode=mode), module=Diverged())

    assert torch.isnan(weights["network.head.weight"]).all()


@both_modes
def test_a_loss_without_a_gradient_is_the_same_error_as_without_a_penalty(fit, mode):
    class Detached(Regressor):
        def loss(self, batch):
            return super().loss(batch).detach()

    with pytest.raises(RuntimeError, match="does not require grad"):
        fit(L1Penalty(0.1, mode=mode), module=Detached())


@both_modes
@pytest.mark.parametrize(
    "settings",
    [
        {"overfit_batches": 2},
        {"fast_dev_run": 3},
        {"barebones": True}
        | dict.fromkeys(
            ["log_every_n_steps", "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
        ),
        {"limit_train_batches": 3},
        {"max_steps": 5},
        {"log_every_n_steps": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_debugging_settings_of_the_trainer(fit, mode, settings):
    weights = fit(L1Penalty(0.1, mode=mode), module=Silent(), **settings)

    assert not torch.equal(weights["network.head.weight"], weights_of(Regressor())["network.head.weight"])


@both_modes
def test_a_run_with_no_batches_at_all(fit, mode):
    weights = fit(L1Penalty(0.1, mode=mode), limit_train_batches=0)

    assert_same_weights(weights, weights_of(Regressor()), rtol=0.0)


@both_modes
def test_validation_and_prediction_without_training(trainer_of, mode):
    trainer = trainer_of(L1Penalty(0.1, mode=mode))

    trainer.validate(Regressor(), loader())
    predictions = trainer.predict(Regressor(), loader())

    assert len(predictions) == len(loader())


def test_one_penalty_serves_several_trainings(fit):
    penalty = L1Penalty(0.1, mode="grad")
    first = fit(penalty)

    assert_same_weights(fit(penalty), first, rtol=0.0)


@both_modes
def test_it_works_again_after_training_was_interrupted(fit, mode):
    class Failing(Regressor):
        def on_train_batch_end(self, *args):
            raise ZeroDivisionError

    penalty = L1Penalty(0.1, mode=mode)
    with pytest.raises(ZeroDivisionError):
        fit(penalty, module=Failing(), accumulate_grad_batches=3)

    assert_same_weights(fit(penalty), fit(L1Penalty(0.1, mode=mode)), rtol=0.0)


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, XLAStrategy])
def test_strategies_that_step_by_themselves_are_refused_by_name(trainer_of, strategy):
    penalty = L1Penalty(0.1)
    trainer = trainer_of(penalty)
    trainer._accelerator_connector.strategy = object.__new__(strategy)  # neither can be made on this machine

    with pytest.raises(MisconfigurationException, match=strategy.__name__):
        penalty.setup(trainer, Regressor(), "fit")


class Quartic(Penalty):
    def penalty(self, weights):
        return sum(weight.pow(4).sum() for weight in weights)


@pytest.mark.parametrize(
    ("penalty", "remedy"),
    [
        (L1Penalty(0.1), r'FSDP1.*Use mode="grad"'),
        (Quartic(0.1, mode="grad"), r"FSDP1, which flattens.*FSDP2"),
    ],
)
def test_fsdp1_is_refused_where_it_can_not_work(trainer_of, penalty, remedy):
    trainer = trainer_of(penalty)
    trainer._accelerator_connector.strategy = object.__new__(FSDPStrategy)

    with pytest.raises(MisconfigurationException, match=remedy):
        penalty.setup(trainer, Regressor(), "fit")


def test_a_line_search_is_refused_because_it_reads_the_loss_without_the_penalty(fit):
    module = Regressor(lambda parameters: torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe"))

    with pytest.raises(MisconfigurationException, match="line search"):
        fit(L1Penalty(0.1), module=module)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples())


@pytest.mark.parametrize(
    "settings", [{"max_epochs": -1}, {"data": DataLoader(Stream(), batch_size=4)}], ids=["no limit", "a stream"]
)
def test_a_share_of_a_run_that_has_no_known_length_is_refused(fit, settings):
    with pytest.raises(ValueError, match="share of the run"):
        fit(L1Penalty(0.1, schedule=Linear(0.0, 1.0, 0.5)), **settings)


def test_a_stream_with_a_limit_on_its_steps_has_a_known_length(fit):
    penalty = L1Penalty(0.1, schedule=Linear(1.0, 0.0, 0.5))

    actual = fit(penalty, data=DataLoader(Stream(), batch_size=4), max_epochs=1, max_steps=6)

    by_hand = train_by_hand(
        Regressor(),
        list(loader())[:6],
        lambda weights: 0.1 * sum(w.abs().sum() for w in weights),
        epochs=1,
        factor=lambda step: max(0.0, 1 - step / 3),
    )
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
@pytest.mark.parametrize("bad", [float("nan"), -0.5, "1", torch.tensor(1.0)])
def test_a_schedule_that_returns_nonsense_is_an_error_that_names_the_step(fit, mode, bad):
    penalty = L1Penalty(0.1, mode=mode, schedule=lambda step: 1.0 if step < 3 else bad)

    with pytest.raises((TypeError, ValueError), match=r"`schedule\(3\)` must be"):
        fit(penalty)


@both_modes
def test_a_penalty_that_is_no_scalar_is_an_error(fit, mode):
    class Vector(Penalty):
        def penalty(self, weights):
            return weights[0].abs()

    with pytest.raises(TypeError, match=r"`.*Vector.penalty` must return a tensor of one entry"):
        fit(Vector(0.1, mode=mode))


@both_modes
def test_weights_that_the_users_penalty_ignores_get_no_gradient(fit, mode):
    class OnlyFirst(Penalty):
        def penalty(self, weights):
            return weights[0].square().sum()

    def term(weights):
        return 0.1 * weights[0].square().sum() + 0 * sum(weight.sum() for weight in weights)

    actual = fit(OnlyFirst(0.1, mode=mode))

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term)))
