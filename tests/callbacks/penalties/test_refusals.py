"""Settings that a penalty cannot work with raise before training, with the remedy."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy

from lightning_reg import L1Penalty, Penalty
from tests.models import Gan, Quartic, Regressor, Untrainable, loader
from tests.reference import both_modes


def test_loss_mode_refuses_manual_optimization_and_names_the_remedy(trainer_of):
    class UntrainableGan(Gan):
        training_step = Untrainable.training_step

    with pytest.raises(MisconfigurationException, match=r'manual optimization.*Use mode="grad"'):
        trainer_of(L1Penalty(0.1)).fit(UntrainableGan(), loader())


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that makes trainers that exist already say they had another strategy."""

    def to_have(strategy):
        monkeypatch.setattr(Trainer, "strategy", property(lambda trainer: object.__new__(strategy)))

    return to_have


@pytest.mark.twin
@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy])
def test_strategies_that_step_by_themselves_are_refused_by_name(trainer_of, pretend, strategy):
    penalty = L1Penalty(0.1)
    trainer = trainer_of(penalty)
    pretend(strategy)  # a real one would need DeepSpeed or torch_xla

    with pytest.raises(MisconfigurationException, match=strategy.__name__):
        penalty.setup(trainer, Regressor(), "fit")


@pytest.mark.twin
@both_modes
def test_a_strategy_that_accumulates_by_itself_is_refused_by_name(fit, mode):
    class Accumulating(SingleDeviceStrategy):
        handles_gradient_accumulation = True

    with pytest.raises(MisconfigurationException, match="does not support Accumulating"):
        fit(L1Penalty(0.1, mode=mode), module=Untrainable(), strategy=Accumulating("cpu"))


@pytest.mark.twin
@pytest.mark.parametrize(
    ("penalty", "remedy"),
    [
        (L1Penalty(0.1), r'FSDP1.*Use mode="grad"'),
        (Quartic(0.1, mode="grad"), r"FSDP1, which flattens.*FSDP2"),
    ],
)
def test_fsdp1_is_refused_where_it_can_not_work(trainer_of, pretend, penalty, remedy):
    trainer = trainer_of(penalty)
    pretend(FSDPStrategy)

    with pytest.raises(MisconfigurationException, match=remedy):
        penalty.setup(trainer, Regressor(), "fit")


def test_a_line_search_is_refused_because_it_reads_the_loss_without_the_penalty(fit):
    module = Untrainable(lambda parameters: torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe"))

    with pytest.raises(MisconfigurationException, match="line search"):
        fit(L1Penalty(0.1), module=module)


@both_modes
def test_a_penalty_that_is_not_a_scalar_is_an_error(fit, mode):
    class Vector(Penalty):
        def penalty(self, weights):
            return weights[0].abs()

    with pytest.raises(TypeError, match=r"`.*Vector.penalty` must return a tensor of one entry"):
        fit(Vector(0.1, mode=mode))
