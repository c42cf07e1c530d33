"""Rates are found wherever a module holds them, under whatever name; what can't be reached is told."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional
from torch.nn.functional import dropout as drop_entries

from lightning_reg import Constant, DropoutScheduler, Linear, MonteCarloDropout
from tests.callbacks.dropout.modules import Module, ticks


class HelperMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.strength = 0.5

    def features(self, inputs):
        return functional.dropout(inputs, self.strength, self.training)

    def forward(self, inputs):
        return self.features(inputs)


class Inherited(HelperMethod):
    def forward(self, inputs):
        return super().forward(inputs)


def dropout_add(inputs, residual, prob, training):
    return residual + drop_entries(inputs, p=prob, training=training)


class HelperFunction(nn.Module):
    """As Bloom and Falcon do."""

    def __init__(self):
        super().__init__()
        self.hidden = 0.5

    def forward(self, inputs):
        return dropout_add(inputs, torch.zeros_like(inputs), self.hidden, training=self.training)


def drop_as(owner, inputs):
    return functional.dropout(inputs, owner.strength, owner.training)


class FunctionOfSelf(HelperMethod):
    def forward(self, inputs):
        return drop_as(self, inputs)


class Converted(nn.Module):
    """As ResNets of timm do."""

    def __init__(self):
        super().__init__()
        self.drop_rate = 0.5

    def forward(self, inputs):
        rate = float(self.drop_rate) if self.training else 0.0
        if self.drop_rate:
            inputs = functional.dropout(inputs, p=rate, training=self.training)
        return inputs


class Configured(nn.Module):
    """As Persimmon, Data2Vec and Falcon do."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(hidden_dropout=0.5, width=2)

    def forward(self, inputs):
        assert self.config.width == 2
        assert isinstance(self.config, SimpleNamespace)
        return functional.dropout(inputs, self.config.hidden_dropout, self.training)


KERNELS = {"eager": lambda inputs, dropout: functional.dropout(inputs, dropout)}


class Kernel(nn.Module):
    """As the attention of Hugging Face models does: what is called is known when it runs."""

    def __init__(self):
        super().__init__()
        self.dropout_prob = 0.5

    def forward(self, inputs):
        kernel = KERNELS["eager"]
        return kernel(inputs, dropout=0.0 if not self.training else self.dropout_prob)


class Anew(HelperMethod):
    def forward(self, inputs):
        return nn.Dropout(self.strength)(inputs) if self.training else inputs


class WordDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, inputs):
        return inputs * (torch.rand_like(inputs) > self.p) / (1 - self.p) if self.training else inputs


class LockedDropout(nn.Module):
    """Of AWD-LSTM."""

    def __init__(self):
        super().__init__()
        self.dropout = 0.5

    def forward(self, inputs):
        if not self.training:
            return inputs
        return inputs * inputs.new_empty(1, inputs.size(1)).bernoulli_(1 - self.dropout) / (1 - self.dropout)


class Parent(nn.Module):
    """Calls a method of its child, and not its `forward`."""

    def __init__(self):
        super().__init__()
        self.child = Encoder()

    def forward(self, inputs):
        return self.child.encode(inputs)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.ratio = 0.5

    def encode(self, inputs):
        return functional.dropout(inputs, self.ratio, self.training)


