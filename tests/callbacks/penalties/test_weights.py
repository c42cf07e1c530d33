"""Which weights a penalty reaches: frozen, thawed, unused, tied, sparse, pruned, parametrized."""

import re

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning
from torch import nn

from lightning_reg import GroupLassoPenalty, L1Penalty, L2Penalty, Penalty, Select
from tests.models import Regressor, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, train_by_hand


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
def test_weights_that_no_loss_reaches_shrink_too(fit, mode):
    class WithUnused(Regressor):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3, bias=False)
            nn.init.constant_(self.unused.weight, 1.0)

    make, term = PENALTIES["l2"]

    assert_same_weights(
        fit(make(mode=mode), module=WithUnused()), weights_of(train_by_hand(WithUnused(), loader(), term))
    )


@both_modes
def test_weights_that_the_users_penalty_ignores_get_no_gradient(fit, mode):
    class OnlyFirst(Penalty):
        def penalty(self, weights):
            return weights[0].square().sum()

    def term(weights):
        return 0.1 * weights[0].square().sum() + 0 * sum(weight.sum() for weight in weights)

    actual = fit(OnlyFirst(0.1, mode=mode))

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term)))


@both_modes
def test_tied_weights_count_once(fit, mode):
    class Tied(Regressor):
        def __init__(self):
            super().__init__()
            self.copy = nn.Linear(5, 7, bias=False)
            self.copy.weight = self.network.encoder.weight

    make, term = PENALTIES["l2"]

    assert_same_weights(fit(make(mode=mode), module=Tied()), weights_of(train_by_hand(Tied(), loader(), term)))


@both_modes
def test_sparse_gradients(fit, mode):
    class WithEmbedding(Regressor):
        def __init__(self):
            super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.05))
            torch.manual_seed(0)
            self.embedding = nn.Embedding(4, 5, sparse=True)

        def loss(self, batch):
            inputs, targets = batch
            index = torch.arange(len(inputs)) % 3
            return super().loss((inputs + self.embedding(index), targets))

    make, term = PENALTIES["elastic_net"]

    def densify(parameters):
        for parameter in parameters:
            parameter.grad = parameter.grad.to_dense()

    actual = fit(make(mode=mode), module=WithEmbedding())

    assert_same_weights(actual, weights_of(train_by_hand(WithEmbedding(), loader(), term, clip=densify)))


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


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("weight_norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("penalty", [L1Penalty(0.1, mode="proximal"), GroupLassoPenalty(0.1)], ids=repr)
def test_the_direction_in_weight_norm_is_not_made_zero(fit, penalty, weight_norm):
    module = Regressor()
    weight_norm(module.network.encoder)
    (direction,) = (n for n, p in module.named_parameters() if p.shape == (7, 5))

    with pytest.raises(ValueError, match=r"weight norm divides it by its length") as error:
        fit(penalty, module=module)

    (name,) = re.findall(r"exclude='(.+?)'", str(error.value))
    fit(type(penalty)(1e3, mode="proximal", select=Select(exclude=name)), module=module)
    length = next(p for n, p in module.named_parameters() if p.shape == (7, 1))
    assert (length == 0).all()  # a weight by itself, of one entry for each unit
    assert module.get_parameter(direction).isfinite().all()
