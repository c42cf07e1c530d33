"""One small network, Lightning modules and data around it that every test can train, and a penalty of a user."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import Penalty

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def momentum_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def samples(count: int = 28, dtype: torch.dtype = torch.float32) -> TensorDataset:
    """Return the same `count` rows of five inputs and two targets every time."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs.to(dtype), targets.to(dtype))


def loader(count: int = 28, batch_size: int = 4, dtype: torch.dtype = torch.float32) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(samples(count, dtype), batch_size=batch_size)


class Network(nn.Module):
    """Linear layers around a convolution and a norm; `dropout` takes no part in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.head = nn.Linear(21, 2)
        self.dropout = nn.Dropout(0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.encoder(inputs)))
        return self.head(torch.tanh(self.conv(hidden.unsqueeze(1))).flatten(1))


class Regressor(LightningModule):
    """Least squares, on a network with the same weights every time."""

    def __init__(self, optimizer: OptimizerFactory = momentum_sgd, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = Network()
        self.optimizer_factory = optimizer

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.network(inputs), targets)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.network(batch[0])

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer_factory(self.parameters())


class Silent(Regressor):
    """Logs nothing: `torch.compile` can't look into `self.log`, and `Trainer(barebones=True)` wants none."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)


class Untrainable(Regressor):
    """Fails in its first training step: what is wrong must be found before."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        raise AssertionError("a training step has run")


class RawManualSteps(Regressor):
    """Steps by hand, with the optimizer that Lightning has not wrapped."""

    def __init__(self, optimizer: OptimizerFactory = momentum_sgd) -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Gan(LightningModule):
    """Two networks, each with an optimizer; the critic steps twice as often."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
        self.critic = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def critic_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return (
            nn.functional.softplus(self.critic(self.generator(inputs))).mean()
            + nn.functional.softplus(-self.critic(targets)).mean().exp()
        )

    def generator_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.softplus(-self.critic(self.generator(batch[0]))).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        generator, critic = self.optimizers()
        self.toggle_optimizer(critic)
        critic.zero_grad()
        self.manual_backward(self.critic_loss(batch))
        critic.step()
        self.untoggle_optimizer(critic)
        if batch_idx % 2:
            self.toggle_optimizer(generator)
            generator.zero_grad()
            self.manual_backward(self.generator_loss(batch) / 2)
            self.manual_backward(self.generator_loss(batch) / 2)
            generator.step()
            self.untoggle_optimizer(generator)

    def configure_optimizers(self) -> list[Optimizer]:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.critic.parameters(), lr=0.05),
        ]


class Quartic(Penalty):
    """A penalty of the user's own, without a gradient in closed form."""

    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return sum(weight.pow(4).sum() for weight in weights)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters, whole and on the CPU."""

    def named() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in module.named_parameters():
            full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            yield name, full.detach().cpu().clone()

    return dict(named())


class KeepWeights(Callback):
    """Keeps the whole weights at the end of training, also of sharded modules."""

    def on_train_end(self, trainer, pl_module):
        if isinstance(trainer.strategy, FSDPStrategy):
            with FullyShardedDataParallel.summon_full_params(trainer.model):
                weights = weights_of(pl_module)
        else:
            weights = weights_of(pl_module)
        self.weights = {name.replace("_fsdp_wrapped_module.", ""): weight for name, weight in weights.items()}
