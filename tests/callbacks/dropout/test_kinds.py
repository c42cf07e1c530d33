"""Every kind of module drops at the scheduled rate, eager and compiled, and a new rate compiles nothing again."""

import copy
import pickle

import pytest
import torch
from scipy import stats
from torch import nn

from lightning_reg import DropoutScheduler, Linear, Piecewise, curriculum_dropout
from tests.callbacks.dropout.modules import KINDS, Module, StochasticDepth, ticks

SCHEDULES = {
    "linear": (Linear(0.0, 0.6, 6), {0: 0.0, 3: 0.3, 6: 0.6}),
    "off, on and off again": (Piecewise((0.0, 0.5, 0.0), (2, 3)), {0: 0.0, 3: 0.5, 6: 0.0}),
    "curriculum": (curriculum_dropout(0.5, 20), {0: 0.0, 3: 0.3884349, 6: 0.4751065}),
}

# torch's own doing, where a compiled graph breaks.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

ATTENTION = ["MultiheadAttention", "attention of Hugging Face", "fused attention of timm"]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class CountsGraphs(Module):
    """Keeps how many graphs had been compiled after each step."""

    def __init__(self, *args):
        super().__init__(*args)
        self.graphs = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.graphs.append(graphs())
        return loss


def train(trainer_of, kind, schedule, *, compiled):
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    make, shape, _, _, attribute = KINDS[kind]
    module = CountsGraphs(make(), shape)
    if compiled:
        module.body = torch.compile(module.body, backend="aot_eager")
    scheduler = DropoutScheduler(schedule, attribute=attribute)
    trainer_of(scheduler, max_epochs=1, num_sanity_val_steps=0).fit(module, ticks(), ticks(1))
    return module


@every_kind
@every_schedule
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_it_drops_at_the_scheduled_rate_and_keeps_the_expectation(trainer_of, kind, name, compiled):
    schedule, expected = SCHEDULES[name]

    module = train(trainer_of, kind, schedule, compiled=compiled)

    for tick, rate in expected.items():
        units = KINDS[kind].units(module.outputs[tick])
        entries = units[:, 0]
        torch.testing.assert_close(units, entries[:, None].expand_as(units))
        # A dropped entry is 0, or negative after alpha dropout; a kept one is positive.
        count, dropped = len(entries), (entries <= 0).sum().item()
        assert stats.binomtest(dropped, count, rate).pvalue > 1e-3
        if KINDS[kind].keeps_mean:
            error = (rate / (1 - rate) / count) ** 0.5
            assert abs(entries.mean().item() - 1) <= 3.5 * error + 1e-6
    torch.testing.assert_close(module.evaluated[0] > 0, torch.ones_like(module.evaluated[0], dtype=torch.bool))
    if compiled:
        assert module.graphs[0] == module.graphs[-1] > 0


def test_stochastic_depth_of_a_whole_batch(trainer_of):
    for compiled in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        module = Module(StochasticDepth(0.1, "batch"), (3, 2))
        if compiled:
            module.body = torch.compile(module.body, backend="aot_eager")

        trainer_of(DropoutScheduler(lambda tick: 0.5), max_epochs=1).fit(module, ticks(200))

        outputs = torch.stack(module.outputs)
        assert ((outputs == 0).all((1, 2)) | (outputs == 2).all((1, 2))).all()
        assert stats.binomtest((outputs[:, 0, 0] == 0).sum().item(), 200, 0.5).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["Dropout", "AlphaDropout"])
