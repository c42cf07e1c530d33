"""Zeros that stay, and zeros in a pattern."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim

from lightning_reg import KeepZeros, L1Penalty, Linear, NMSparsity, Piecewise
from tests.callbacks.penalties.test_proximal_solutions import INPUTS, TARGETS, LeastSquares, one_target, solve
from tests.models import Regressor, loader, weights_of

STEPS = 1000
UNTIL_HALF = Piecewise((1.0, 0.0), (0.5,))
OPTIMIZERS = {
    "SGD momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "Adam": partial(optim.Adam, lr=0.02),
    "AdamW fused": partial(optim.AdamW, lr=0.02, weight_decay=0.0, fused=True),
}


def lasso_then_least_squares(trainer_of, optimizer, *others):
    module = LeastSquares(one_target("lasso"), optimizer)
    penalty = L1Penalty(0.1, mode="proximal", schedule=UNTIL_HALF)
    return solve(trainer_of, module, penalty, *others, steps=STEPS)["lasso"][0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_lasso_becomes_least_squares_on_the_selected_features(trainer_of, name):
    found = lasso_then_least_squares(trainer_of, OPTIMIZERS[name], KeepZeros(0.5))

    selected = found != 0
    expected = np.linalg.lstsq(INPUTS[:, selected], TARGETS, rcond=None)[0]
    assert selected.sum() == 4
    np.testing.assert_allclose(found[selected], expected, rtol=0, atol=1e-6)


def test_without_it_all_features_come_back(trainer_of):
    assert (lasso_then_least_squares(trainer_of, OPTIMIZERS["Adam"]) != 0).all()


def test_zeros_before_the_start_may_leave(fit):
    def train(start):
        module = Regressor()
        module.network.encoder.weight.data[:, 2] = 0.0
        return fit(KeepZeros(start, select="*.encoder.weight"), module=module, max_epochs=1)

    assert train(1)["network.encoder.weight"][:, 2].all()
    assert not train(0)["network.encoder.weight"][:, 2].any()


def test_a_share_of_a_run_of_unknown_length_is_refused_with_a_remedy(trainer_of):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="Give the duration as an int"):
        trainer_of(KeepZeros(0.5), max_epochs=-1).fit(Regressor(), torch.utils.data.DataLoader(Stream()))


class Wide(Regressor):
    """A network whose layers have inputs in fours, and that keeps how many weights of each four there are."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
        self.left = []

    def on_train_batch_end(self, *args):
        weights = [self.network[2].weight, self.network[4].weight]
        self.left.append({int((weight.view(-1, 4) != 0).sum(1).max()) for weight in weights})


PATTERN = ["network.2.weight", "network.4.weight"]


def test_two_of_four_are_the_largest_after_every_step(fit):
    module, by_hand = Wide(), Wide()
    by_hand.load_state_dict(module.state_dict())

    actual = fit(NMSparsity(select=PATTERN), module=module)

    optimizer = by_hand.configure_optimizers()
    for batch in [*loader()] * 2:
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        optimizer.step()
        for weight in (by_hand.network[2].weight, by_hand.network[4].weight):
            groups = weight.detach().numpy().reshape(-1, 4)
            np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :2], 0.0, axis=1)
    for name, weight in weights_of(by_hand).items():
        torch.testing.assert_close(actual[name], weight, rtol=1e-5, atol=1e-7)
    assert set().union(*module.left) == {2}


def test_a_schedule_takes_entries_one_by_one(fit):
    module = Wide()

    fit(NMSparsity(1, 4, select=PATTERN, schedule=Linear(0.0, 1.0, 6)), module=module, max_epochs=1)

    # 4 - round(3 * step / 6) at steps 0 to 6.
    assert module.left == [{4}, {4}, {3}, {2}, {2}, {2}, {1}]


def test_a_size_that_m_does_not_divide_is_refused_by_name(fit):
    with pytest.raises(ValueError, match=r"`m` must divide .* of 'network\.0\.weight' .* got m=4 and a size of 5"):
        fit(NMSparsity(), module=Wide())


def test_output_units_can_be_the_neighbours(fit):
    module = Wide()

    fit(NMSparsity(dim=0, select="network.0.weight"), module=module, max_epochs=1)

    assert (module.network[0].weight.T.reshape(-1, 4) != 0).sum(1).max() == 2


def test_a_schedule_outside_of_its_range_is_refused(fit):
    with pytest.raises(ValueError, match=r"`schedule\(0\)` must be in \[0, 1\], got 2"):
        fit(NMSparsity(select=PATTERN, schedule=lambda step: 2.0), module=Wide())
