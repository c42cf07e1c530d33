"""The one promise: every optimizer step is that of (mean data loss over the effective batch) + penalty."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg import Cosine, ElasticNetPenalty, L1Penalty, L2Penalty, Linear, Penalty, Select
from tests.models import Regressor, Silent, loader, weights_of
from tests.reference import PENALTIES, add_term_gradient, assert_same_weights, matrices, train_by_hand

OPTIMIZERS = {
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0),
}

both_modes = pytest.mark.parametrize("mode", ["loss", "grad"])
every_penalty = pytest.mark.parametrize("name", PENALTIES)


@both_modes
@every_penalty
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_plain_training(fit, name, mode, optimizer):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode), module=Regressor(OPTIMIZERS[optimizer]))

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(OPTIMIZERS[optimizer]), loader(), term)))


@both_modes
@every_penalty
def test_an_optimizer_that_evaluates_its_closure_many_times(fit, name, mode):
    make, term = PENALTIES[name]
    # One batch, small steps and float64: LBFGS blows up rounding.
    data = loader(28, batch_size=28, dtype=torch.float64)

    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=5)

    by_hand = Regressor(lbfgs).double()
    optimizer = by_hand.configure_optimizers()
    for batch in [*data, *data]:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = by_hand.loss(batch)
            loss.backward()
            add_term_gradient(term, matrices(by_hand), 1.0)
            return loss + term(matrices(by_hand))

        optimizer.step(closure)

    actual = fit(make(mode=mode), module=Regressor(lbfgs), data=data, precision="64-true")

    assert_same_weights(actual, weights_of(by_hand))


@both_modes
@every_penalty
@pytest.mark.parametrize(("batches", "last_window"), [(8, 4), (5, 1), (6, 2), (7, 3)])
def test_accumulation_with_a_short_last_window(fit, name, mode, batches, last_window):
    make, term = PENALTIES[name]
    data = loader(4 * batches)
    assert (batches - 1) % 4 + 1 == last_window

    actual = fit(make(mode=mode), data=data, accumulate_grad_batches=4)

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), data, term, accumulate=lambda epoch: 4)))


@both_modes
def test_accumulation_that_changes_between_epochs(fit, mode):
    make, term = PENALTIES["elastic_net"]
    windows = {0: 1, 1: 2, 2: 4}

    actual = fit(make(mode=mode), GradientAccumulationScheduler(dict(windows)), max_epochs=3)

    by_hand = train_by_hand(Regressor(), loader(), term, epochs=3, accumulate=windows.__getitem__)
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
@every_penalty
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scale", [1024.0, 65536.0])
def test_fp16_with_a_gradient_scaler(fit, name, mode, accumulate, scale):
    make, term = PENALTIES[name]
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))

    actual = fit(make(mode=mode), plugins=[plugin], accumulate_grad_batches=accumulate)

    by_hand = train_by_hand(
        Regressor(),
        loader(),
        term,
        accumulate=lambda epoch: accumulate,
        scaler=torch.amp.GradScaler("cpu", init_scale=scale),
        autocast=torch.float16,
    )
    assert_same_weights(actual, weights_of(by_hand))


class Overflowing(Regressor):
    """Every third batch has a loss whose gradient overflows."""

    def loss(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return super().loss(batch) * (1e38 if self.calls % 3 == 0 else 1.0)


@both_modes
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips(fit, mode, fused):
    make, term = PENALTIES["elastic_net"]

    def optimizer(parameters):
        return torch.optim.Adam(parameters, lr=0.01, fused=fused)

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    ours = scaler()
    actual = fit(
        make(mode=mode), module=Overflowing(optimizer), plugins=[MixedPrecision("16-mixed", "cpu", scaler=ours)]
    )

    theirs = scaler()
    by_hand = train_by_hand(
        # `unscale_` by hand is not for fused optimizers, which unscale in `step`; they compute the same.
        Overflowing(lambda parameters: torch.optim.Adam(parameters, lr=0.01)),
        loader(),
        term,
        scaler=theirs,
        autocast=torch.float16,
    )
    assert_same_weights(actual, weights_of(by_hand), rtol=2e-6 if fused else 1e-6)
    assert ours.get_scale() == theirs.get_scale() != 1024.0


@both_modes
@every_penalty
def test_bf16_mixed_precision(fit, name, mode):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode), precision="bf16-mixed")

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, autocast=torch.bfloat16)))


@both_modes
@every_penalty
def test_double_precision(fit, name, mode):
    make, term = PENALTIES[name]
    data = loader(dtype=torch.float64)

    actual = fit(make(mode=mode), data=data, precision="64-true")

    assert_same_weights(actual, weights_of(train_by_hand(Regressor().double(), data, term)), rtol=1e-14)


@both_modes
@every_penalty
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_weights_of_half_precision(fit, name, mode, precision, dtype):
    make, term = PENALTIES[name]
    data = loader(dtype=dtype)

    actual = fit(make(mode=mode), data=data, precision=precision)

    by_hand = train_by_hand(Regressor().to(dtype), data, term)
    assert_same_weights(actual, weights_of(by_hand), rtol=4 * torch.finfo(dtype).eps)


@both_modes
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_acts_on_the_regularized_gradient(fit, mode, algorithm):
    make, term = PENALTIES["l1"]
    clip = {
        "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1),
        "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01),
    }[algorithm]
    value = {"norm": 0.1, "value": 0.01}[algorithm]

    actual = fit(make(mode=mode), gradient_clip_val=value, gradient_clip_algorithm=algorithm)

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, clip=clip)))


@both_modes
@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (Linear(0.0, 1.0, 10), lambda step: min(step / 10, 1.0)),
        (Cosine(1.0, 0.0, 0.5), lambda step: (1 + math.cos(math.pi * min(step / 7, 1.0))) / 2),
        (lambda step: float(step % 2), lambda step: float(step % 2)),
    ],
    ids=["ticks", "share of the run", "callable"],
)
def test_a_schedule_multiplies_the_strength(fit, mode, schedule, factor):
    make, term = PENALTIES["elastic_net"]

    actual = fit(make(mode=mode, schedule=schedule))

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, factor=factor)))


@both_modes
def test_a_share_of_the_run_under_changing_accumulation(fit, mode):
    make, term = PENALTIES["elastic_net"]
    windows = {0: 1, 1: 3}
    total = 7 + 3  # steps of the two epochs of 7 batches

    actual = fit(make(mode=mode, schedule=Linear(0.0, 1.0, 1.0)), GradientAccumulationScheduler(dict(windows)))

    by_hand = train_by_hand(
        Regressor(), loader(), term, accumulate=windows.__getitem__, factor=lambda step: step / total
    )
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
def test_l1_and_l2_together_are_the_elastic_net(fit, mode):
    separate = fit(L1Penalty(0.05 * 0.3, mode=mode), L2Penalty(0.05 * 0.35, mode=mode))

    assert_same_weights(separate, fit(ElasticNetPenalty(0.05, 0.3, mode=mode)))


@both_modes
def test_two_penalties_of_one_class_on_different_parts(fit, mode):
    penalties = [
        L2Penalty(0.1, select="network.encoder.*", mode=mode),
        L2Penalty(0.01, select=Select(exclude="network.encoder.*"), mode=mode),
    ]

    def term(weights):
        encoder, *others = weights
        return 0.1 * encoder.square().sum() + 0.01 * sum(weight.square().sum() for weight in others)

    assert_same_weights(fit(*penalties), weights_of(train_by_hand(Regressor(), loader(), term)))


@pytest.mark.parametrize("modes", [("loss", "loss"), ("grad", "grad"), ("loss", "grad"), ("grad", "loss")])
def test_the_same_weight_in_two_penalties_adds_up(fit, modes):
    twice = fit(*(L1Penalty(0.01, mode=mode) for mode in modes))

    assert_same_weights(twice, fit(L1Penalty(0.02)))


@both_modes
def test_a_penalty_of_the_users_own(fit, mode):
    class Quartic(Penalty):
        def penalty(self, weights):
            return sum(weight.pow(4).sum() for weight in weights)

    actual = fit(Quartic(0.1, mode=mode), accumulate_grad_batches=3)

    def term(weights):
        return 0.1 * sum(weight.pow(4).sum() for weight in weights)

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, accumulate=lambda epoch: 3)))


class CompiledGraphs(Callback):
    """Counts the graphs compiled up to the end of each epoch."""

    def __init__(self):
        self.counts = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@both_modes
@pytest.mark.parametrize("part", ["module", "submodule"])
def test_compiled_models_train_to_the_same_weights_and_are_compiled_once(trainer_of, mode, part):
    make, term = PENALTIES["elastic_net"]
    module = Silent()
    compiled = module
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if part == "module":
        compiled = torch.compile(module, backend="aot_eager")
    else:
        module.network = torch.compile(module.network, backend="aot_eager")
    graphs = CompiledGraphs()
    penalty = make(mode=mode, select="network.*.weight", schedule=Linear(0.0, 1.0, 10))

    trainer_of(penalty, graphs).fit(compiled, loader())

    by_hand = train_by_hand(Silent(), loader(), term, factor=lambda step: min(step / 10, 1.0))
    actual = {name.replace("_orig_mod.", ""): weight for name, weight in weights_of(module).items()}
    assert_same_weights(actual, weights_of(by_hand))
    assert graphs.counts[0] == graphs.counts[1] > 0


@both_modes
def test_weights_that_no_loss_reaches_shrink_too(fit, mode):
    class WithUnused(Regressor):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3, bias=False)
            nn.init.constant_(self.unused.weight, 1.0)

    make, term = PENALTIES["l2"]

    assert_same_weights(
        fit(make(mode=mode), module=WithUnused()), weights_of(train_by_hand(WithUnused(), loader(), term))
    )


@both_modes
def test_tied_weights_count_once(fit, mode):
    class Tied(Regressor):
        def __init__(self):
            super().__init__()
            self.copy = nn.Linear(5, 7, bias=False)
            self.copy.weight = self.network.encoder.weight

    make, term = PENALTIES["l2"]

    assert_same_weights(fit(make(mode=mode), module=Tied()), weights_of(train_by_hand(Tied(), loader(), term)))


@both_modes
def test_sparse_gradients(fit, mode):
    class WithEmbedding(Regressor):
        def __init__(self):
            super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.05))
            torch.manual_seed(0)
            self.embedding = nn.Embedding(4, 5, sparse=True)

        def loss(self, batch):
            inputs, targets = batch
            index = torch.arange(len(inputs)) % 3
            return super().loss((inputs + self.embedding(index), targets))

    make, term = PENALTIES["elastic_net"]

    def densify(parameters):
        for parameter in parameters:
            parameter.grad = parameter.grad.to_dense()

    actual = fit(make(mode=mode), module=WithEmbedding())

    assert_same_weights(actual, weights_of(train_by_hand(WithEmbedding(), loader(), term, clip=densify)))
