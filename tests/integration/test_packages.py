"""Models of other packages, as their users write them; what is not installed is left out by name (`make packages`)."""

import math
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg import (
    Constant,
    DropoutScheduler,
    L1Penalty,
    L2Penalty,
    RegularizationMonitor,
    SpectralConstraint,
    register_lipschitz_rule,
)
from lightning_reg.functional import certified_radius, lipschitz_bound, margin_bounds
from lightning_reg.metrics import Sparsity

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

STRENGTH, RATE, STEPS = 0.05, 0.02, 6


class Wrapped(LightningModule):
    """A network and its loss; SGD with its own decay on chosen weights, or none."""

    def __init__(self, network, loss):
        super().__init__()
        self.network, self.loss, self.decay, self.losses = network, loss, 0.0, []

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.network, batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return decaying_sgd(self)


def decaying_sgd(module):
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    matrices = {"params": [weight for weight in trained if weight.ndim >= 2], "weight_decay": module.decay}
    return torch.optim.SGD([matrices, {"params": [weight for weight in trained if weight.ndim < 2]}], lr=RATE)


def transformer():
    """An encoder of x-transformers."""
    package = pytest.importorskip("x_transformers")
    layers = package.Encoder(dim=16, depth=2, heads=2, attn_dropout=0.2, ff_dropout=0.2)
    network = package.ContinuousTransformerWrapper(max_seq_len=8, dim_in=5, dim_out=2, attn_layers=layers)
    data = [(torch.randn(4, 8, 5), torch.randn(4, 8, 2)) for _ in range(4)]
    return Wrapped(network, lambda net, batch: nn.functional.mse_loss(net(batch[0]), batch[1])), data


def graph():
    """A graph convolution network of PyTorch Geometric, whose linear layers are classes of its own."""
    package = pytest.importorskip("torch_geometric")
    network = package.nn.GCN(in_channels=5, hidden_channels=8, num_layers=2, out_channels=3, dropout=0.3)
    edges = torch.randint(12, (2, 40))
    data = [package.data.Data(x=torch.randn(12, 5), edge_index=edges, y=torch.randint(3, (12,))) for _ in range(4)]

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch.x, batch.edge_index), batch.y)

    return Wrapped(network, loss), package.loader.DataLoader(data, batch_size=1)


def adapters():
    """LoRA of peft on a tiny BERT: all but the adapters and the head is frozen."""
    package, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=30, **sizes))
    network = package.get_peft_model(bert, package.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.2))
    data = [{"input_ids": torch.randint(30, (4, 6)), "labels": torch.randint(2, (4,))} for _ in range(4)]
    return Wrapped(network, lambda net, batch: net(**batch).loss), data


def forecaster():
    """A temporal fusion transformer of pytorch-forecasting, a LightningModule whose `forward` takes a dictionary."""
    package, pandas = pytest.importorskip("pytorch_forecasting"), pytest.importorskip("pandas")
    rows = 40
    frame = pandas.DataFrame(
        {
            "time": np.tile(np.arange(rows), 2),
            "series": np.repeat(["a", "b"], rows),
            "value": np.sin(np.arange(2.0 * rows)),
        }
    )
    training = package.TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=8,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
    )

    class Forecaster(package.TemporalFusionTransformer):
        decay = 0.0

        def training_step(self, batch, batch_idx):
            step = super().training_step(batch, batch_idx)
            self.losses = [*getattr(self, "losses", []), float(step["loss"])]
            return step

        def configure_optimizers(self):
            return decaying_sgd(self)

    sizes = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4, "dropout": 0.2}
    module = Forecaster.from_dataset(training, loss=package.metrics.MAE(), log_interval=-1, **sizes)
    return module, training.to_dataloader(train=True, batch_size=16, num_workers=0, shuffle=False)


every_package = pytest.mark.parametrize(
    "make", [transformer, graph, adapters, forecaster], ids=lambda make: make.__name__
)


@pytest.fixture
def train(trainer_of, tmp_path):
    """Return a function that trains a model, made by the same random numbers each time, and returns it."""

    def run(make, *callbacks, decay=0.0, seed=0, steps=STEPS, **settings):
        seed_everything(0)
        module, data = make()
        module.decay = decay
        data = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=None)
        torch.manual_seed(seed)
        trainer_of(*callbacks, max_steps=steps, max_epochs=-1, **settings).fit(module, data)
        return module

    return run


def chosen(module):
    return {name: weight for name, weight in module.named_parameters() if weight.ndim >= 2 and weight.requires_grad}


