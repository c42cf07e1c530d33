"""Monte Carlo dropout: masks are drawn as the rates say, means and spreads are right, and no trace is left."""

import dataclasses
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import MonteCarloDropout
from lightning_reg.ensemble import EnsemblePrediction
from tests.callbacks.dropout.modules import KINDS, Attention, Body

RATE = 0.4


class Model(LightningModule):
    """A layer after dropout; keeps how many rows came with each call."""

    def __init__(self, outputs: int = 2, rate: float = RATE) -> None:
        super().__init__()
        self.dropout = nn.Dropout(rate)
        self.linear = nn.Linear(5, outputs)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.constant_(self.linear.bias, 0.1)
        self.sizes = []

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        return self.linear(self.dropout(inputs))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def test_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("loss", nn.functional.cross_entropy(self(inputs), targets), on_epoch=True, batch_size=len(inputs))


class OneByOne(Model):
    """Takes four rows and no more."""

    def forward(self, inputs):
        if len(inputs) > 4:
            raise RuntimeError
        return super().forward(inputs)


class MixesRows(Model):
    """Treats rows together, so that samples in one batch would change the outcome."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs - outputs.mean(0)


def data(rows: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(12, 5, generator=generator)[:rows], torch.arange(rows) % 2
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def inputs_of(loader: DataLoader) -> torch.Tensor:
    return torch.cat([inputs for inputs, _ in loader])


@pytest.fixture
def predict(trainer_of):
    """Return a function that predicts and returns what each batch gave."""

    def run(callback, model, loader=None, **settings):
        return trainer_of(callback, **settings).predict(model, loader or data())

    return run


def joined(predictions: list[EnsemblePrediction]) -> EnsemblePrediction:
    return EnsemblePrediction(
        *(torch.cat(parts) if parts[0] is not None else None for parts in zip(*predictions, strict=True))
    )


@pytest.mark.parametrize("kind", [Model, OneByOne])
def test_mean_and_spread_agree_with_the_written_distribution(predict, kind):
    model = kind()

    prediction = joined(predict(MonteCarloDropout(4000, seed=0), model))

    inputs, weight = inputs_of(data()), model.linear.weight.detach()
    mean = inputs @ weight.T + model.linear.bias.detach()
    std = (inputs.square() @ weight.square().T * RATE / (1 - RATE)).sqrt()
    error = (prediction.mean - mean) / (std / 4000**0.5)
    assert error.abs().max() < 4
    torch.testing.assert_close(prediction.std, std, rtol=0.06, atol=0)


def test_one_batch_of_all_samples_gives_the_numbers_of_one_by_one(predict):
    batched, looped = Model(), OneByOne()

    in_one_batch = joined(predict(MonteCarloDropout(6, seed=3), batched, data(12)))
    one_by_one = joined(predict(MonteCarloDropout(6, seed=3), looped, data(12)))

    # The first batch is tried both ways.
    assert batched.sizes == [4] * 6 + [24] * 3
    assert looped.sizes == [4] * 18
    torch.testing.assert_close(in_one_batch.mean, one_by_one.mean)
    torch.testing.assert_close(in_one_batch.std, one_by_one.std)


def test_a_model_that_mixes_rows_is_run_one_by_one(predict):
    model = MixesRows()

    predict(MonteCarloDropout(6, seed=3), model)

    assert model.sizes == [4] * 6 + [24] + [4] * 6


def test_a_last_batch_that_is_shorter(predict):
    prediction = joined(predict(MonteCarloDropout(6, seed=3), Model(), data(10)))

    torch.testing.assert_close(prediction.mean[:8], joined(predict(MonteCarloDropout(6, seed=3), Model())).mean[:8])
    assert prediction.mean.shape == (10, 2)


class Predicts(LightningModule):
    """Returns what a module makes of ones."""

    def __init__(self, part: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = Body(part)
        self.shape = shape

    def predict_step(self, batch, batch_idx):
        assert not self.body.training
        return self.body(torch.ones(len(batch[0]) // 4 * self.shape[0], *self.shape[1:]))


@pytest.mark.parametrize("kind", [name for name in KINDS if not KINDS[name].attribute and "None" not in name])
def test_every_kind_of_module_is_active_at_its_rate(trainer_of, kind):
    make, shape, units, keeps_mean, _ = KINDS[kind]
    seen = []

    class Keeps(Predicts):
        def predict_step(self, batch, batch_idx):
            outputs = super().predict_step(batch, batch_idx)
            seen.append(units(outputs))
            return outputs

    model = Keeps(make(), shape)
    (prediction,) = trainer_of(MonteCarloDropout(2, seed=0), limit_predict_batches=1).predict(model, data())

    entries = seen[0][:, 0]
    torch.testing.assert_close(seen[0], entries[:, None].expand_as(seen[0]))
    assert stats.binomtest((entries <= 0).sum().item(), len(entries), 0.1).pvalue > 1e-3
    assert (prediction.std > 0).any()
    assert (prediction.mean > 0).any()
    if keeps_mean:
        assert abs(entries.mean().item() - 1) <= 3.5 * (0.1 / 0.9 / len(entries)) ** 0.5
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_the_fast_path_of_transformers_does_not_bypass_dropout(predict):
    class Transformer(Model):
        def __init__(self):
            super().__init__(rate=0.0)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True), 2)

        def predict_step(self, batch, batch_idx):
            return self.encoder(batch[0][:, None, :4])

    fast = torch.backends.mha.get_fastpath_enabled()
    prediction = joined(predict(MonteCarloDropout(5, seed=0), Transformer()))

    assert (prediction.std > 0).all()
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_only_dropout_is_in_training_mode(predict):
    class Normed(Model):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def predict_step(self, batch, batch_idx):
            assert [name for name, part in self.named_modules() if part.training] == ["dropout"]
            return self(self.norm(batch[0]))

    model = Normed()

    predict(MonteCarloDropout(3, seed=0), model)

    assert model.norm.num_batches_tracked == 0
    torch.testing.assert_close(model.norm.running_mean, torch.zeros(5), rtol=0, atol=0)


def test_a_rate_of_one_drops_everything_and_a_number_may_be_dropped_too(predict):
    class Corners(Model):
        def __init__(self):
            super().__init__()
            self.all = nn.Dropout(1.0)

        def predict_step(self, batch, batch_idx):
            return self(batch[0]) + self.all(batch[0])[:, :2], self.dropout(torch.tensor(1.0))

    (first, scalar), _ = predict(MonteCarloDropout(50, seed=0), Corners())

    assert first.mean.isfinite().all()
    assert scalar.mean.shape == ()
    assert scalar.std > 0


# Seeds and traces


def test_a_seed_fixes_the_masks_and_no_seed_follows_the_global_one(predict):
    def mean(seed):
        return joined(predict(MonteCarloDropout(3, seed=seed), Model())).mean

    torch.testing.assert_close(mean(1), mean(1), rtol=0, atol=0)
    assert not torch.equal(mean(1), mean(2))
    torch.manual_seed(5)
    first = mean(None)
    torch.manual_seed(6)
    other = mean(None)
    torch.manual_seed(5)
    torch.testing.assert_close(mean(None), first, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_without_a_seed_every_run_has_masks_of_its_own(trainer_of):
    callback = MonteCarloDropout(3)
    trainer = trainer_of(callback)

    first, second = (joined(trainer.predict(Model(), data())).mean for _ in range(2))

    assert not torch.equal(first, second)


def test_batches_and_samples_have_masks_of_their_own(predict):
    rows = DataLoader(TensorDataset(torch.ones(8, 5), torch.zeros(8)), batch_size=4)

    prediction = joined(predict(MonteCarloDropout(8, seed=0), Model(rate=0.5), rows))

    assert len(prediction.mean.unique(dim=0)) == 8


@pytest.mark.parametrize("part", [nn.Identity, Attention])
@pytest.mark.parametrize("fails", [False, True])
def test_flags_methods_and_random_states_are_left_as_they_were(trainer_of, part, fails):
    class Failing(Model):
        def __init__(self):
            super().__init__()
            self.part = part()

        def predict_step(self, batch, batch_idx):
            self.part(torch.ones(2, 2))
            if fails and len(self.sizes) > 1:
                raise ZeroDivisionError
            return self(batch[0])

    model = Failing()
    model.linear.eval()
    flags = {name: item.training for name, item in model.named_modules()}
    torch.manual_seed(0)
    iter(data())  # draws a seed for workers; so does `predict`
    state = torch.get_rng_state()
    torch.manual_seed(0)
    trainer = trainer_of(MonteCarloDropout(3, seed=0))
    if fails:
        with pytest.raises(ZeroDivisionError):
            trainer.predict(model, data())
        assert not any(item.training for item in model.modules())  # as `predict` without callbacks leaves them
    else:
        trainer.predict(model, data())
        assert {name: item.training for name, item in model.named_modules()} == flags

    assert torch.equal(torch.get_rng_state(), state)
    assert not {"predict_step", "forward"} & vars(model).keys()
    assert not any("forward" in vars(item) for item in model.modules())


# Results


class Output(NamedTuple):
    logits: torch.Tensor
    ids: torch.Tensor


@dataclasses.dataclass
class Data:
    logits: torch.Tensor
    name: str


def test_outputs_keep_their_form(predict):
    class Nested(Model):
        def predict_step(self, batch, batch_idx):
            logits, ids = self(batch[0]), batch[1]
            return {"named": Output(logits, ids), "list": [logits, "text", None], "data": Data(logits, "x")}

    (first, _) = predict(MonteCarloDropout(3, seed=0), Nested())

    assert isinstance(first["named"], Output)
    torch.testing.assert_close(first["named"].ids, torch.tensor([0, 1, 0, 1]))
    assert first["list"][1:] == ["text", None]
    assert first["data"].name == "x"
    for prediction in (first["named"].logits, first["list"][0], first["data"].logits):
        assert isinstance(prediction, EnsemblePrediction)
        assert prediction.mean.shape == prediction.std.shape == (4, 2)
        assert prediction.entropy is None


@pytest.mark.parametrize("aggregate", ["arithmetic", "geometric"])
def test_logits_become_probabilities(predict, aggregate):
    class Probabilities(Model):
        def predict_step(self, batch, batch_idx):
            return self(batch[0]).softmax(1)

    from_logits = joined(predict(MonteCarloDropout(5, aggregate=aggregate, softmax=True, seed=0), Model()))
    from_probabilities = joined(predict(MonteCarloDropout(5, aggregate=aggregate, seed=0), Probabilities()))

    for name in EnsemblePrediction._fields:
        torch.testing.assert_close(getattr(from_logits, name), getattr(from_probabilities, name))
    torch.testing.assert_close(from_logits.mean.sum(1), torch.ones(8))
    np.testing.assert_allclose(from_logits.entropy, stats.entropy(from_logits.mean, axis=1), rtol=1e-5)
    assert (from_logits.mutual_information > 0).all()


def test_the_geometric_mean_approaches_halved_weights(predict):
    model = Model(rate=0.5)
    # `nn.Dropout` doubles the kept entries, so halved weights correspond to the model.
    expected = torch.softmax(inputs_of(data()) @ model.linear.weight.T + model.linear.bias, 1)

    prediction = joined(predict(MonteCarloDropout(4000, aggregate="geometric", softmax=True, seed=0), model))

    torch.testing.assert_close(prediction.mean, expected.detach(), rtol=0, atol=0.05)


def test_a_step_without_batch_idx_and_several_dataloaders(predict, trainer_of):
    class Short(Model):
        def predict_step(self, batch):
            return self(batch[0])

    class Several(Model):
        def predict_step(self, batch, batch_idx, dataloader_idx):
            return self(batch[0]) + 100 * dataloader_idx

    short = joined(predict(MonteCarloDropout(3, seed=0), Short()))
    one, two = trainer_of(MonteCarloDropout(3, seed=0)).predict(Several(), [data(), data()])

    torch.testing.assert_close(short.mean, joined(one).mean)
    assert (joined(two).mean - joined(one).mean > 50).all()


# In `test`


def test_the_test_step_measures_the_ensemble(trainer_of, predict):
    model = Model()
    callback = MonteCarloDropout(5, softmax=True, seed=0)
    prediction = joined(predict(callback, model))

    (metrics,) = trainer_of(callback).test(model, data(), verbose=False)

    targets = torch.arange(8) % 2
    likelihood = prediction.mean[torch.arange(8), targets]
    assert metrics["loss"] == pytest.approx(-likelihood.log().mean().item(), rel=1e-5)
    for name in ("std", "entropy", "mutual_information"):
        assert metrics[f"reg/mc_dropout_{name}"] == pytest.approx(getattr(prediction, name).mean().item(), rel=1e-4)
    assert "forward" not in vars(model)


def test_in_test_outputs_keep_their_form_too(trainer_of):
    class Named(Model):
        def forward(self, inputs):
            return {"logits": super().forward(inputs), "rows": torch.arange(len(inputs))}

        def test_step(self, batch, batch_idx):
            outputs = self(batch[0])
            assert outputs["logits"].shape == (4, 2)
            torch.testing.assert_close(outputs["rows"], torch.arange(4))

    trainer_of(MonteCarloDropout(3, seed=0)).test(Named(), data(), verbose=False)


def test_a_test_step_that_bypasses_forward_is_refused(trainer_of):
    class Past(Model):
        def test_step(self, batch, batch_idx):
            self.linear(self.dropout(batch[0]))

    model = Past()
    with pytest.raises(MisconfigurationException, match="`test_step` did not call it"):
        trainer_of(MonteCarloDropout(3, seed=0)).test(model, data(), verbose=False)

    assert "forward" not in vars(model)


@pytest.mark.parametrize("part", ["module", "submodule"])
def test_a_compiled_model_has_active_dropout_too(trainer_of, part):
    torch._dynamo.reset()

    class Plain(Model):
        def forward(self, inputs):
            return self.linear(self.dropout(inputs))

    def prediction(compiled):
        model = Plain()
        if compiled and part == "submodule":
            model.dropout = torch.compile(model.dropout, backend="aot_eager", fullgraph=True)
        whole = torch.compile(model, backend="aot_eager") if compiled and part == "module" else model
        plain = trainer_of().predict(whole, data())  # what is compiled now knows no dropout
        found = joined(trainer_of(MonteCarloDropout(5, seed=0)).predict(whole, data()))
        torch.testing.assert_close(trainer_of().predict(whole, data()), plain, rtol=0, atol=0)
        return found

    torch.testing.assert_close(prediction(compiled=True), prediction(compiled=False))


@pytest.mark.parametrize("step", ["test", "validate"])
def test_validation_measures_the_ensemble_as_testing_does(trainer_of, predict, step):
    class Both(Model):
        def validation_step(self, batch, batch_idx):
            self.test_step(batch, batch_idx)

    model = Both()
    callback = MonteCarloDropout(5, softmax=True, seed=0)
    prediction = joined(predict(callback, model))

    (metrics,) = getattr(trainer_of(callback), step)(model, data(), verbose=False)

    likelihood = prediction.mean[torch.arange(8), torch.arange(8) % 2]
    assert metrics["loss"] == pytest.approx(-likelihood.log().mean().item(), rel=1e-5)
    assert metrics["reg/mc_dropout_std"] == pytest.approx(prediction.std.mean().item(), rel=1e-4)
    assert "forward" not in vars(model)


def test_validation_during_training_does_not_change(trainer_of):
    class Trains(Model):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum()

        def validation_step(self, batch, batch_idx):
            assert "forward" not in vars(self)
            torch.testing.assert_close(self(batch[0]), self.linear(batch[0]), rtol=0, atol=0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer_of(MonteCarloDropout(3, seed=0), max_epochs=1).fit(Trains(), data(), data())


def test_a_validation_step_that_bypasses_forward_is_refused(trainer_of):
    class Past(Model):
        def validation_step(self, batch, batch_idx):
            self.linear(self.dropout(batch[0]))

    with pytest.raises(MisconfigurationException, match="`validation_step` did not call it"):
        trainer_of(MonteCarloDropout(3, seed=0)).validate(Past(), data(), verbose=False)


# Chance proves nothing


def test_masks_that_let_everything_through_are_allowed(predict):
    rows = DataLoader(TensorDataset(torch.ones(20, 5), torch.zeros(20)), batch_size=1)

    runs = [predict(MonteCarloDropout(3, seed=seed), Model(rate=0.01), rows) for seed in range(4)]

    # Three masks of five entries lose nothing with a probability of 0.99^15 = 0.86.
    assert any((first.std == 0).all() for first, *_ in runs)
    assert all(any((prediction.std > 0).any() for prediction in predictions) for predictions in runs)


def test_a_head_of_zeros_warns_at_the_end_and_is_not_refused(trainer_of):
    model = Model()
    nn.init.zeros_(model.linear.weight)

    with pytest.warns(UserWarning, match="drew dropout masks, but no prediction of this run varied"):
        predictions = trainer_of(MonteCarloDropout(3, seed=0)).predict(model, data())

    assert all((prediction.std == 0).all() for prediction in predictions)


# Errors


def test_dead_dropout_is_an_error_and_not_a_spread_of_zero(predict):
    class Functional(Model):
        def predict_step(self, batch, batch_idx):
            return self.linear(nn.functional.dropout(batch[0], 0.5, self.training))

    with (
        pytest.raises(MisconfigurationException, match=r"do not vary over dropout masks.*F\.dropout"),
        pytest.warns(UserWarning, match=r"dropout\(batch\[0\], 0.5, self.training\): this dropout stays off"),
    ):
        predict(MonteCarloDropout(3), Functional())


def test_rates_of_zero_are_refused(predict):
    with pytest.raises(MisconfigurationException, match="finds no dropout in Model: all rates are 0"):
        predict(MonteCarloDropout(3), Model(rate=0.0))


def test_the_message_says_that_hyperparameters_set_a_rate_to_0(trainer_of, tmp_path):
    class Saves(Model):
        def __init__(self, width=2, drop=0.4, net=None):
            super().__init__(width, drop)
            self.save_hyperparameters()

    trainer = trainer_of()
    trainer.strategy.connect(Saves(drop=0.0, net={"attn_dropout": 0}))
    trainer.save_checkpoint(tmp_path / "model.ckpt")

    with pytest.raises(
        MisconfigurationException,
        match=r"all rates are 0, set by its hyperparameters `drop=0\.0`, `net\.attn_dropout=0`.*load_from_checkpoint",
    ):
        trainer_of(MonteCarloDropout(3)).predict(Saves.load_from_checkpoint(tmp_path / "model.ckpt"), data())


def test_the_message_says_that_a_configuration_sets_a_rate_to_0(predict):
    model = Model(rate=0.0)
    model.linear.config = SimpleNamespace(hidden_dropout=0.0, width=0)

    with pytest.raises(
        MisconfigurationException, match=r"all rates are 0, set by `linear\.config\.hidden_dropout=0\.0`\. "
    ):
        predict(MonteCarloDropout(3), model)


def test_a_model_without_dropout_is_refused(predict):
    model = Model()
    model.dropout = nn.Identity()

    with pytest.raises(MisconfigurationException, match="finds no dropout in Model: no module has a rate"):
        predict(MonteCarloDropout(3), model)


def test_classes_that_vary_are_refused(predict):
    class Classes(Model):
        def predict_step(self, batch, batch_idx):
            return self(batch[0]).argmax(1)

    with pytest.raises(
        MisconfigurationException, match=r"can't average the torch.int64 values of this model, which vary over masks"
    ):
        predict(MonteCarloDropout(30, seed=0), Classes())


def test_the_geometric_mean_of_logits_is_refused(predict):
    with pytest.raises(ValueError, match="needs class probabilities"):
        predict(MonteCarloDropout(3, aggregate="geometric"), Model())


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_a_step_that_takes_the_iterator_is_refused(predict):
    class Iterates(Model):
        def predict_step(self, dataloader_iter):
            return self(next(dataloader_iter)[0][0])

    with pytest.raises(MisconfigurationException, match="takes a batch, not `dataloader_iter`"):
        predict(MonteCarloDropout(3), Iterates())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 1}, ValueError, "`num_samples` must be an int >= 2, got 1"),
        ({"num_samples": 2.0}, TypeError, "`num_samples` must be an int"),
        ({"aggregate": "median"}, ValueError, "`aggregate` must be one of 'arithmetic', 'geometric', got 'median'"),
        ({"seed": -1}, ValueError, "`seed` must be an int >= 0"),
        ({"softmax": 1}, TypeError, "`softmax` must be True or False"),
        ({"dim": 1.0}, TypeError, "`dim` must be an int"),
        ({"attribute": [3]}, TypeError, "`attribute` must be the name of an attribute"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MonteCarloDropout(**arguments)
