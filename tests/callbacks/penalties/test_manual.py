"""Penalties in manual optimization: each step of each optimizer has its own."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty, Linear
from tests.models import Gan, loader, weights_of
from tests.reference import PENALTIES, add_term_gradient, assert_same_weights, matrices, steps_of_gan


@pytest.mark.parametrize("precision", [None, "16-mixed"])
def test_each_network_of_a_gan_is_penalized_once_per_step_of_its_own(trainer_of, precision):
    schedule = Linear(0.0, 1.0, 1.0)
    module, term = Gan(), PENALTIES["elastic_net"][1]
    plugins = []
    if precision:
        plugins = [MixedPrecision(precision, "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]
    trainer = trainer_of(ElasticNetPenalty(0.05, 0.3, mode="grad", schedule=schedule), max_epochs=2, plugins=plugins)

    trainer.fit(module, loader())

    by_hand = Gan()
    for index, optimizer, network, loss in steps_of_gan(by_hand):
        by_hand.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=precision is not None):
            value = loss()
        value.backward()
        add_term_gradient(term, matrices(network), index / 14)
        optimizer.step()
    # In fp16 the gradients of the activations round differently with and without the scale.
    assert_same_weights(weights_of(module), weights_of(by_hand), rtol=1e-2 if precision else 1e-6)


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


def test_a_share_of_a_run_limited_by_the_steps_of_all_optimizers_is_refused(trainer_of):
    penalty = L1Penalty(0.1, mode="grad", schedule=Linear(0.0, 1.0, 0.5))

    with pytest.raises(ValueError, match="share of the run"):
        trainer_of(penalty, max_steps=5).fit(Gan(), loader())


def test_a_schedule_is_asked_for_the_number_of_batches_so_far(trainer_of):
    ticks = []

    def schedule(tick):
        ticks.append(tick)
        return 1.0

    trainer_of(L1Penalty(0.1, mode="grad", schedule=schedule)).fit(Gan(), loader())

    assert sorted(set(ticks)) == list(range(14))
    assert ticks == sorted(ticks)
