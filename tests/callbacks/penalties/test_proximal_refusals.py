"""Settings that `mode="proximal"` cannot work with raise before training, with the remedy; undoing it is a warning."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lightning_reg import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, L2Penalty, Select, register_step_size
from lightning_reg.functional import soft_threshold
from tests.models import Quartic, Regressor, Untrainable, loader, weights_of


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.ASGD])
def test_an_unknown_optimizer_is_refused_with_the_remedy(fit, optimizer):
    remedy = (
        rf"{optimizer.__name__} .*SGD, Adam, .*`lightning_reg.register_step_size\({optimizer.__name__}, function\)`"
    )

    with pytest.raises(MisconfigurationException, match=remedy):
        fit(L1Penalty(0.1, mode="proximal"), module=Untrainable(optimizer))


class Plain(torch.optim.Optimizer):
    """Gradient descent with a rate that is not called lr."""

    def __init__(self, parameters):
        super().__init__(parameters, {"rate": 0.1})

    def step(self, closure=None):
        loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.sub_(group["rate"] * weight.grad)
        return loss


@pytest.mark.parametrize("elementwise", [True, False])
@pytest.mark.parametrize("kind", [L1Penalty, GroupLassoPenalty])
def test_an_optimizer_of_the_users_own_works_once_it_is_registered(fit, elementwise, kind):
    def rates(weights, states, group):
        return [group["rate"]] * len(weights)

    register_step_size(Plain, rates, elementwise=elementwise)

    actual = fit(kind(0.3, mode="proximal"), module=Regressor(Plain))

    same = fit(kind(0.3, mode="proximal"), module=Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.1)))
    torch.testing.assert_close(actual, same)
    assert any((weight == 0).any() for name, weight in actual.items() if "weight" in name)


def test_a_penalty_without_an_operator_is_refused_with_the_method_to_define(fit):
    with pytest.raises(MisconfigurationException, match=r"Quartic .*`proximal\(weights, factors\)`.*mode=\"loss\""):
        fit(Quartic(0.1, mode="proximal"), module=Untrainable())


def test_a_penalty_of_the_users_own_works_with_its_operator(fit):
    class Mine(Quartic):
        elementwise = True

        def penalty(self, weights):
            return sum(weight.abs().sum() for weight in weights)

        def proximal(self, weights, factors):
            for weight, factor in zip(weights, factors, strict=True):
                weight.copy_(soft_threshold([weight], [factor])[0])

    torch.testing.assert_close(fit(Mine(0.05, mode="proximal")), fit(L1Penalty(0.05, mode="proximal")))


@pytest.mark.parametrize(
    "penalties",
    [
        (L2Penalty(0.1, mode="proximal"), GroupLassoPenalty(0.1, mode="proximal")),
        (ElasticNetPenalty(0.1, mode="proximal"), L2Penalty(0.1, mode="proximal", select="network.head.*")),
        (GroupLassoPenalty(0.1, mode="proximal"), GroupLassoPenalty(0.1, dim=1, mode="proximal")),
    ],
)
def test_two_operators_whose_sum_has_another_are_refused_on_the_same_weights(fit, penalties):
    with pytest.raises(MisconfigurationException, match=r"act on the same weights.*give one of them mode=\"grad\""):
        fit(*penalties, module=Untrainable())


def test_on_different_weights_two_operators_are_fine(fit):
    fit(
        L2Penalty(0.1, mode="proximal", select="network.head.*"),
        GroupLassoPenalty(0.1, mode="proximal", select="network.encoder.*"),
        L1Penalty(0.1, mode="proximal"),
    )


def test_complex_weights_are_refused(fit):
    class Complex(Regressor):
        def __init__(self):
            super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.01))
            self.phases = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))

    with pytest.raises(TypeError, match="complex64"):
        fit(L1Penalty(0.1, mode="proximal"), module=Complex())


def test_a_group_dimension_that_a_weight_lacks_is_refused_before_training(fit):
    with pytest.raises(ValueError, match="got 1 for one of shape"):
        fit(GroupLassoPenalty(0.1, dim=1, select=Select(min_ndim=1)), module=Untrainable())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": None}, TypeError, "`dim` must be an int, got None"),
        ({"dim": 0.5}, TypeError, "`dim` must be an int, got 0.5 of type float"),
        ({"mode": "prox"}, ValueError, "`mode` must be one of 'loss', 'grad', 'proximal', got 'prox'"),
    ],
)
def test_a_bad_argument_of_the_group_lasso_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        GroupLassoPenalty(0.1, **arguments)


@pytest.mark.twin
def test_weight_averaging_warns_with_a_remedy(trainer_of):
    trainer = trainer_of(
        L1Penalty(0.1, mode="proximal"), StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1), max_epochs=2
    )

    with pytest.warns(UserWarning, match=r"StochasticWeightAveraging averages weights.*set entries of the average to"):
        trainer.fit(Regressor(), loader())


@pytest.mark.twin
def test_moving_averages_also_warn(trainer_of):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    with pytest.warns(UserWarning, match="EMAWeightAveraging averages weights"):
        trainer_of(L1Penalty(0.1, mode="proximal"), callbacks.EMAWeightAveraging()).fit(Regressor(), loader())


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_without_exact_zeros_averaging_does_not_warn(trainer_of, mode):
    trainer_of(L1Penalty(0.1, mode=mode), StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)).fit(
        Regressor(), loader()
    )  # warnings are errors


def test_a_strength_of_zero_changes_nothing(fit):
    expected = fit()

    for kind in (L1Penalty, L2Penalty, ElasticNetPenalty, GroupLassoPenalty):
        torch.testing.assert_close(fit(kind(0.0, mode="proximal")), expected, rtol=0, atol=0)


def test_frozen_weights_are_left_alone(fit):
    module = Regressor()
    module.network.encoder.weight.requires_grad_(requires_grad=False)
    before = weights_of(module)

    after = fit(L1Penalty(10.0, mode="proximal"), module=module)

    assert torch.equal(after["network.encoder.weight"], before["network.encoder.weight"])
    assert not after["network.head.weight"].any()
