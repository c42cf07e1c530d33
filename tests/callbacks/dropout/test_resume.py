"""A run that stopped goes on with the rates of the uninterrupted one: they are a function of the tick alone."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_reg import DropoutScheduler, Linear
from tests.callbacks.penalties.test_resume import PowerCutError, ResumableLoader, StopBefore
from tests.models import Regressor, loader


class Module(Regressor):
    """Keeps at each batch the number of steps so far and the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.global_step, self.dropout.p))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    ("settings", "checkpoint", "batches"),
    [
        ({"max_epochs": 4}, {"every_n_epochs": 2}, 14 + 4),
        ({"max_epochs": 4}, {"every_n_train_steps": 10}, 14),
        ({"max_epochs": 4, "accumulate_grad_batches": 3}, {"every_n_train_steps": 5}, 14),
        ({"max_epochs": 9, "max_steps": 23}, {"every_n_train_steps": 10}, 14),
        # No checkpoint at the end of an epoch here: with `max_steps`, Lightning resumes it with one batch too many.
        ({"max_epochs": -1, "max_steps": 10, "accumulate_grad_batches": 3}, {"every_n_train_steps": 5}, 14),
    ],
    ids=["epochs", "cut epoch", "accumulation", "steps", "steps and accumulation"],
)
def test_rates_after_a_resume_equal_the_uninterrupted_run(
    trainer_of, tmp_path, interval, settings, checkpoint, batches
):
    def train(*callbacks, **ckpt):
        module = Module()
        scheduler = DropoutScheduler(Linear(0.0, 0.8, 1.0), interval=interval)
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, **checkpoint)
        trainer = trainer_of(scheduler, keep, *callbacks, enable_checkpointing=True, **settings)
        try:
            trainer.fit(module, ResumableLoader(), **ckpt)
        except PowerCutError:
            assert module.dropout.p == 0.9
        return module.seen

    before = train(StopBefore(batches))
    (path,) = tmp_path.glob("*.ckpt")
    after = train(ckpt_path=path)

    uninterrupted = train()
    assert len(before) == batches
    assert before == uninterrupted[:batches]
    assert len(after) < len(uninterrupted)
    assert after == uninterrupted[-len(after) :]
    assert len({rate for _, rate in uninterrupted}) > 1


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_the_rate_goes_on_with_the_step_where_the_loader_starts_again(trainer_of, tmp_path):
    def trainer(*callbacks):
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=10)
        scheduler = DropoutScheduler(Linear(0.0, 0.8, 1.0))
        return trainer_of(scheduler, keep, *callbacks, enable_checkpointing=True, max_epochs=4)

    with pytest.raises(PowerCutError):
        trainer(StopBefore(12)).fit(Module(), loader())
    (path,) = tmp_path.glob("*.ckpt")
    module = Module()
    trainer().fit(module, loader(), ckpt_path=path)
    after = module.seen

    assert [step for step, _ in after] == [*range(10, 28)]
    assert after == [(step, pytest.approx(0.8 * step / 28)) for step, _ in after]
