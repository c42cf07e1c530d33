"""Penalties of a user that remember something of each weight: told which is which, saved, restored, made anew."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy

from lightning_reg import Penalty
from tests.models import Quartic, Regressor, Untrainable, loader, weights_of
from tests.reference import assert_same_weights, both_modes, matrices, train_by_hand

every_mode = pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])


class TowardsStart(Penalty):
    """Distances to where weights started, squared."""

    elementwise = True

    def remember(self, weights):
        return weights

    def penalty(self, weights, memory):
        return sum((weight - start).square().sum() for weight, start in zip(weights, memory, strict=True))

    def proximal(self, weights, factors, memory):
        for weight, factor, start in zip(weights, factors, memory, strict=True):
            weight.add_((start - weight) * (2 * factor / (1 + 2 * factor)))


class Consolidation(Penalty):
    """Squared distances with an importance for each entry of a layer, as in elastic weight consolidation."""

    def remember(self, weights):
        return {
            name: torch.stack([weight, torch.arange(1.0, 1 + weight.numel()).view_as(weight)])
            for name, weight in weights.items()
            if "encoder" in name
        }

    def penalty(self, weights, memory):
        pairs = [(weight, kept) for weight, kept in zip(weights, memory, strict=True) if kept is not None]
        return sum((importance * (weight - start) ** 2).sum() for weight, (start, importance) in pairs)


class KnownByIdentity(Penalty):
    """Keeps starts itself, by parameter."""

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        self.starts = {weight: weight.detach().clone() for weight in pl_module.parameters()}

    def penalty(self, weights):
        return sum((weight - self.starts[weight]).square().sum() for weight in weights)


class Lazy(Penalty):
    """Keeps starts itself, in the order of the weights, in a kind of attribute that `keep` makes of a list."""

    starts = None
    keep = staticmethod(list)

    def penalty(self, weights):
        if self.starts is None:
            self.starts = self.keep([weight.detach().clone() for weight in weights])
        starts = self.starts.values() if isinstance(self.starts, dict) else self.starts
        return sum((weight - start).square().sum() for weight, start in zip(weights, starts, strict=True))


class LazyDict(Lazy):
    keep = staticmethod(lambda starts: {str(position): start for position, start in enumerate(starts)})


class LazyTuple(Lazy):
    keep = tuple


def by_hand(strength, **settings):
    """Train with squared distances to the start, as autograd has their gradient."""
    module = Regressor()
    starts = [weight.detach().clone() for weight in matrices(module)]

    def term(weights):
        return strength * sum((weight - start).square().sum() for weight, start in zip(weights, starts, strict=True))

    return weights_of(train_by_hand(module, loader(), term, **settings))


@both_modes
@pytest.mark.parametrize("kind", [TowardsStart, KnownByIdentity])
def test_a_penalty_knows_which_weight_is_which(fit, mode, kind):
    assert_same_weights(fit(kind(0.5, mode=mode), accumulate_grad_batches=2), by_hand(0.5, accumulate=lambda epoch: 2))


@both_modes
def test_several_tensors_may_be_remembered_of_some_weights(fit, mode):
    start = Regressor().network.encoder.weight.detach().clone()
    importance = torch.arange(1.0, 36.0).view(7, 5)
    truth = train_by_hand(
        Regressor(),
        loader(),
        lambda weights: 0.01 * (importance * (weights[0] - start) ** 2).sum(),
        select=lambda module: [module.network.encoder.weight],
    )

    assert_same_weights(fit(Consolidation(0.01, mode=mode)), weights_of(truth))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def test_the_operator_gets_the_memory_of_the_weights_it_moves(fit):
    truth = Regressor(sgd)
    starts = [weight.detach().clone() for weight in matrices(truth)]
    optimizer = truth.configure_optimizers()
    for batch in [*loader()] * 2:
        optimizer.zero_grad()
        truth.loss(batch).backward()
        optimizer.step()
        for weight, start in zip(matrices(truth), starts, strict=True):
            # The minimum of (u - w)^2 / (2 f) + (u - start)^2, with f = lr * strength.
            weight.data = (weight.data + 2 * 0.05 * 0.5 * start) / (1 + 2 * 0.05 * 0.5)

    assert_same_weights(fit(TowardsStart(0.5, mode="proximal"), module=Regressor(sgd)), weights_of(truth))


def test_a_large_weight_is_cut_together_with_its_memory(fit, monkeypatch):
    expected = fit(TowardsStart(0.5, mode="proximal"))
    monkeypatch.setattr("lightning_reg.callbacks.penalties.proximal_step._CPU_ENTRIES", 10)

    assert_same_weights(fit(TowardsStart(0.5, mode="proximal")), expected, rtol=0)


def checkpoint_of(trainer_of, path, *callbacks, epochs=1):
    trainer = trainer_of(*callbacks, max_epochs=epochs)
    trainer.fit(Regressor(), loader())
    trainer.save_checkpoint(path / "half.ckpt")
    return path / "half.ckpt"


@every_mode
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(fit, trainer_of, tmp_path, mode):
    module = Regressor()
    half = checkpoint_of(trainer_of, tmp_path, TowardsStart(0.5, mode=mode))
    trainer_of(TowardsStart(0.5, mode=mode)).fit(module, loader(), ckpt_path=half)

    assert_same_weights(weights_of(module), fit(TowardsStart(0.5, mode=mode)), rtol=0)


@pytest.mark.parametrize("kind", [Lazy, LazyTuple, LazyDict])
def test_tensors_in_attributes_are_restored_too(fit, trainer_of, tmp_path, kind):
    module = Regressor()
    half = checkpoint_of(trainer_of, tmp_path, kind(0.5, mode="grad"))
    torch.load(half, weights_only=True)
    trainer_of(kind(0.5, mode="grad")).fit(module, loader(), ckpt_path=half)

    assert_same_weights(weights_of(module), fit(kind(0.5, mode="grad")), rtol=0)


def test_two_penalties_of_one_class_have_a_memory_each_in_a_checkpoint_of_tensors_alone(trainer_of, tmp_path):
    # The second remembers nothing of its weights: with one key for both, the first would start anew.
    class Forgetful(Consolidation):
        def remember(self, weights):
            return {} if self.strength == 0.2 else super().remember(weights)

        def penalty(self, weights, memory):
            return weights[0].sum() if memory[0] is None else super().penalty(weights, memory)

    def penalties():
        return Forgetful(0.01), Forgetful(0.2)

    expected, resumed = Regressor(), Regressor()
    trainer_of(*penalties()).fit(expected, loader())
    half = checkpoint_of(trainer_of, tmp_path, *penalties())
    torch.load(half, weights_only=True)
    trainer_of(*penalties()).fit(resumed, loader(), ckpt_path=half)

    assert_same_weights(weights_of(resumed), weights_of(expected), rtol=0)


def test_a_checkpoint_without_the_memory_warns_and_the_run_starts_from_its_weights(trainer_of, tmp_path):
    half = checkpoint_of(trainer_of, tmp_path)
    # Without momentum and at a high strength, weights stay near where the resumed run starts.
    starts = torch.load(half, weights_only=True)["state_dict"]
    module = Regressor()
    with pytest.warns(UserWarning, match=r"holds nothing that TowardsStart remembers of 'network\.conv\.weight'"):
        trainer_of(TowardsStart(1e6, mode="proximal")).fit(module, loader(), ckpt_path=half)

    for name in ("network.encoder.weight", "network.head.weight"):
        torch.testing.assert_close(weights_of(module)[name], starts[name], rtol=0, atol=1e-4)


def test_a_second_fit_starts_anew(trainer_of):
    penalty, module = TowardsStart(1e6, mode="proximal"), Regressor()
    trainer_of(penalty).fit(module, loader())
    with torch.no_grad():
        module.network.encoder.weight.add_(1)
    moved = module.network.encoder.weight.detach().clone()
    trainer_of(penalty).fit(module, loader())

    torch.testing.assert_close(module.network.encoder.weight.detach(), moved, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        ({"network.encoder.wait": torch.zeros(1)}, ValueError, r"wait'.*Nearest: network\.encoder\.weight"),
        ({"network.encoder.weight": 1.0}, TypeError, r"must return tensors, got float for 'network\.encoder\.weight'"),
        (None, TypeError, "must return a mapping from names of weights to tensors, got NoneType"),
    ],
)
def test_the_result_of_remember_is_checked_before_the_first_step(fit, found, error, message):
    class Wrong(TowardsStart):
        def remember(self, weights):
            return found

    with pytest.raises(error, match=rf"`Wrong\.remember`.*{message}"):
        fit(Wrong(0.1), module=Untrainable())


def test_fsdp1_is_refused_for_its_flat_shards_have_no_names(trainer_of, monkeypatch):
    penalty = TowardsStart(0.1, mode="grad")
    trainer = trainer_of(penalty, Quartic(0.1))
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy.__new__(FSDPStrategy))

    with pytest.raises(MisconfigurationException, match=r"TowardsStart, which remembers.*FSDP1\. Use FSDP2"):
        penalty.setup(trainer, Regressor(), "fit")
