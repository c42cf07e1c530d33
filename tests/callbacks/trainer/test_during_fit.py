"""The state of a callback during one fit belongs to that fit: it is never pickled, and two fits do not share it."""

import copy
import pickle
import threading

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule

from lightning_reg import DropoutScheduler, L2Penalty, Linear, SpectralConstraint
from tests.models import Regressor, loader, weights_of
from tests.test_all_callbacks import every_callback, logger

__all__ = ["logger"]


class Data(LightningDataModule):
    """A spawned worker gets `collate_fn` as a pickle: with the data module, its trainer and the trainer's callbacks."""

    def train_dataloader(self):
        return loader()

    def collate(self, samples):
        return samples


class Pickling(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        pickle.loads(pickle.dumps(trainer.datamodule.collate))


@every_callback
def test_the_trainer_can_be_pickled_while_it_trains(callback, trainer_of, logger):
    plain, beside = Regressor(), Regressor()
    trainer_of(callback, max_epochs=2, logger=logger).fit(plain, datamodule=Data())
    trainer_of(callback, Pickling(), max_epochs=2, logger=logger).fit(beside, datamodule=Data())

    torch.testing.assert_close(weights_of(beside), weights_of(plain), rtol=0, atol=0)


def run_beside(trainer_of, callback, other_run):
    """Fit with `callback`, and call `other_run` in the middle; return the trained weights."""

    class Meanwhile(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1 and trainer.current_epoch == 0:
                thread = threading.Thread(target=other_run)
                thread.start()
                thread.join()

    module = Regressor()
    trainer_of(callback, Meanwhile(), max_epochs=2).fit(module, loader())
    return weights_of(module)


@pytest.mark.twin
@pytest.mark.parametrize(
    "callback",
    [
        L2Penalty(0.1, mode="grad"),
        L2Penalty(0.1, mode="proximal"),
        SpectralConstraint(0.5),
        DropoutScheduler(Linear(0.0, 0.5, 1.0)),
    ],
    ids=repr,
)
def test_a_second_fit_is_refused_while_one_runs_which_goes_on_undisturbed(trainer_of, fit, callback):
    errors = []

    def other_run():
        try:
            trainer_of(callback, max_epochs=1).fit(Regressor(), loader())
        except MisconfigurationException as error:
            errors.append(str(error))

    torch.manual_seed(0)
    disturbed = run_beside(trainer_of, callback, other_run)
    torch.manual_seed(0)
    alone = run_beside(trainer_of, callback, lambda: None)

    torch.testing.assert_close(disturbed, alone, rtol=0, atol=0)
    (message,) = errors
    assert message.startswith(f"{callback!r} is in another Trainer that is running")
    assert "copy.deepcopy(callback)" in message


def test_a_copy_made_in_training_trains_beside_the_original(trainer_of, fit):
    callback, others = L2Penalty(0.1, mode="grad"), []

    def other_run():
        others.append(Regressor())
        trainer_of(copy.deepcopy(callback), max_epochs=2).fit(others[0], loader())

    beside = run_beside(trainer_of, callback, other_run)

    alone = fit(L2Penalty(0.1, mode="grad"), max_epochs=2)
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)
    torch.testing.assert_close(weights_of(others[0]), alone, rtol=0, atol=0)


def test_a_fit_whose_end_was_not_announced_does_not_block_the_next(fit):
    class Failing(Callback):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError

        def on_exception(self, *_):
            raise KeyError("hooks of the callbacks behind are not called")

    callback = L2Penalty(0.1, mode="grad")
    with pytest.raises(KeyError):
        fit(Failing(), callback)

    torch.testing.assert_close(fit(callback), fit(L2Penalty(0.1, mode="grad")), rtol=0, atol=0)