@every_package
@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_an_l2_penalty_is_the_weight_decay_of_sgd(train, make, mode):
    actual = train(make, L2Penalty(STRENGTH, mode=mode))

    # d/dw of strength * w^2 is what torch's SGD adds for a decay of twice the strength.
    expected, plain, built = train(make, decay=2 * STRENGTH), train(make), train(make, steps=0)
    weights = dict(actual.named_parameters())
    for name, weight in expected.named_parameters():
        if name in chosen(actual) and torch.equal(plain.get_parameter(name), built.get_parameter(name)):
            # No loss reaches it, so SGD leaves it alone; its penalty is a term of the objective all the same.
            weight = built.get_parameter(name) * (1 - RATE * 2 * STRENGTH) ** STEPS
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(weight, plain.get_parameter(name)) for name, weight in chosen(actual).items())


@every_package
def test_proximal_steps_make_zeros_that_the_monitor_counts(train, make, tmp_path):
    module = train(make, L1Penalty(0.5, mode="proximal"), RegularizationMonitor(), logger=CSVLogger(tmp_path))

    zeros = sum((weight == 0).sum() for weight in chosen(module).values())
    total = sum(weight.numel() for weight in chosen(module).values())
    assert 0.02 < zeros / total < 1
    logged = module.trainer.callback_metrics["reg/sparsity"]
    assert logged == pytest.approx((zeros / total).item(), abs=1e-6)
    assert Sparsity()(list(chosen(module).values())) == pytest.approx((zeros / total).item(), abs=1e-6)


@every_package
def test_a_spectral_constraint_holds_for_their_linear_layers(train, make):
    module = train(make, SpectralConstraint(0.3))

    layers = {name: weight for name, weight in chosen(module).items() if weight.ndim == 2 and name.endswith("weight")}
    assert layers
    norms = {name: np.linalg.norm(weight.detach().double().numpy(), 2) for name, weight in layers.items()}
    assert max(norms.values()) <= 0.3 * 1.0001, norms


@every_package
def test_with_all_rates_at_zero_nothing_is_random_or_a_warning_names_it(train, make):
    losses, messages = [], []
    for seed in (1, 2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses.append(train(make, DropoutScheduler(Constant(0.0)), seed=seed).losses)
        messages += [str(warning.message) for warning in caught]

    told = any("random" in message or "no schedule sets this rate" in message for message in messages)
    assert told or losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("activation", ["GroupSort2", "FullSort", "MaxMin", "LPReLU", "ReLU"])
@pytest.mark.parametrize("last", ["SpectralLinear", "FrobeniusLinear"])
def test_certificates_are_no_worse_than_these_of_deel_torchlip_and_hold(activation, last):
    """Their radius is margin / (sqrt(2) L), and margin / (2 L) if rows of the last layer are normalized one by one."""
    torchlip = pytest.importorskip("deel.torchlip")
    seed_everything(0)
    sizes, factor = [6, 8, 8], 1.5
    make, copies = getattr(torchlip, activation, nn.ReLU), 2 if activation == "MaxMin" else 1
    layers = [torchlip.SpectralLinear(sizes[0], sizes[1], k_coef_lip=factor), make()]
    layers += [torchlip.SpectralLinear(copies * sizes[1], sizes[2]), make()]
    network = nn.Sequential(*layers, getattr(torchlip, last)(copies * sizes[2], 4))
    network(torch.randn(5, 6))  # in training their power iterations take a step
    network.eval()
    points = 3 * torch.randn(300, 6)

    bound = lipschitz_bound(network[:-1], points[:1])
    assert bound.unbounded == ()
    assert bound.value <= factor * 1.0001
    logits = network(points)
    largest = logits.topk(2).values
    theirs = (largest[:, 0] - largest[:, 1]) / (factor * (math.sqrt(2) if last == "SpectralLinear" else 2))
    ours = certified_radius(logits, margin_bounds(network, points[:1]))
    assert (ours >= theirs * 0.9999).all()
    directions = nn.functional.normalize(torch.randn(50, 300, 6), dim=-1)
    moved = points + 0.9999 * ours[:, None] * directions
    assert (network(moved.flatten(0, 1)).argmax(-1).view(50, 300) == logits.argmax(-1)).all()


def test_a_householder_activation_gets_its_bound_by_a_rule():
    torchlip = pytest.importorskip("deel.torchlip")
    network = nn.Sequential(
        torchlip.SpectralLinear(6, 8), torchlip.HouseHolder(8), torchlip.SpectralLinear(8, 3)
    ).eval()
    assert lipschitz_bound(network, torch.zeros(1, 6)).value == math.inf
    register_lipschitz_rule(torchlip.HouseHolder, lambda module, x: 1.0)
    assert lipschitz_bound(network, torch.zeros(1, 6)).value == pytest.approx(1, rel=1e-3)
