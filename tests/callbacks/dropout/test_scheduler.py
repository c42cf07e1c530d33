"""Which rates a dropout scheduler sets and when, what it refuses, logs and says, and that it leaves no trace."""

import logging

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_reg import Constant, DropoutScheduler, Linear, Piecewise, Select, Sequence, early_dropout, late_dropout
from lightning_reg.schedules import Schedule
from tests.callbacks.dropout.modules import Attention, DropPath, FusedAttention, HfAttention, Noise, Recurrent
from tests.models import Gan, Regressor, loader


class Layers(nn.Module):
    """Three rates in order, the middle one under two names, and nothing random in the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Dropout(0.1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))])
        self.again = self.blocks[0][1]
        self.last = DropPath(0.4)
        self.plain = nn.Linear(2, 2)

    def rates(self):
        return self.first.p, self.again.p, self.last.drop_prob


class Module(Regressor):
    """Keeps the rates of its layers at every training step."""

    def __init__(self) -> None:
        super().__init__()
        del self.network.dropout
        self.layers = Layers()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.layers.rates())
        return super().training_step(batch, batch_idx)


@pytest.fixture
def seen(trainer_of):
    """Return a function that trains with schedulers and returns the rates of the layers at every step."""

    def run(*schedulers, data=None, **settings):
        module = Module()
        trainer_of(*schedulers, **({"max_epochs": 1} | settings)).fit(module, data or loader())
        assert module.layers.rates() == (0.1, 0.2, 0.4)
        return module.seen

    return run


def test_every_rate_follows_one_schedule_by_default(seen):
    rates = seen(DropoutScheduler(Linear(0.0, 0.7, 1.0)))

    assert rates == [pytest.approx((0.1 * tick,) * 3) for tick in range(7)]


def test_dropout_is_held_off_at_first_in_one_line(seen):
    assert [first for first, *_ in seen(DropoutScheduler(late_dropout(0.5, 3)))] == [0, 0, 0, 0.5, 0.5, 0.5, 0.5]


def test_each_layer_keeps_its_own_base_rate(seen):
    rates = seen(DropoutScheduler(Piecewise((0.5, 2.0), (3,)), scale=True))

    assert rates[0] == pytest.approx((0.05, 0.1, 0.2))
    assert rates[-1] == pytest.approx((0.2, 0.4, 0.8))


def test_stochastic_depth_grows_linearly_over_blocks_as_huang_et_al_write_it(trainer_of):
    class Deep(Regressor):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"drop_path1": DropPath(), "drop_path2": DropPath()}) for _ in range(4)
            )

        def training_step(self, batch, batch_idx):
            self.rates = [path.drop_prob for block in self.blocks for path in block.values()]
            return super().training_step(batch, batch_idx)

    module = Deep()
    trainer_of(DropoutScheduler(Constant(0.5), scale="depth", select="blocks.*"), max_epochs=1).fit(module, loader())

    # The survival probability of block l is 1 - l/L (1 - p_L), with p_L = 0.5.
    survival = [1 - block / 4 * (1 - 0.5) for block in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert module.rates == pytest.approx([1 - probability for probability in survival])


def test_two_schedulers_share_a_model(seen):
    rates = seen(
        DropoutScheduler(Constant(0.3), select="layers.first"),
        DropoutScheduler(early_dropout(0.6, 6), select=Select(exclude="layers.first")),
    )

    assert rates == [pytest.approx((0.3, 0.6 - 0.1 * tick, 0.6 - 0.1 * tick)) for tick in range(7)]


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ("layers.blocks.*", (False, True, False)),
        ("*.again", (False, True, False)),  # the other name of the same module
        (["layers.first", "*.last"], (True, False, True)),
        (Select(module_types=[nn.Dropout]), (True, True, False)),
        (Select(include="layers.*", exclude=["*.again"]), (True, False, True)),
    ],
    ids=repr,
)
def test_modules_are_chosen_by_name_and_by_type(seen, select, chosen):
    (rates, *_) = seen(DropoutScheduler(Constant(0.7), select=select))

    assert rates == tuple(0.7 if is_in else built for is_in, built in zip(chosen, (0.1, 0.2, 0.4), strict=True))


def test_names_are_the_users_although_a_part_is_compiled(trainer_of):
    module = Module()
    module.layers.blocks[0] = torch.compile(module.layers.blocks[0], backend="eager")
    module.layers.first = torch.compile(module.layers.first, backend="eager")
    scheduler = DropoutScheduler(Constant(0.7), select=["layers.blocks.0.1", "layers.first"])

    trainer_of(scheduler, max_epochs=1).fit(module, loader())

    assert module.seen[0] == (0.7, 0.7, 0.4)


@pytest.mark.parametrize(
    ("part", "attribute", "rate"),
    [
        (Attention, None, lambda part: part.attention.dropout),
        (lambda: Recurrent(nn.LSTM), None, lambda part: part.recurrent.dropout),
        (HfAttention, None, lambda part: part.attention_dropout),
        (FusedAttention, None, lambda part: part.attn_drop.p),
        (lambda: DropPath(None), None, lambda part: part.drop_prob),
        (Noise, "noise_rate", lambda part: part.noise_rate),
        (Noise, ["noise_rate"], lambda part: part.noise_rate),
    ],
)
def test_a_rate_is_back_after_an_exception(trainer_of, part, attribute, rate):
    class Failing(Regressor):
        def __init__(self):
            super().__init__()
            self.part = part()

        def on_before_optimizer_step(self, optimizer):
            self.in_training = rate(self.part)
            raise ZeroDivisionError

    module = Failing()
    built = rate(module.part)
    with pytest.raises(ZeroDivisionError):
        trainer_of(DropoutScheduler(Constant(0.7), attribute=attribute)).fit(module, loader())

    assert module.in_training == 0.7
    assert rate(module.part) == built
    assert not any("forward" in vars(item) for item in module.modules())


def test_a_forward_of_the_instance_stays_in_use_and_is_given_back(trainer_of):
    module = Module()
    forward = module.layers.first.forward
    module.layers.first.forward = mine = lambda inputs: forward(inputs)

    trainer_of(DropoutScheduler(Constant(0.7)), max_epochs=1).fit(module, loader())

    assert vars(module.layers.first)["forward"] is mine


def test_evaluation_does_not_change(trainer_of):
    class Evaluated(Module):
        def validation_step(self, batch, batch_idx):
            inputs = torch.ones(3, 2)
            for layer in (self.layers.first, self.layers.again, self.layers.last):
                torch.testing.assert_close(layer(inputs), inputs, rtol=0, atol=0)

    module = Evaluated()
    trainer = trainer_of(DropoutScheduler(Constant(0.7)))

    trainer.fit(module, loader(), loader())
    trainer.validate(module, loader())
    assert module.layers.rates() == (0.1, 0.2, 0.4)


# Ticks


@pytest.mark.parametrize(
    ("settings", "ticks"),
    [
        ({"max_epochs": 2}, [*range(14)]),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 5]),
        ({"max_epochs": 9, "max_steps": 4, "accumulate_grad_batches": 3}, [0, 0, 0, 1, 1, 1, 2, 3, 3, 3]),
    ],
)
def test_a_step_is_an_optimizer_step(seen, settings, ticks):
    total = settings.get("max_steps", ticks[-1] + 1)

    rates = seen(DropoutScheduler(Linear(0.0, 0.8, 1.0)), **settings)

    assert [first for first, *_ in rates] == pytest.approx([0.8 * tick / total for tick in ticks])


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"max_epochs": 4}, 4),
        ({"max_epochs": 4, "max_steps": 12}, 2),
        ({"max_epochs": -1, "max_steps": 15}, 3),
        ({"max_epochs": 9, "max_steps": 9, "accumulate_grad_batches": 3}, 3),
        ({"max_epochs": 9, "max_steps": 13, "callbacks": {1: 7, 2: 4}}, 5),  # 7, 1, 2, 2 and 1 steps
    ],
)
def test_an_epoch_is_an_epoch_and_shares_are_of_all_of_them(seen, settings, total):
    settings = dict(settings)
    others = [GradientAccumulationScheduler(settings.pop("callbacks"))] if "callbacks" in settings else []

    rates = seen(DropoutScheduler(Linear(0.0, 0.8, 1.0), interval="epoch"), *others, **settings)

    firsts = [first for first, *_ in rates]
    assert firsts == pytest.approx([0.8 * (batch // 7) / total for batch in range(len(firsts))])
    assert len(firsts) > 7 * (total - 1)


def test_in_manual_optimization_a_step_is_a_batch(trainer_of):
    class Dropping(Gan):
        def __init__(self):
            super().__init__()
            self.critic.append(nn.Dropout(0.1))
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append(self.critic[-1].p)
            super().training_step(batch, batch_idx)

    module = Dropping()
    trainer_of(DropoutScheduler(Linear(0.0, 0.7, 1.0)), max_epochs=1).fit(module, loader())

    assert module.seen == pytest.approx([0.1 * tick for tick in range(7)])


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": 0.5}, TypeError, "`schedule` must be a schedule or a callable.*Constant"),
        ({"schedule": Constant}, TypeError, "`schedule` must be a schedule or a callable"),
        ({"select": 3}, TypeError, "globs?"),
        ({"select": Select(min_ndim=1)}, ValueError, "`min_ndim` must be left out of a `select`"),
        ({"attribute": [3]}, TypeError, "`attribute` must be the name"),
        ({"scale": "width"}, ValueError, "`scale` must be True, False or 'depth', got 'width'"),
        ({"interval": "batch"}, ValueError, "`interval` must be one of 'step', 'epoch', got 'batch'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        DropoutScheduler(**({"schedule": Constant(0.5)} | arguments))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DropoutScheduler(Constant(1.0)), r"`schedule` must give dropout rates in \[0, 1\), got 1 for 'layers.first'"),
        (DropoutScheduler(Linear(0.1, -0.1, 1.0)), "got -0.0"),
        (DropoutScheduler(Linear(0.0, 1.2, 6)), "got 1.2 for 'layers.first' within this run"),
        (DropoutScheduler(Piecewise((0.0, 1.5), (3,))), "got 1.5"),
        (DropoutScheduler(Sequence((Constant(0.0), Linear(0.0, 2.0, 2)), (3,))), "got 2"),
        (DropoutScheduler(Constant(3.0), scale=True), "got 1.2 for 'layers.last'"),
    ],
    ids=repr,
)
def test_a_schedule_that_leaves_the_rates_is_refused_before_training(seen, trainer_of, scheduler, message):
    module = Module()

    with pytest.raises(ValueError, match=message):
        trainer_of(scheduler, max_epochs=1).fit(module, loader())

    assert not module.seen
    assert module.layers.rates() == (0.1, 0.2, 0.4)


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(0.0, 2.0, 20),  # would leave the rates at tick 10, after the end
        Piecewise((0.5, 1.5), (7,)),
        Sequence((Constant(0.0), Linear(0.0, 2.0, 10)), (3,)),
        Sequence((Constant(0.0), lambda tick: 0.5), (3,)),
    ],
    ids=["ramp", "pieces", "ramp after a constant", "function after a constant"],
)
def test_only_ticks_of_this_run_count(seen, schedule):
    assert len(seen(DropoutScheduler(schedule))) == 7


@pytest.mark.parametrize("schedule", [lambda tick: 0.5 * tick, Sequence((lambda tick: 0.5 * tick,), ())])
def test_a_function_that_leaves_the_rates_is_refused_at_the_tick(seen, schedule):
    with pytest.raises(
        ValueError, match=r"`schedule\(2\)` must give dropout rates in \[0, 1\), got 1 for 'layers.first'"
    ):
        seen(DropoutScheduler(schedule))


def test_a_schedule_of_the_users_own_is_checked_at_the_tick(seen):
    class Steep(Schedule):
        def __call__(self, tick):
            return 0.3 * tick

    with pytest.raises(ValueError, match=r"`schedule\(4\)` must give dropout rates"):
        seen(DropoutScheduler(Steep()))


def test_a_function_that_returns_no_number_is_refused(seen):
    with pytest.raises(TypeError, match=r"`schedule\(0\)` must be a number"):
        seen(DropoutScheduler(lambda tick: torch.zeros(())))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            DropoutScheduler(Constant(0.5), select="layer.first"),
            "matches no module with a dropout rate. Nearest names: lay",
        ),
        (
            DropoutScheduler(Constant(0.5), select="layers.plain"),
            "matches 1 modules, but no module with a dropout rate",
        ),
        (DropoutScheduler(Constant(0.5), select=Select(exclude="*")), "chooses none of 3. layers.first: excluded by"),
        (
            DropoutScheduler(Constant(0.5), select=Select(module_types=[nn.LSTM])),
            "LSTM is no module with a dropout rate",
        ),
        (DropoutScheduler(Constant(0.5), attribute="rate"), "'rate' is a number in no module.*drop_prob.*p"),
    ],
    ids=repr,
)
def test_a_choice_without_effect_is_refused(seen, scheduler, message):
    with pytest.raises(ValueError, match=message):
        seen(scheduler)


def test_a_model_without_dropout_is_refused(fit):
    module = Regressor()
    del module.network.dropout

    with pytest.raises(ValueError, match="Regressor has no dropout that can be scheduled"):
        fit(DropoutScheduler(Constant(0.5)), module=module)


def test_a_recurrent_layer_alone_has_no_dropout(fit):
    module = Regressor()
    del module.network.dropout
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        module.recurrent = nn.LSTM(2, 2, dropout=0.5)

    with pytest.raises(ValueError, match="no dropout that can be scheduled"):
        fit(DropoutScheduler(Constant(0.5)), module=module)


def test_base_rates_of_zero_are_refused_with_scale(fit):
    module = Regressor()
    module.network.dropout = nn.Dropout(0.0)

    with pytest.raises(ValueError, match="all 1 of them are 0"):
        fit(DropoutScheduler(Constant(0.5), scale=True), module=module)


def test_two_schedulers_of_one_rate_are_refused(trainer_of):
    module = Module()

    with pytest.raises(MisconfigurationException, match=r"Two DropoutSchedulers set the rate of 'layers\.first'"):
        trainer_of(DropoutScheduler(Constant(0.5)), DropoutScheduler(Constant(0.5), select="*first")).fit(
            module, loader()
        )

    assert module.layers.rates() == (0.1, 0.2, 0.4)


def test_one_scheduler_twice_is_refused(seen):
    scheduler = DropoutScheduler(Constant(0.5))

    with pytest.raises(MisconfigurationException, match="it is there 2 times"):
        seen(scheduler, scheduler)


def test_a_share_of_an_endless_run_is_refused(seen):
    with pytest.raises(ValueError, match="this run has no known length"):
        seen(DropoutScheduler(Linear(0.0, 0.5, 1.0), interval="epoch"), max_epochs=-1)


# Dropout that no module shows


def test_dropout_in_code_warns_and_dropout_of_an_attribute_is_set(fit):
    class Functional(Regressor):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.1)
            self.rate = 0.1
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append(self.rate)
            nn.functional.dropout(batch[0], 0.0)
            nn.functional.dropout(batch[0], self.rate, self.training)
            self.dropout(nn.functional.dropout(batch[0]))
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="functional.dropout") as warnings:
        fit(DropoutScheduler(Constant(0.5)), module=(module := Functional()))

    (message,) = [text for warning in warnings if "functional.dropout(" in (text := str(warning.message))]
    assert "nn.functional.dropout(batch[0]): the rate is in the code, so no schedule can set it" in message
    assert module.seen == [0.5] * 14
    assert module.rate == 0.1


# Logs and messages


def test_the_mean_rate_is_logged_and_each_one_where_they_differ(trainer_of, tmp_path):
    logger = TensorBoardLogger(tmp_path, version=0)
    trainer = trainer_of(
        DropoutScheduler(Linear(0.0, 0.7, 1.0), select="layers.first"),
        DropoutScheduler(Constant(0.2), select=["*.again", "*.last"]),
        max_epochs=2,
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        logger=logger,
    )

    trainer.fit(Module(), loader())

    events = EventAccumulator(logger.log_dir).Reload()

    def values(tag):
        return [(event.step, event.value) for event in events.Scalars(tag)]

    # Eight steps; steps 1, 3, 5 and 7 are logged.
    first = [(step, pytest.approx(0.7 * step / 8)) for step in (1, 3, 5, 7)]
    assert values("reg.dropout/layers.first") == first
    assert values("reg.dropout/layers.last") == [(step, pytest.approx(0.2)) for step in (1, 3, 5, 7)]
    assert values("reg/dropout") == [(step, pytest.approx((0.7 * step / 8 + 0.4) / 3)) for step in (1, 3, 5, 7)]
    assert trainer.callback_metrics["reg/dropout"].item() == pytest.approx((0.7 * 7 / 8 + 0.4) / 3)


def test_one_number_is_logged_where_all_rates_are_equal(trainer_of, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer_of(DropoutScheduler(Constant(0.2)), max_epochs=1, logger=logger).fit(Module(), loader())

    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "reg/dropout" in header
    assert "reg.dropout" not in header


def test_nothing_is_logged_where_nothing_may_be(trainer_of):
    class Silent(Module):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    trainer = trainer_of(
        DropoutScheduler(Constant(0.2)), max_epochs=1, barebones=True, logger=None, log_every_n_steps=None
    )
    trainer.fit(Silent(), loader())

    assert "reg/dropout" not in trainer.callback_metrics


def test_a_table_says_what_happens_to_each_rate(seen, caplog):
    with caplog.at_level(logging.INFO):
        seen(
            DropoutScheduler(Linear(0.0, 0.5, 1.0), scale="depth", select=["*.first", "*.again"]),
            DropoutScheduler(constant_half, select="*.last"),
        )

    (plan,) = (record.message for record in caplog.records if record.message.startswith("Regularization plan"))
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in plan.splitlines()}
    ramp = "Linear(start=0.0, end=0.5, duration=1.0)"
    assert rows["module"] == "rate as built dropout"
    assert rows["layers.first"] == f"Dropout.p 0.1 0.5 * {ramp}"
    assert rows["layers.blocks.0.1"] == f"Dropout.p 0.2 {ramp}"
    assert rows["layers.last"] == "DropPath.drop_prob 0.4 constant_half"


def constant_half(tick):
    return 0.5


def test_the_table_gives_the_reason_for_a_rate_that_stays(seen, caplog):
    with caplog.at_level(logging.INFO):
        seen(DropoutScheduler(Constant(0.5), select="*.first"))

    assert "layers.last        DropPath.drop_prob 0.4  none: matches no pattern of `select`" in caplog.text
