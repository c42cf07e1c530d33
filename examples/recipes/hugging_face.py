"""A Hugging Face model: choose weights, dropout and decay by the names of `named_modules`.

The model is a tiny GPT-2 with random weights, which learns to repeat a token. In your code, use `from_pretrained`.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_reg import DropoutScheduler, GroupLassoPenalty, RegularizationMonitor, WeightDecay, late_dropout
from lightning_reg.metrics import Sparsity


class LanguageModel(LightningModule):
    """Trains on next tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=32, n_layer=2, n_head=2))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(input_ids=batch, labels=batch).loss
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)  # without decay, which WeightDecay adds


def main() -> None:
    seed_everything(0)
    module = LanguageModel()
    trainer = Trainer(
        max_epochs=4,
        callbacks=[
            # AdamW's decay, except for the embeddings: rare tokens hardly train them.
            WeightDecay(0.1, select=["*.attn.*.weight", "*.c_proj.weight"]),
            # Whole hidden units of the feed-forward parts. Their layers are transformers' Conv1D, a known layer.
            GroupLassoPenalty(8e-4, select="*.mlp.c_fc.weight", mode="proximal"),
            # All dropout of the model, also in attention, from the second half of the run on.
            DropoutScheduler(late_dropout(0.1, 0.5)),
            RegularizationMonitor(metrics={"zero_units": Sparsity(dim=0)}, select="*.mlp.c_fc.weight"),
        ],
        logger=CSVLogger("lightning_logs", name="hugging_face"),
        accelerator="cpu",
        log_every_n_steps=1,
        enable_checkpointing=False,
    )
    tokens = torch.randint(20, (64, 1)).expand(64, 16).contiguous()
    data: DataLoader[Tensor] = DataLoader(list(tokens), batch_size=8, shuffle=True)  # type: ignore[arg-type]  # lists will do
    trainer.fit(module, data)
    for key in ("train/loss", "reg/zero_units", "reg/weight_decay", "reg/dropout"):
        print(f"{key:20} {trainer.callback_metrics[key]:.4f}")


if __name__ == "__main__":
    main()