PARTS = {
    HelperMethod: lambda part: part.strength,
    Inherited: lambda part: part.strength,
    HelperFunction: lambda part: part.hidden,
    FunctionOfSelf: lambda part: part.strength,
    Converted: lambda part: part.drop_rate,
    Configured: lambda part: part.config.hidden_dropout,
    Kernel: lambda part: part.dropout_prob,
    Anew: lambda part: part.strength,
    WordDropout: lambda part: part.p,
    LockedDropout: lambda part: part.dropout,
    Parent: lambda part: part.child.ratio,
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_rate_is_scheduled_and_given_back(trainer_of, kind):
    class Keeps(Module):
        def training_step(self, batch, batch_idx):
            self.rates.append(PARTS[kind](self.body.part))
            return super().training_step(batch, batch_idx)

    part = kind()
    before = dict(vars(part))
    module = Keeps(part, (2000, 2))
    module.rates = []

    trainer_of(DropoutScheduler(Linear(0.0, 0.6, 3)), max_epochs=1).fit(module, ticks(3))

    assert module.rates == pytest.approx([0.0, 0.2, 0.4])
    assert PARTS[kind](part) == 0.5
    assert vars(part).keys() == before.keys()
    # Ones come in: none, 20 % and 40 % of the entries are 0, or of the two columns of LockedDropout.
    shares = [(outputs == 0).float().mean().item() for outputs in module.outputs]
    assert shares[0] == 0
    if kind is not LockedDropout:
        assert shares[1:] == pytest.approx([0.2, 0.4], abs=0.04)


@pytest.mark.parametrize("kind", PARTS)
def test_monte_carlo_dropout_samples_it(trainer_of, kind):
    class Predicts(LightningModule):
        def __init__(self):
            super().__init__()
            self.part = kind()

        def predict_step(self, batch, batch_idx):
            return self.part(torch.ones(3, 4))

    (prediction,) = trainer_of(MonteCarloDropout(400, seed=0)).predict(Predicts(), ticks(1))

    # Each entry is 0 or 2 with equal chances.
    torch.testing.assert_close(prediction.mean, torch.ones(3, 4), rtol=0, atol=0.2)
    torch.testing.assert_close(prediction.std, torch.ones(3, 4), rtol=0, atol=0.05)


def test_a_configuration_that_others_share_stays_as_it_is(trainer_of):
    class Shares(Module):
        def training_step(self, batch, batch_idx):
            first, second = self.body.part
            self.seen = (first.config.hidden_dropout, second.config.hidden_dropout, self.config.hidden_dropout)
            copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
            self.copied = [item.config.hidden_dropout for item in copies]
            first.config.width = 2.0  # goes to the one that all of them share
            return super().training_step(batch, batch_idx)

    module = Shares(nn.Sequential(Configured(), Configured()))
    config = module.config = module.body.part[0].config = module.body.part[1].config

    trainer_of(DropoutScheduler(Constant(0.3), select="body.part.0"), max_epochs=1).fit(module, ticks(1))

    assert module.seen == (0.3, 0.5, 0.5)
    assert module.copied == [0.3, 0.3]
    assert config.width == 2.0
    assert all(part.config is config for part in module.body.part)
    assert config.hidden_dropout == 0.5


def test_a_number_that_a_module_only_stores_is_not_a_rate(trainer_of):
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_drop_rate = 0.1  # what the child was built with
            self.drop = nn.Dropout(self.attn_drop_rate)

        def forward(self, inputs):
            return self.drop(inputs)

    class Keeps(Module):
        def training_step(self, batch, batch_idx):
            self.seen = self.body.part.attn_drop_rate, self.body.part.drop.p
            return super().training_step(batch, batch_idx)

    module = Keeps(SelfAttention())

    trainer_of(DropoutScheduler(Constant(0.7)), max_epochs=1).fit(module, ticks(1))

    assert module.seen == (0.1, 0.7)


@pytest.mark.parametrize("attribute", ["noise_rate", "config.noise"])
def test_attribute_adds_to_the_found_rates(trainer_of, attribute):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.1)
            self.noise_rate = 0.1
            self.config = SimpleNamespace(noise=0.1)

        def forward(self, inputs):
            rate = self.noise_rate if attribute == "noise_rate" else self.config.noise
            keep = torch.rand_like(inputs) >= rate if self.training else 1.0
            return self.drop(inputs) * keep

    class Keeps(Module):
        def training_step(self, batch, batch_idx):
            part = self.body.part
            self.seen = part.drop.p, part.noise_rate if attribute == "noise_rate" else part.config.noise
            return super().training_step(batch, batch_idx)

        def predict_step(self, batch, batch_idx):
            return self.body(torch.ones(1000, 4))

    module = Keeps(Noisy())
    trainer_of(DropoutScheduler(Constant(0.7), attribute=attribute), max_epochs=1).fit(module, ticks(1))
    assert module.seen == (0.7, 0.7)

    (found,) = trainer_of(MonteCarloDropout(200, seed=0, attribute=attribute)).predict(module, ticks(1))
    # A product of two: 1 / 0.9 with probability 0.81.
    std = (0.81 * 0.19) ** 0.5 / 0.9
    torch.testing.assert_close(found.std.mean(), torch.tensor(std), rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_scripted_dropout_is_out_of_reach_of_a_schedule_but_not_of_sampling(trainer_of):
    class Predicts(Module):
        def predict_step(self, batch, batch_idx):
            return self.body(torch.ones(3, 4))

    module = Predicts(nn.Sequential(torch.jit.script(nn.Dropout(0.5)), nn.Dropout(0.1)))
    with pytest.warns(UserWarning, match=r"'body\.part\.0': torch\.jit\.script turned the rate into a constant, so no"):
        trainer_of(DropoutScheduler(Constant(0.0)), max_epochs=1).fit(module, ticks(1))
    module.body.part[1].p = 0.0

    module.eval()

    (prediction,) = trainer_of(MonteCarloDropout(400, seed=0)).predict(module, ticks(1))

    torch.testing.assert_close(prediction.std, torch.ones(3, 4), rtol=0, atol=0.05)
    assert not module.body.part[0].training


def test_a_rate_among_hyperparameters_is_named(trainer_of):
    class Hyper(Module):
        def __init__(self, rate=0.3):
            super().__init__(nn.Dropout(0.1))
            self.save_hyperparameters()

        def training_step(self, batch, batch_idx):
            functional.dropout(batch[0], self.hparams.rate, self.training)
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match=r"the rate is `self\.hparams\.rate`, so no schedule can set it"):
        trainer_of(DropoutScheduler(Constant(0.5)), max_epochs=1).fit(Hyper(), ticks(1))


def test_a_module_that_does_more_in_training_mode_is_not_put_there_unasked(trainer_of):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.late = 0.5

        def forward(self, inputs):
            outputs = functional.dropout(self.drop(inputs), self.late, self.training)
            if self.training:
                return outputs, inputs
            return outputs

    class Predicts(Module):
        def predict_step(self, batch, batch_idx):
            return self.body(torch.ones(3, 4))

    module = Predicts(Auxiliary())
    with pytest.warns(UserWarning, match=r"'body\.part\.late' .*stays off.*`attribute='late'`|'body\.part' .*'late'"):
        (prediction,) = trainer_of(MonteCarloDropout(400, seed=0)).predict(module, ticks(1))
    torch.testing.assert_close(prediction.std, torch.ones(3, 4), rtol=0, atol=0.05)

    (both,) = trainer_of(MonteCarloDropout(400, seed=0, attribute="late")).predict(module, ticks(1))
    # 4 with a chance of 1/4, else 0: the variance is 4 - 1.
    torch.testing.assert_close(both[0].std, torch.full((3, 4), 3**0.5), rtol=0, atol=0.2)
