"""Train a small GAN on digits by manual optimization, without and with spectral normalization of its critic.

    python examples/spectral_gan.py

Writes samples as images to TensorBoard, and the norms of the critic's layers under "reg.spectral_norm". Prints the
distance of the samples from the digits: the Frechet distance between Gaussians fitted to the pixels of both.
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import RegularizationMonitor, SpectralNormalization
from lightning_reg.functional import matrix_norm

LATENT = 16
SHOWN = 64


class Gan(LightningModule):
    """A generator and a critic of 8 x 8 images, with the hinge loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()
        )
        self.critic = nn.Sequential(
            nn.Linear(64, 128), nn.LeakyReLU(0.1), nn.Linear(128, 64), nn.LeakyReLU(0.1), nn.Linear(64, 1)
        )

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.generator(latents)
        return images

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        (images,) = batch
        generator, critic = self.optimizers()  # type: ignore[attr-defined]  # two, as configured
        samples = self(torch.randn(len(images), LATENT, device=self.device))

        self.toggle_optimizer(critic)
        critic_loss = (1 - self.critic(images)).relu().mean() + (1 + self.critic(samples.detach())).relu().mean()
        critic.zero_grad()
        self.manual_backward(critic_loss)
        critic.step()
        self.untoggle_optimizer(critic)

        self.toggle_optimizer(generator)
        generator_loss = -self.critic(samples).mean()
        generator.zero_grad()
        self.manual_backward(generator_loss)
        generator.step()
        self.untoggle_optimizer(generator)
        self.log_dict({"critic/loss": critic_loss, "generator/loss": generator_loss})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.9))
            for network in (self.generator, self.critic)
        ]


class ShowSamples(Callback):
    """Writes samples of the same latents to TensorBoard, every tenth epoch and at the end."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch % 10 and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            return
        images = tiled(sampled(pl_module, SHOWN)).unsqueeze(0)
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_image("samples", images, global_step=trainer.global_step // 2)


def tiled(images: Tensor) -> Tensor:
    """Return 64 images of 8 x 8 pixels as one, with frames of 1 pixel, shape (80, 80)."""
    framed = nn.functional.pad(images.view(8, 8, 8, 8), (1, 1, 1, 1), value=0.5)
    return framed.permute(0, 2, 1, 3).reshape(80, 80)


@torch.no_grad()
def sampled(module: LightningModule, count: int) -> Tensor:
    """Return samples of the same latents every time."""
    latents = torch.randn(count, LATENT, generator=torch.Generator().manual_seed(0))
    samples: Tensor = module(latents.to(module.device))
    return samples.cpu()


def distance(first: Tensor, second: Tensor) -> float:
    """Return the Frechet distance between Gaussians with the means and covariances of two sets of images."""
    (mean, covariance), (other_mean, other_covariance) = (
        (x.mean(0), x.T.cov()) for x in (first.double(), second.double())
    )
    roots = torch.linalg.eigvals(covariance @ other_covariance).real.clamp(min=0).sqrt().sum()
    result: Tensor = ((mean - other_mean) ** 2).sum() + covariance.trace() + other_covariance.trace() - 2 * roots
    return result.item()


def train(name: str, max_epochs: int, seed: int, logdir: Path) -> tuple[tuple[str, ...], Tensor]:
    """Train once and return a row of the table and samples."""
    seed_everything(seed)
    images = torch.as_tensor(load_digits().data / 16).float()
    module = Gan()
    callbacks: list[Callback] = [RegularizationMonitor(select="critic.*"), ShowSamples()]
    if name == "normalized":
        callbacks.append(SpectralNormalization(select="critic.*"))
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=TensorBoardLogger(logdir, name=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, DataLoader(TensorDataset(images), batch_size=64, shuffle=True, drop_last=True))
    norms = [matrix_norm(layer.weight.detach()).item() for layer in module.critic if isinstance(layer, nn.Linear)]
    row = name, f"{distance(images, sampled(module, len(images))):.3f}", *(f"{norm:.2f}" for norm in norms)
    return row, sampled(module, SHOWN)


def draw(images: Mapping[str, Tensor], path: Path) -> None:
    """Save a picture of digits and samples."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for axes, (title, tiles) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        axes.imshow(tiled(tiles).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train without and with normalization and print its effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/spectral_gan"))
    parser.add_argument("--picture", type=Path, help="where to save a picture of it, such as spectral_gan.png")
    arguments = parser.parse_args()

    plain, normalized = (
        train(name, arguments.max_epochs, arguments.seed, arguments.logdir) for name in ("plain", "normalized")
    )
    rows = [plain[0], normalized[0]]

    head = ("critic", "distance to digits", "norm of layer 1", "layer 2", "layer 3")
    print()
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if arguments.picture:
        digits = torch.as_tensor(load_digits().data[:SHOWN] / 16)
        draw({"digits": digits, "plain critic": plain[1], "normalized critic": normalized[1]}, arguments.picture)
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
