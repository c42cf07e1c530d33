"""The distance to weights of before: closed forms around them, every way to name them, resumed runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from sklearn.linear_model import Lasso
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import AnchorPenalty
from lightning_reg.callbacks.penalties.memory import Memory
from lightning_reg.selection import named_weights
from tests.models import Regressor, Untrainable, loader, weights_of
from tests.reference import assert_same_weights, train_by_hand

every_mode = pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(60, 6))
TARGETS = INPUTS @ RANDOM.normal(size=6) + RANDOM.normal(size=60)
START = RANDOM.normal(size=6)


class LeastSquares(LightningModule):
    """Half the mean squared error; starts at `START`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1, bias=False).double()
        self.layer.weight.data = torch.from_numpy(START[None].copy())

    def training_step(self, batch, batch_idx):
        return (self.layer(batch[0])[:, 0] - batch[1]).square().mean() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def rows():
    return DataLoader(TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)), batch_size=60)


def minimum(fit, penalty):
    module = LeastSquares()
    fit(penalty, module=module, data=rows(), max_epochs=150)
    return module.layer.weight.detach().numpy()[0]


@every_mode
def test_squared_distances_end_at_the_ridge_regression_around_the_start(fit, mode):
    # Of the distance d: (X'X / n + 2 strength) d = X'(y - X w0) / n.
    matrix = INPUTS.T @ INPUTS / 60 + 2 * 0.3 * np.eye(6)
    expected = START + np.linalg.solve(matrix, INPUTS.T @ (TARGETS - INPUTS @ START) / 60)

    np.testing.assert_allclose(minimum(fit, AnchorPenalty(0.3, mode=mode)), expected, rtol=0, atol=1e-9)


def test_moduli_of_distances_end_at_the_lasso_around_the_start_and_leave_weights_exactly_there(fit):
    lasso = Lasso(alpha=0.6, fit_intercept=False, tol=1e-14).fit(INPUTS, TARGETS - INPUTS @ START)
    assert 0 < (lasso.coef_ == 0).sum() < 6

    found = minimum(fit, AnchorPenalty(0.6, norm="l1", mode="proximal"))

    np.testing.assert_allclose(found, START + lasso.coef_, rtol=0, atol=1e-6)
    assert ((found == START) == (lasso.coef_ == 0)).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_optimality_is_computed_from_distances(trainer_of, norm):
    def reached(epochs):
        trainer = trainer_of(AnchorPenalty(0.6, norm=norm, mode="proximal"), max_epochs=epochs)
        trainer.fit(LeastSquares(), rows())
        return trainer.callback_metrics["reg/optimality/anchor"].item()

    # Where all distances are 0, the subgradients of their squares are 0, of their moduli all of [-1, 1].
    slopes = np.abs(INPUTS.T @ (INPUTS @ START - TARGETS) / 60) / 0.6
    assert reached(1) == pytest.approx(slopes.max() - (norm == "l1"), rel=1e-6)
    assert reached(150) < 1e-6


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_gradients_of_moduli_are_signs_of_distances(fit, mode):
    anchors = {name: weight + 1 for name, weight in weights_of(Regressor(seed=1)).items() if weight.ndim > 1}
    truth = train_by_hand(
        Regressor(),
        loader(),
        lambda weights: 0.02 * sum((w - a).abs().sum() for w, a in zip(weights, anchors.values(), strict=True)),
    )

    assert_same_weights(fit(AnchorPenalty(0.02, anchors, norm="l1", mode=mode)), weights_of(truth))


@pytest.mark.parametrize("source", ["mapping", "state dict", "compiled", "lightning"])
def test_the_anchor_may_be_a_mapping_or_a_file(fit, trainer_of, tmp_path, source):
    module, file = Regressor(seed=1), tmp_path / "other.ckpt"
    trainer = trainer_of(max_epochs=1)
    trainer.fit(module, loader())
    others = weights_of(module)
    if source == "lightning":
        trainer.save_checkpoint(file)
    else:
        prefix = "network._orig_mod." if source == "compiled" else "network."  # what `torch.compile` inserts
        torch.save({name.replace("network.", prefix): weight for name, weight in others.items()}, file)
    anchors = [weight for weight in others.values() if weight.ndim > 1]
    truth = train_by_hand(
        Regressor(),
        loader(),
        lambda weights: 0.5 * sum((w - a).square().sum() for w, a in zip(weights, anchors, strict=True)),
    )

    anchor = others if source == "mapping" else str(file) if source == "lightning" else file
    assert_same_weights(fit(AnchorPenalty(0.5, anchor, mode="grad")), weights_of(truth))


