"""Ways of training that would silently do something else than the written objective."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_reg import L1Penalty, L2Penalty, Penalty, Select
from tests.models import Gan, Regressor, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, train_by_hand


def squares(weights):
    return 0.1 * sum(weight.square().sum() for weight in weights)


def test_steps_that_lightning_does_not_see_are_an_error(trainer_of):
    class Raw(Gan):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers(use_pl_optimizer=False):
                optimizer.zero_grad()
                self.manual_backward(self.critic_loss(batch))
                optimizer.step()

    with pytest.raises(MisconfigurationException, match="has seen no optimizer step"):
        trainer_of(L2Penalty(0.1, mode="grad")).fit(Raw(), loader())


@both_modes
def test_an_optimizer_that_maximises_is_refused(fit, mode):
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.01, maximize=True))

    with pytest.raises(MisconfigurationException, match="maximize=True"):
        fit(L2Penalty(0.1, mode=mode), module=module)


@both_modes
def test_a_penalty_given_twice_is_refused(fit, mode):
    penalty = L2Penalty(0.1, mode=mode)

    with pytest.raises(MisconfigurationException, match=r"must be in `Trainer\(callbacks=.*once; it is there 2 times"):
        fit(penalty, penalty)


def test_a_penalty_hidden_in_another_callback_is_refused(fit):
    class Composite(Callback):
        def setup(self, trainer, pl_module, stage):
            L2Penalty(0.1).setup(trainer, pl_module, stage)

    with pytest.raises(MisconfigurationException, match="it is there 0 times"):
        fit(Composite())


@both_modes
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_tied_weight_that_the_optimizer_holds_twice_counts_once(fit, mode):
    class Tied(Regressor):
        def __init__(self):
            super().__init__(lambda parameters: torch.optim.SGD([*parameters, self.network.encoder.weight], lr=0.02))

    actual = fit(L2Penalty(0.1, mode=mode), module=Tied())

    assert_same_weights(actual, weights_of(train_by_hand(Tied(), loader(), squares)))


@both_modes
def test_an_optimizer_whose_parameters_change_in_place(fit, mode):
    class Alternating(Regressor):
        """Trains the encoder in the first epoch and the head in the second."""

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.encoder.parameters(), lr=0.05)

        def on_train_epoch_start(self):
            part = self.network.head if self.current_epoch else self.network.encoder
            self.optimizers().param_groups[0]["params"][:] = list(part.parameters())

    actual = fit(L2Penalty(0.1, mode=mode), module=Alternating())

    by_hand = Regressor()
    for part in (by_hand.network.encoder, by_hand.network.head):
        optimizer = torch.optim.SGD(part.parameters(), lr=0.05)
        for batch in loader():
            by_hand.zero_grad()
            (by_hand.loss(batch) + squares([part.weight])).backward()
            optimizer.step()
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
def test_a_parameter_that_joins_during_training_warns(fit, mode):
    class Growing(Regressor):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.extra = nn.Linear(2, 2)
                self.optimizers().add_param_group({"params": self.extra.parameters()})

    with pytest.warns(UserWarning, match="join an optimizer after training has begun are not penalized"):
        fit(L2Penalty(0.1, mode=mode), module=Growing())


@both_modes
def test_the_same_callback_in_a_validation_by_another_trainer(fit, mode):
    make, term = PENALTIES["l2"]
    penalty = make(mode=mode)

    class Nested(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            other = Trainer(callbacks=[penalty], accelerator="cpu", logger=False, enable_progress_bar=False)
            other.validate(Regressor(seed=1), loader(), verbose=False)

    actual = fit(penalty, Nested())

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term)))


def test_the_strength_is_not_rounded_to_the_precision_of_the_loss(fit):
    class HalfLoss(Regressor):
        def loss(self, batch):
            return (super().loss(batch) * 0).bfloat16()

    penalties = {mode: L1Penalty(0.1, mode=mode) for mode in ("loss", "grad")}

    by_mode = {mode: fit(penalty, module=HalfLoss()) for mode, penalty in penalties.items()}

    assert_same_weights(by_mode["loss"], by_mode["grad"])


@both_modes
def test_a_tied_weight_is_chosen_by_the_type_of_any_of_its_modules(fit, mode):
    class TiedHead(Regressor):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 5)
            self.embedding.weight = self.network.encoder.weight

    select = Select(module_types=[nn.Embedding])

    actual = fit(L2Penalty(0.1, select=select, mode=mode), module=TiedHead())

    by_hand = train_by_hand(TiedHead(), loader(), squares, select=lambda module: [module.embedding.weight])
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
def test_a_users_penalty_gets_the_weights_in_the_order_of_the_model(fit, mode):
    class Reversed(Regressor):
        def configure_optimizers(self):
            return torch.optim.SGD(reversed(list(self.parameters())), lr=0.05)

    class Shapes(Penalty):
        seen: tuple = ()

        def penalty(self, weights):
            type(self).seen = tuple(tuple(weight.shape) for weight in weights)
            return sum(weight.sum() for weight in weights)

    fit(Shapes(0.0001, mode=mode), module=Reversed())

    assert Shapes.seen == ((7, 5), (3, 1, 3), (2, 21))
