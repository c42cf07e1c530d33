"""A network whose `forward` takes a dictionary, as in forecasting and tabular packages.

Penalties, dropout schedules and the other monitors need no settings, because they work on weights and modules.
`LipschitzMonitor` bounds a function of one tensor: name such a part of the network, and pass a function that returns
its input for a batch.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_reg import L2Penalty, LipschitzMonitor, RegularizationMonitor, Select

Batch = dict[str, Tensor]


class Forecaster(LightningModule):
    """Forecasts the next value of a series from its last eight values and the index of the series."""

    def __init__(self) -> None:
        super().__init__()
        self.history = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.series = nn.Embedding(3, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, batch: Batch) -> Tensor:
        value: Tensor = self.head(self.history(batch["history"]) + self.series(batch["series"]))
        return value.squeeze(-1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch), batch["next"])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def samples() -> list[Batch]:
    """Return windows of three sine waves of different speed."""
    waves = [torch.sin(torch.arange(200.0) * speed) for speed in (0.1, 0.2, 0.4)]
    return [
        {"history": wave[start : start + 8], "series": torch.tensor(index), "next": wave[start + 8]}
        for index, wave in enumerate(waves)
        for start in range(0, 190, 4)
    ]


def history(batch: Batch) -> Tensor:
    """Return the input of the part whose Lipschitz constant is bounded."""
    return batch["history"]


def main() -> None:
    seed_everything(0)
    trainer = Trainer(
        max_epochs=5,
        callbacks=[
            # The embedding is left out: it has one row for each series, and no continuous input.
            L2Penalty(1e-3, select=Select(exclude="series.*")),
            RegularizationMonitor(),
            LipschitzMonitor(target="history", input_transform=history),
        ],
        logger=CSVLogger("lightning_logs", name="dictionary_inputs"),
        accelerator="cpu",
        log_every_n_steps=1,
        enable_checkpointing=False,
    )
    data: DataLoader[Batch] = DataLoader(samples(), batch_size=16, shuffle=True)  # type: ignore[arg-type]  # lists will do
    trainer.fit(Forecaster(), data)
    for key in ("train/loss", "reg/penalty/l2", "reg/lipschitz_lower", "reg/lipschitz_upper"):
        print(f"{key:20} {trainer.callback_metrics[key]:.4f}")


if __name__ == "__main__":
    main()
