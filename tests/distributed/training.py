"""A network, its module, a quiet trainer and the data of a rank: what functions that train on two ranks share."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.models import OptimizerFactory, Regressor, momentum_sgd, samples

# Names as the user wrote them, although FSDP1 inserts segments.
PATTERN = "network.*.weight"


class Network(nn.Module):
    """Shards of this network are uneven (7 and 3 rows over two ranks) or empty (one row)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 7)
        self.hidden = nn.Linear(7, 3)
        self.bottleneck = nn.Linear(3, 1)
        self.head = nn.Linear(1, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.bottleneck(torch.tanh(self.hidden(torch.tanh(self.encoder(inputs))))))


class Module(Regressor):
    """Least squares on the network, which FSDP2 shards where the strategy asks for that."""

    def __init__(self, optimizer: OptimizerFactory = momentum_sgd, *, unused: bool = False) -> None:
        super().__init__(optimizer)
        torch.manual_seed(0)
        self.network = Network()
        if not unused:
            self.network.unused = nn.Identity()

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for part in (self.network.hidden, self.network.bottleneck):
            fully_shard(part, mesh=mesh)
        fully_shard(self.network, mesh=mesh)


class FSDP1OnCpu(FSDPStrategy):
    """FSDP1 shards on a CPU too, if it is told so; Lightning's strategy asks for a GPU."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=True, auto_wrap_policy=self.kwargs["auto_wrap_policy"]
        )


STRATEGIES = {
    "fsdp1": lambda: FSDP1OnCpu(auto_wrap_policy={nn.Linear}),
    "static unused": lambda: DDPStrategy(static_graph=True),
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "tensor parallel": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
}


def trainer_on(strategy: str | None, *callbacks: Callback, fp16: bool = False, **settings: Any) -> Trainer:
    """Return a quiet trainer of a strategy on two ranks, or of one process for `None`."""
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "logger": False, "use_distributed_sampler": False}
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    if strategy is not None:
        defaults |= {"devices": 2, "strategy": STRATEGIES[strategy]() if strategy in STRATEGIES else strategy}
    if fp16:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        defaults["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **(defaults | quiet | settings))


def half(data: TensorDataset | None = None) -> DataLoader[tuple[Tensor, ...]]:
    """Return this rank's half of every global batch of four: rank r takes rows r, r + 2, ..."""
    data = samples() if data is None else data
    sampler = DistributedSampler(data, num_replicas=2, rank=distributed.get_rank(), shuffle=False)
    return DataLoader(data, batch_size=2, sampler=sampler)