def test_the_state_dict_of_the_module_itself_stays_the_anchor_of_a_second_fit(trainer_of):
    def trained(anchor_of):
        module = Regressor()
        callback = AnchorPenalty(0.5, anchor_of(module), mode="grad")
        for _ in range(2):
            trainer_of(callback, max_epochs=1).fit(module, loader())
        return weights_of(module)

    assert_same_weights(trained(lambda module: module.state_dict()), trained(weights_of), rtol=0)


@every_mode
def test_a_resumed_run_equals_the_uninterrupted_one_whatever_its_anchor(fit, trainer_of, tmp_path, mode):
    trainer, file = trainer_of(AnchorPenalty(0.5, mode=mode), max_epochs=1), tmp_path / "half.ckpt"
    trainer.fit(Regressor(), loader())
    trainer.save_checkpoint(file)
    module = Regressor()
    trainer_of(AnchorPenalty(0.5, Path("moved.ckpt"), mode=mode)).fit(module, loader(), ckpt_path=file)

    assert_same_weights(weights_of(module), fit(AnchorPenalty(0.5, mode=mode)), rtol=0)


@every_mode
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_an_anchor_on_the_cpu_gives_the_same_weights_to_the_bit_resumed_or_not(fit, trainer_of, tmp_path, mode, norm):
    def penalty(**settings):
        return AnchorPenalty(0.1, norm=norm, mode=mode, **settings)

    trainer, file, module = trainer_of(penalty(offload=True), max_epochs=1), tmp_path / "half.ckpt", Regressor()
    trainer.fit(Regressor(), loader())
    trainer.save_checkpoint(file)
    trainer_of(penalty(offload=True)).fit(module, loader(), ckpt_path=file)

    assert_same_weights(fit(penalty(offload=True)), fit(penalty()), rtol=0)
    assert_same_weights(weights_of(module), fit(penalty()), rtol=0)


@pytest.mark.parametrize("offload", [False, True])
def test_an_offloaded_memory_stays_on_the_cpu_whatever_the_device_of_the_weight(offload):
    # A device that every machine has. Tensors on it have no values, which keeping them needs not.
    module, memory = nn.Linear(3, 2, device="meta"), Memory()
    weights, anchors = named_weights(module)[:1], {"weight": torch.ones(2, 3)}

    memory.begin(lambda _: anchors, weights, "it", sharded=True, offload=offload)

    (kept,) = memory.of([module.weight])
    assert kept.device.type == ("cpu" if offload else "meta")
    if offload:
        torch.testing.assert_close(memory.state()["tensors"], anchors)
        assert kept.data_ptr() != anchors["weight"].data_ptr()


def test_formulas_move_what_is_offloaded_to_the_weights():
    weights, memory = [torch.ones(2, 3, device="meta")], [torch.ones(2, 3)]
    for norm in ("l2", "l1"):
        penalty = AnchorPenalty(0.1, norm=norm, mode="proximal", offload=True)

        penalty.proximal(weights, [0.1], memory)  # torch refuses to calculate on two devices

        assert penalty.penalty(weights, memory).device.type == "meta"


def renamed():
    return {name.removeprefix("network."): weight for name, weight in weights_of(Regressor()).items()}


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        (renamed(), r"every chosen weight, but lacks 'network\.encoder\.weight'\. Nearest: encoder\.weight"),
        ({}, r"but lacks 'network\.encoder\.weight'\. Nearest: none"),
        (
            weights_of(Regressor()) | {"network.conv.weight": torch.zeros(3, 1, 5)},
            r"got \(3, 1, 5\) for 'network\.conv\.weight', which is \(3, 1, 3\)",
        ),
        (
            weights_of(Regressor()) | {"network.conv.weight": torch.full((3, 1, 3), float("nan"))},
            r"must be finite, got NaN or infinity in 'network\.conv\.weight'",
        ),
        ("begin", r'must be "start", a file, or a mapping.*there is no file'),
    ],
)
def test_an_anchor_that_does_not_fit_is_refused_before_the_first_step(fit, anchor, message):
    with pytest.raises(ValueError, match=rf"`anchor`.*{message}"):
        fit(AnchorPenalty(0.1, anchor), module=Untrainable())


def test_a_file_with_something_else_is_refused(fit, tmp_path):
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")

    with pytest.raises(TypeError, match="`anchor` must be a file with a state dict, got one with a Tensor"):
        fit(AnchorPenalty(0.1, tmp_path / "tensor.pt"), module=Untrainable())


def test_a_mapping_is_shown_as_how_many_tensors_it_has():
    assert "anchor=<1 tensors>" in repr(AnchorPenalty(0.1, {"head.weight": torch.zeros(2, 2)}))
    with pytest.raises(TypeError, match=r"`anchor` must be a mapping from names to tensors, got 1\.0 for 'head"):
        AnchorPenalty(0.1, {"head.weight": 1.0})
