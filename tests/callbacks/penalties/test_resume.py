"""A run that stopped goes on from its checkpoint as if it had not: the penalty has no state of its own."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg import ElasticNetPenalty, L1Penalty, Linear
from tests.models import Gan, Regressor, loader, weights_of
from tests.reference import assert_same_weights, both_modes


class PowerCutError(Exception):
    """Ends a training."""


class StopBefore(Callback):
    """Ends the training when a number of batches has been trained on."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_start(self, *args):
        if not self.left:
            raise PowerCutError
        self.left -= 1


class ResumableLoader:
    """Batches in a fixed order, with which Lightning goes on in the middle of an epoch."""

    def __init__(self):
        self.batches = list(loader())
        self.done = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.done %= len(self.batches)
        while self.done < len(self.batches):
            self.done += 1
            yield self.batches[self.done - 1]

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


@pytest.fixture
def interrupt_and_resume(trainer_of, tmp_path):
    """Return a function that trains for some batches, and then a new module from a checkpoint to the end."""

    def run(penalty, before, after, *, batches, checkpoint, make_loader=loader, **settings):
        def train(*callbacks):
            keep = ModelCheckpoint(tmp_path, save_top_k=-1, **checkpoint)
            return trainer_of(penalty(), keep, *callbacks, enable_checkpointing=True, **settings)

        with pytest.raises(PowerCutError):
            train(StopBefore(batches)).fit(before, make_loader())
        (path,) = tmp_path.glob("*.ckpt")
        train().fit(after, make_loader(), ckpt_path=path)
        return weights_of(after)

    return run


def falling(mode="grad"):
    return lambda: ElasticNetPenalty(0.05, mode=mode, schedule=Linear(1.0, 0.0, 1.0))


@both_modes
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(fit, interrupt_and_resume, mode, accumulate):
    settings = {"max_epochs": 4, "accumulate_grad_batches": accumulate}
    per_epoch = {"every_n_epochs": 2}

    resumed = interrupt_and_resume(
        falling(mode), Regressor(), Regressor(seed=1), batches=2 * 7 + 4, checkpoint=per_epoch, **settings
    )

    assert_same_weights(resumed, fit(falling(mode)(), **settings), rtol=0.0)


@both_modes
@pytest.mark.parametrize(("accumulate", "step"), [(1, 10), (3, 5)])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_there_too(fit, interrupt_and_resume, mode, accumulate, step):
    settings = {"max_epochs": 4, "accumulate_grad_batches": accumulate}

    resumed = interrupt_and_resume(
        falling(mode),
        Regressor(),
        Regressor(seed=1),
        batches=2 * 7,
        checkpoint={"every_n_train_steps": step},
        make_loader=ResumableLoader,
        **settings,
    )

    assert_same_weights(resumed, fit(falling(mode)(), **settings), rtol=0.0)


@both_modes
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_the_schedule_goes_on_with_the_step_also_where_the_loader_starts_again(interrupt_and_resume, mode):
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0

    def penalty():
        asked.clear()
        return L1Penalty(0.1, mode=mode, schedule=schedule)

    interrupt_and_resume(
        penalty, Regressor(), Regressor(), batches=12, checkpoint={"every_n_train_steps": 10}, max_epochs=4
    )

    assert sorted(set(asked)) == list(range(10, 28))


# The generator steps in three of seven batches: an epoch has 10 steps, and 2 epochs and 3 batches have 24.
@pytest.mark.parametrize("checkpoint", [{"every_n_epochs": 2}, {"every_n_train_steps": 24}], ids=["epoch", "middle"])
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps")
def test_manual_optimization_resumes_as_well(trainer_of, interrupt_and_resume, checkpoint):
    uninterrupted = Gan()
    trainer_of(falling()(), max_epochs=4).fit(uninterrupted, loader())

    resumed = interrupt_and_resume(
        falling(), Gan(), Gan(), batches=2 * 7 + 4, checkpoint=checkpoint, make_loader=ResumableLoader, max_epochs=4
    )

    assert_same_weights(resumed, weights_of(uninterrupted), rtol=0.0)
