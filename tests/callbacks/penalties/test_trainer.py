"""Penalties under the odder settings of the Trainer, and when training goes wrong."""

import pytest
import torch

from lightning_reg import L1Penalty, L2Penalty
from tests.models import Gan, Regressor, Silent, loader, weights_of
from tests.reference import assert_same_weights, both_modes, train_by_hand


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

    without = fit(module=Silent(), **settings)
    for other in (weights_of(Regressor()), without):
        assert not torch.equal(weights["network.head.weight"], other["network.head.weight"])


@both_modes
def test_a_run_with_no_batches_at_all(fit, mode):
    weights = fit(L1Penalty(0.1, mode=mode), limit_train_batches=0)

    assert_same_weights(weights, weights_of(Regressor()), rtol=0.0)


@both_modes
def test_validation_test_and_prediction_without_training(trainer_of, mode):
    trainer = trainer_of(L1Penalty(0.1, mode=mode))

    for evaluate in (trainer.validate, trainer.test):
        (metrics,) = evaluate(Regressor(), loader(), verbose=False)
        assert len(metrics) == 1
    predictions = trainer.predict(Regressor(), loader())

    assert len(predictions) == len(loader())


def test_a_module_that_could_not_be_trained_can_be_evaluated(trainer_of):
    class Predictor(Gan):
        def predict_step(self, batch, batch_idx):
            return self.generator(batch[0])

    predictions = trainer_of(L1Penalty(0.1, mode="loss")).predict(Predictor(), loader())

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