def test_compiled_and_eager_outputs_have_one_distribution(trainer_of, kind):
    class Random(Module):
        def training_step(self, batch, batch_idx):
            outputs = self.body(torch.randn(self.shape))
            self.outputs.append(outputs.detach())
            return outputs.sum()

    found = []
    for compiled in (False, True):
        torch.manual_seed(int(compiled))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        module = Random(KINDS[kind].make(), (1000, 20))
        if compiled:
            module.body = torch.compile(module.body, backend="aot_eager")
        trainer_of(DropoutScheduler(lambda tick: 0.3), max_steps=1, max_epochs=1).fit(module, ticks(1))
        found.append(module.outputs[0])
        assert compiled == bool(graphs())

    eager, compiled = found
    assert stats.ks_2samp(eager.sum(1), compiled.sum(1)).pvalue > 1e-3  # rows: entries are independent, too
    # Rounded, because the value of a dropped entry may differ in the last digit.
    assert stats.ks_2samp(eager.flatten().round(decimals=4), compiled.flatten().round(decimals=4)).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["Dropout", "AlphaDropout", "DropPath", "LSTM", *ATTENTION])
def test_a_pass_before_training_costs_one_more_compilation_at_most(trainer_of, kind):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    make, shape, _, _, attribute = KINDS[kind]
    module = CountsGraphs(make(), shape)
    module.body = torch.compile(module.body, backend="aot_eager")
    module.body(torch.ones(shape))
    before = graphs()

    scheduler = DropoutScheduler(Linear(0.0, 0.6, 6), attribute=attribute)
    trainer_of(scheduler, max_epochs=3, num_sanity_val_steps=0).fit(module, ticks(3), ticks(1))

    assert module.graphs[:3] == [module.graphs[0]] * 3
    # The first validation has a graph of its own, as ever; the second, at another rate, has none.
    assert module.graphs[3:] == [module.graphs[3]] * 6
    if kind not in ["LSTM", *ATTENTION]:  # those break it into pieces
        assert module.graphs[0] == before + 1


def test_a_whole_compiled_lightning_module_is_compiled_once(trainer_of):
    class Plain(Module):  # the compiler can't look into what `Module` keeps
        def training_step(self, batch, batch_idx):
            return self.body(torch.ones(self.shape)).sum()

    counts = []
    for steps in (1, 14):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        module = Plain(nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.1), nn.Linear(4, 2), StochasticDepth(0.1, "row")))
        trainer = trainer_of(DropoutScheduler(Linear(0.0, 0.6, 14)), max_steps=steps, max_epochs=1)
        trainer.fit(torch.compile(module, backend="aot_eager"), ticks(14))
        counts.append(graphs())

    assert counts[0] == counts[1] > 0


def test_half_precision_drops_at_a_small_rate_too(trainer_of):
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = Module(nn.Dropout(0.1), (200_000, 1))
    module.body = torch.compile(module.body, backend="aot_eager")

    trainer_of(DropoutScheduler(lambda tick: 0.001), max_epochs=1, precision="bf16-true").fit(module, ticks(1))

    assert module.outputs[0].dtype == torch.bfloat16
    assert stats.binomtest((module.outputs[0] == 0).sum().item(), 200_000, 0.001).pvalue > 1e-3


def test_a_copy_made_in_training_is_a_model_of_its_own(trainer_of):
    class Copies(Module):
        def training_step(self, batch, batch_idx):
            self.copy = copy.deepcopy(self.body)
            self.pickled = pickle.dumps(self.body)
            return super().training_step(batch, batch_idx)

    module = Copies(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), HfLike()))

    trainer_of(DropoutScheduler(lambda tick: 0.5), max_epochs=1).fit(module, ticks(1))

    for body in (module.copy, pickle.loads(module.pickled)):
        body.eval()
        nn.init.zeros_(body.part[0].weight)
        nn.init.ones_(body.part[0].bias)
        nn.init.constant_(body.part[2].weight, 3.0)
        torch.testing.assert_close(body(torch.ones(1, 2)), torch.full((1, 2), 3.0))


class HfLike(nn.Module):
    """An attention module in name, with a weight."""

    def __init__(self):
        super().__init__()
        self.dropout = 0.1
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return nn.functional.dropout(inputs, self.dropout, self.training) * self.weight


HfLike.__name__ = "SelfAttention"
