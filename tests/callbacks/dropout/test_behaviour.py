"""A pass with all rates at 0 shows what is random besides; asking leaves no trace."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_reg import Constant, DropoutScheduler, MonteCarloDropout
from tests.callbacks.dropout.modules import Module, ticks
from tests.models import Regressor, loader


class Hidden(nn.Module):
    """Drops by numbers of its own, of a class that nobody would take for dropout."""

    def __init__(self, draw=torch.rand_like):
        super().__init__()
        self.amount = 0.25
        self.draw = draw

    def forward(self, inputs):
        return inputs * (self.draw(inputs) >= self.amount) if self.training else inputs


def python_draw(inputs):
    return inputs.new_tensor([random.random() for _ in range(inputs.size(-1))])


def numpy_draw(inputs):
    return inputs.new_tensor(np.random.rand(inputs.size(-1)))


def bernoulli_draw(inputs):
    return torch.bernoulli(torch.full_like(inputs, 0.5))


@pytest.mark.parametrize("draw", [torch.rand_like, python_draw, numpy_draw, bernoulli_draw])
def test_modules_that_are_random_at_rates_of_0_are_named_with_the_attribute_that_would_reach_them(trainer_of, draw):
    module = Module(nn.Sequential(nn.Dropout(0.5), Hidden(draw)), (3, 20))

    with pytest.warns(UserWarning, match="is random in training") as warnings:
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(1))

    (message,) = [text for item in warnings if "is random" in (text := str(item.message))]
    assert message.startswith("'body.part.1' (Hidden) is random in training although all known dropout rates are 0")
    assert "`attribute='amount'`" in message
    trainer_of(DropoutScheduler(Constant(0.3), attribute="amount"), max_epochs=1).fit(module, ticks(1))


def test_monte_carlo_dropout_asks_too(trainer_of):
    class Predicts(Module):
        def predict_step(self, batch, batch_idx):
            return self.body(torch.ones(3, 20))

    module = Predicts(nn.Sequential(nn.Dropout(0.5), Hidden())).eval()

    with pytest.warns(UserWarning, match=r"'body\.part\.1' \(Hidden\) is random .* stays off .*`attribute='amount'`"):
        trainer_of(MonteCarloDropout(3, seed=0)).predict(module, ticks(1))

    assert not any(part.training for part in module.modules())
    trainer_of(MonteCarloDropout(3, seed=0, attribute="amount")).predict(module, ticks(1))


def test_it_shows_behind_a_head_that_is_zero(trainer_of):
    head = nn.Linear(20, 2)
    nn.init.zeros_(head.weight)

    with pytest.warns(UserWarning, match=r"'body\.part\.1' \(Hidden\) is random"):
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(
            Module(nn.Sequential(nn.Dropout(0.5), Hidden(), head), (3, 20)), ticks(1)
        )


class Skips(nn.Module):
    """LayerDrop: whole layers are left out."""

    def __init__(self, layerdrop):
        super().__init__()
        self.layerdrop = layerdrop
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)) for _ in range(20))

    def forward(self, inputs):
        for layer in self.layers:
            if not self.training or torch.rand([]) >= self.layerdrop:
                inputs = layer(inputs)
        return inputs


def test_layers_that_are_skipped_at_random_are_named(trainer_of):
    with pytest.warns(UserWarning, match=r"'body\.part' \(Skips\) is random .*`attribute='layerdrop'`"):
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(Module(Skips(0.5)), ticks(1))


class Seldom(nn.Module):
    """Drops rows with a small probability, with one number for each; `draw` returns 1 where a row is dropped."""

    def __init__(self, draw, rate=0.01):
        super().__init__()
        self.draw = draw
        self.rate = rate

    def forward(self, inputs):
        if not self.training:
            return inputs
        return inputs * (1 - self.draw(inputs.new_empty(len(inputs), 1), self.rate)) / (1 - self.rate)


def by_rand(rows, rate):
    return (torch.rand(rows.shape, dtype=rows.dtype) < rate).to(rows)


def by_floor(rows, rate):
    return 1 - torch.floor(1 - rate + torch.rand_like(rows))  # as in timm's first stochastic depth


def by_uniform(rows, rate):
    return (rows.uniform_(-1, 1) > 1 - 2 * rate).to(rows)


def by_bernoulli(rows, rate):
    return 1 - rows.bernoulli_(1 - rate)


def by_bernoulli_of_tensor(rows, rate):
    return torch.bernoulli(torch.full_like(rows, rate))


draws = pytest.mark.parametrize("draw", [by_rand, by_floor, by_uniform, by_bernoulli, by_bernoulli_of_tensor])


@draws
def test_what_is_dropped_seldom_is_found_whatever_the_seeds(trainer_of, draw):
    module = Module(nn.Sequential(nn.Dropout(0.5), Seldom(draw)), (3, 20))

    with pytest.warns(UserWarning, match=r"'body\.part\.1' \(Seldom\) is random .*`attribute='rate'`"):
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(1))


@draws
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_draws_numbers_and_drops_nothing_is_not_random(trainer_of, draw, dtype):
    module = Module(nn.Sequential(nn.Dropout(0.5), Seldom(draw, rate=0.0)).to(dtype), (3, 20))

    trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(1))  # a warning is an error


class Labels(nn.Module):
    """Drops labels of a conditional diffusion, for guidance without a classifier."""

    def __init__(self):
        super().__init__()
        self.dropout_share = 0.02
        self.table = nn.Embedding(3, 20)

    def forward(self, labels):
        drop = torch.rand(len(labels)) < self.dropout_share if self.training else labels < 0
        return self.table(torch.where(drop, 2, labels))


def test_dropped_labels_are_found_in_the_module_that_drops_them(trainer_of):
    class Conditional(Module):
        def __init__(self):
            super().__init__(nn.Dropout(0.5), (2, 20))
            self.labels = Labels()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.labels(torch.tensor([0, 1])).square().mean()

    with pytest.warns(UserWarning, match=r"'labels' \(Labels\) is random .*`attribute='dropout_share'`"):
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(Conditional(), ticks(1))


def test_a_loop_that_draws_until_a_number_fits_comes_to_an_end(trainer_of):
    class Rejects(nn.Module):
        def forward(self, inputs):
            while torch.rand([]) < 0.5 or torch.rand([]) > 0.9:
                pass
            return inputs

    module = Module(nn.Sequential(nn.Dropout(0.5), Rejects()), (3, 20))

    trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(1))


def test_a_model_that_fails_where_all_is_dropped_is_asked_with_usual_numbers(trainer_of):
    class Keeps(Hidden):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            if not outputs.any():
                raise ValueError
            return outputs

    module = Module(nn.Sequential(nn.Dropout(0.5), Keeps()), (3, 20))

    with pytest.warns(UserWarning, match=r"'body\.part\.1' \(Keeps\) is random"):
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(1))


class Encoder(nn.Module):
    """Of a variational autoencoder."""

    def forward(self, inputs):
        return inputs + torch.randn_like(inputs)


class Diffusion(Module):
    """Draws its times in the step."""

    def training_step(self, batch, batch_idx):
        return self.body(torch.rand(len(batch[0]), 2) * torch.randint(1, 10, (2,))).sum()


@pytest.mark.parametrize(
    "module",
    [
        Module(Skips(0.0)),
        Module(nn.Sequential(Encoder(), nn.Dropout(0.1))),
        Diffusion(nn.Dropout(0.1)),
        Module(nn.Sequential(nn.RReLU(), nn.Dropout(0.1))),
    ],
    ids=["numbers that are not used", "variational autoencoder", "diffusion", "random activation"],
)
def test_randomness_other_than_dropout_does_not_warn(trainer_of, module):
    trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(2))


class Traceable(Regressor):
    """Changes whatever a step may change: statistics, buffers, attributes, lists, weights, generators, the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.embedding = nn.Embedding(3, 2, max_norm=0.1)
        self.register_buffer("queue", torch.zeros(4))
        self.count, self.losses, self.own = 0, [], torch.Generator().manual_seed(3)
        self.asks = []

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        inputs.mul_(1 + torch.rand((), generator=self.own)).add_(random.random() + np.random.rand() + torch.rand(()))
        self.queue[self.count % 4] += 1
        self.queue = self.queue.clone()
        self.count += 1
        loss = (
            nn.functional.mse_loss(self.network(inputs), targets) + self.embedding(torch.tensor([self.count % 3])).sum()
        )
        self.losses.append(loss.detach())
        self.asks.append(torch.is_grad_enabled())
        self.log("loss", loss)
        return loss


