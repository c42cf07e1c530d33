"""Everything from YAML: a network for digits, its data and its callbacks, with LightningCLI.

    python examples/cli/main.py fit --config examples/cli/l1_sparse.yaml

Each YAML file beside this one is a recipe for one callback of lightning_reg. The command line can override any value
(`--model.width 64`, `--trainer.max_epochs 50`). `--print_config` at the end prints the complete configuration, which
can be saved as a file for `--config`.
"""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningCLI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, Tensor]


class Digits(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits.

    Args:
        width: Units of the first hidden layer; the second one has half as many.
        dropout: Dropout rate after each hidden layer, in [0, 1).
        learning_rate: Learning rate of the optimizer.
        optimizer: Adam, or SGD with a momentum of 0.9.

    """

    def __init__(
        self,
        width: int = 96,
        dropout: float = 0.0,
        learning_rate: float = 3e-3,
        optimizer: Literal["Adam", "SGD"] = "Adam",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate, self.optimizer = learning_rate, optimizer
        self.encoder = nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(width // 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def _evaluate(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss)
        self.log(f"{stage}/accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits: Tensor = self(batch[0])
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class DigitsData(LightningDataModule):
    """scikit-learn's digits: a part for training, the rest for validation, test and prediction.

    Args:
        train_size: Images for training; the rest is for validation and testing.
        batch_size: Images in a training batch.

    """

    def __init__(self, train_size: int = 600, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images / 16, labels, train_size=train_size, stratify=labels, random_state=0)
        train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
        self.training = TensorDataset(train_images.float(), train_labels)
        self.testing = TensorDataset(test_images.float(), test_labels)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.training, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.testing, batch_size=len(self.testing))

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.val_dataloader()


class ShowUncertain(Callback):
    """Print the images with the most uncertain predictions of MonteCarloDropout.

    Args:
        count: How many images.

    """

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.count = count

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        print("image  label  predicted  probability  entropy  mutual information")
        for index in outputs.entropy.argsort(descending=True)[: self.count].tolist():
            probability, digit = outputs.mean[index].max(0)
            print(
                f"{index:5}  {batch[1][index]:5}  {digit:9}  {probability:11.2f}  {outputs.entropy[index]:7.2f}"
                f"  {outputs.mutual_information[index]:18.2f}"
            )


def main(args: ArgsType = None) -> LightningCLI:
    """Run the command of the command line, or of `args`."""
    return LightningCLI(
        Digits,
        DigitsData,
        args=args,
        seed_everything_default=0,
        # Common settings of the recipes; each recipe may override them.
        trainer_defaults={"accelerator": "cpu", "max_epochs": 40, "log_every_n_steps": 5, "num_sanity_val_steps": 0},
    )


if __name__ == "__main__":
    main()
