"""What the objective of one step was made of, and how it is logged."""

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_reg.callbacks import _trainer
from lightning_reg.callbacks._loggers import log
from lightning_reg.tensorboard import tags


class Ledger:
    """The data loss of the batches of one optimizer step, and the value of each penalty at that step."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the step."""
        self.penalties: dict[str, Tensor | float] = {}
        self._loss: Tensor | None = None
        self._share = 0.0

    def add_loss(self, loss: Tensor, share: float) -> None:
        """Add the loss of one backward pass, which makes `share` of the step's gradient."""
        self._loss = loss if self._loss is None else self._loss + loss
        self._share += share

    def log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the value of each penalty, their sum, and its ratio to the mean data loss; nothing if there is none.

        A collective call.
        """
        if not self.penalties:
            return
        metrics = {f"{tags.PENALTY}/{name}": value for name, value in self.penalties.items()}
        total = sum(self.penalties.values())
        metrics[tags.PENALTY] = total
        if self._loss is not None:
            metrics[tags.PENALTY_RATIO] = total / _trainer.mean_over_ranks(trainer, self._loss / self._share).abs()
        log(trainer, pl_module, metrics)