def test_training_is_the_same_bit_by_bit_whether_it_is_asked_or_not(trainer_of, monkeypatch):
    def trained(asks):
        passes = []
        if not asks:
            monkeypatch.setattr("lightning_reg.callbacks.dropout.scheduler.ask_training_step", lambda *_: None)
        else:
            step = Traceable.training_step
            monkeypatch.setattr(Traceable, "training_step", lambda self, *args: passes.append(1) or step(self, *args))
        module = Traceable()
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, loader())
        monkeypatch.undo()
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), module.own.get_state()
        return module, states, len(passes)

    (asked, states, passes), (plain, expected, _) = trained(asks=True), trained(asks=False)

    assert passes == 7 + 2
    assert asked.count == plain.count == 7
    assert asked.asks == plain.asks == [True] * 7
    for name, value in plain.state_dict().items():
        assert torch.equal(asked.state_dict()[name], value), name
    assert torch.equal(torch.stack(asked.losses), torch.stack(plain.losses))
    for one, other in zip(states, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in asked.modules())


def test_nothing_is_logged_by_the_question(trainer_of, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    class Logs(Traceable):
        def training_step(self, batch, batch_idx):
            self.logger.experiment.log_metrics({"own": float(self.count)}, self.count)
            return super().training_step(batch, batch_idx)

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer_of(DropoutScheduler(Constant(0.3)), max_steps=3, max_epochs=1, logger=logger).fit(Logs(), loader())

    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("own")
    assert [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]] == [0, 1, 2]


def test_a_step_that_cannot_be_tried_is_left_alone(trainer_of, caplog):
    class Once(Module):
        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    module = Once(nn.Dropout(0.1))
    with caplog.at_level("INFO"):
        trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(2))

    assert "search for further dropout failed, and is skipped: ZeroDivisionError()" in caplog.text
    assert len(module.outputs) == 2


def test_manual_optimization_is_not_asked(trainer_of):
    class Manual(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.layers = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.1))
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            assert torch.is_grad_enabled()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Manual()
    trainer_of(DropoutScheduler(Constant(0.3)), max_epochs=1).fit(module, ticks(3))
    assert module.steps == 3
