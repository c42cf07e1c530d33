"""Spectral normalization across checkpoints, weight averaging, compilation and strategies."""

import contextlib

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.func import functional_call

from lightning_reg import L1Penalty, SpectralConstraint, SpectralNormalization, TargetSparsity
from tests.callbacks.spectral.norms import Loss, norm, normalized
from tests.models import Regressor, Silent, Untrainable, loader, weights_of

LAYERS = ("encoder", "conv", "head")


def norms(module):
    return torch.tensor([norm(getattr(module.network, name)).item() for name in LAYERS])


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.005)


AVERAGES = {"SWA": lambda: StochasticWeightAveraging(swa_lrs=1e-3)}
if hasattr(of_lightning, "WeightAveraging"):  # since Lightning 2.6
    AVERAGES |= {
        "mean": of_lightning.WeightAveraging,
        "EMA": of_lightning.EMAWeightAveraging,
        "fast EMA": lambda: of_lightning.EMAWeightAveraging(decay=0.9),
    }


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_averages_of_weights_have_the_norm_and_a_sane_loss(average, trainer_of):
    losses, seen = {}, {}
    for name, callbacks in {"alone": [], "averaged": [average()]}.items():

        class Module(Regressor):
            def on_validation_epoch_end(self, name=name):
                seen.setdefault(name, []).append(norms(self))

        module = Module(adam)
        trainer = trainer_of(SpectralNormalization(), *callbacks, max_epochs=10, num_sanity_val_steps=0)
        trainer.fit(module, loader(), loader())
        (metrics,) = trainer.validate(module, loader(), verbose=False)
        losses[name] = metrics["val/loss"]
        torch.testing.assert_close(norms(module), torch.ones(3), rtol=0.02, atol=0)

    for values in seen.values():
        torch.testing.assert_close(torch.stack(values), torch.ones(len(values), 3), rtol=0.02, atol=0)
    # Averages lag behind. torch's parametrization with averaged vectors is off by factors of hundreds.
    assert losses["averaged"] < 1.5 * losses["alone"]


def test_checkpoints_have_plain_names_and_the_weights_that_forward_used(trainer_of, tmp_path):
    outputs = {}
    inputs, _ = next(iter(loader()))

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                outputs["middle"] = pl_module.network(inputs)

    module = Regressor()
    trainer = trainer_of(SpectralNormalization(2.0), Save())
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    outputs["last"] = module.network(inputs)

    for name, expected in outputs.items():
        again = Regressor.load_from_checkpoint(tmp_path / f"{name}.ckpt")
        plain = Regressor()
        plain.load_state_dict(torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"], strict=True)
        assert torch.equal(again.network(inputs), expected)
        assert torch.equal(plain.network(inputs), expected)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("saved", ["during", "after"])
@pytest.mark.parametrize("make", [SpectralNormalization, SpectralConstraint])
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make, saved, precision, trainer_of, tmp_path):
    data = loader(dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
    whole = Regressor()
    trainer_of(make(1.5), max_epochs=4, precision=precision).fit(whole, data)

    trainer = trainer_of(
        make(1.5), ModelCheckpoint(tmp_path, "during"), max_epochs=2, precision=precision, enable_checkpointing=True
    )
    trainer.fit(Regressor(), data)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    resumed = Regressor(seed=3)
    # A first run leaves nothing behind in the callback.
    callback = make(1.5)
    trainer_of(callback, max_epochs=1, precision=precision).fit(Regressor(seed=2), data)
    trainer_of(callback, max_epochs=4, precision=precision).fit(resumed, data, ckpt_path=tmp_path / f"{saved}.ckpt")

    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=0)


@pytest.mark.parametrize("callback", [SpectralNormalization(2.0), SpectralNormalization(norm="matrix")])
def test_a_state_of_other_settings_is_not_taken(callback, trainer_of, tmp_path):
    trainer = trainer_of(SpectralNormalization(1.0), max_epochs=1)
    trainer.fit(Regressor(), loader())
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    module = Regressor(adam)
    module.automatic_optimization = True
    kinds = callback.norm
    trainer_of(callback, max_epochs=1, max_steps=1).fit(module, loader())
    resumed = Regressor()
    trainer_of(callback, max_epochs=3).fit(resumed, loader(), ckpt_path=tmp_path / "one.ckpt")

    found = [norm(getattr(resumed.network, name), kind=kinds).item() for name in LAYERS]
    torch.testing.assert_close(found, [callback.norm_bound] * 3, rtol=0.03, atol=0)


def test_a_plain_checkpoint_loads_into_a_normalized_run(trainer_of, tmp_path):
    plain = Regressor()
    trainer = trainer_of(max_epochs=1)
    trainer.fit(plain, loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    first = []

    class First(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            first.append(weights_of(self))

    trainer_of(SpectralNormalization(), max_epochs=2).fit(First(), loader(), ckpt_path=tmp_path / "plain.ckpt")

    for name in LAYERS:
        layer = getattr(plain.network, name)
        torch.testing.assert_close(
            first[0][f"network.{name}.weight"], layer.weight.detach() / norm(layer).float(), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("strict", [True, False])
def test_a_plain_state_dict_loads_during_training_and_loses_nothing(strict, trainer_of):
    other = Regressor(seed=5)

    class Loads(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                keys = self.load_state_dict(other.state_dict(), strict=strict)
                assert not keys.missing_keys
                assert not keys.unexpected_keys
                torch.testing.assert_close(weights_of(self), weights_of(other), rtol=0, atol=0)

    # With a learning rate of 0, what is left is the direction of the weights that were loaded.
    module = Loads(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    trainer_of(SpectralNormalization(power_iterations=10), max_epochs=1).fit(module, loader())

    for name in LAYERS:
        layer = getattr(other.network, name)
        expected = layer.weight.detach() / norm(layer).float()
        torch.testing.assert_close(getattr(module.network, name).weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_torch_compile_finds_one_graph_and_never_compiles_again(fit):
    graphs, calls = [], []

    def backend(graph, example_inputs):
        graphs.append(graph)

        def run(*inputs):
            calls.append(1)
            return graph.forward(*inputs)

        return run

    torch._dynamo.reset()
    expected = fit(SpectralNormalization(), module=Silent())
    module = Silent()
    module.network = torch.compile(module.network, backend=backend, fullgraph=True)

    actual = fit(SpectralNormalization(), module=module)

    assert len(graphs) == 1
    assert len(calls) == 14
    plain = {name.replace("_orig_mod.", ""): weight for name, weight in actual.items()}
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


def test_the_plan_says_what_happens_to_each_weight(trainer_of, caplog, tmp_path):
    with caplog.at_level("INFO"):
        trainer_of(
            SpectralNormalization(2.0, select="*.encoder.*"),
            SpectralConstraint(1.0, select=["*.head.*", "*.conv.*"]),
            logger=TensorBoardLogger(tmp_path),
            max_epochs=1,
        ).fit(Regressor(), loader())

    (plan,) = [record.message for record in caplog.records if "Regularization plan" in record.message]
    rows = {line.split()[0]: line for line in plan.splitlines() if line.startswith("  ")}
    assert rows["network.encoder.weight"].endswith("normalized to operator norm 2")
    assert rows["network.head.weight"].endswith("clipped to norm <= 1")
    assert rows["network.conv.weight"].endswith("rescaled to norm <= 1")
    assert "none" in rows["network.encoder.bias"]


@pytest.mark.parametrize("control", [SpectralNormalization(), SpectralConstraint(1.0)])
@pytest.mark.parametrize(
    "penalty", [L1Penalty(0.01, mode="proximal"), TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5)]
)
def test_a_proximal_penalty_on_the_same_weights_is_refused_before_training(control, penalty, trainer_of):
    for callbacks in ([control, penalty], [penalty, control]):
        with pytest.raises(MisconfigurationException, match=r"both change 'network\.encoder\.weight' after"):
            trainer_of(*callbacks).fit(Untrainable(), loader())


def test_two_bounds_for_one_weight_are_refused_before_training(trainer_of):
    for other in (
        SpectralNormalization(2.0, select="*.head.*"),
        SpectralConstraint(1.0),
        SpectralNormalization(power_iterations=2, select="*"),
    ):
        with pytest.raises(MisconfigurationException, match=r"is chosen by both SpectralNorm.* and Spectral"):
            trainer_of(SpectralNormalization(), other).fit(Untrainable(), loader())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SpectralNormalization(0.0), ValueError, "`norm_bound` must be a finite number > 0, got 0.0"),
        (lambda: SpectralNormalization(-1), ValueError, "`norm_bound` must be a finite number > 0, got -1"),
        (lambda: SpectralNormalization(float("inf")), ValueError, "`norm_bound` must be a finite number"),
        (lambda: SpectralNormalization("1"), TypeError, "`norm_bound` must be a number"),
        (lambda: SpectralNormalization(norm="frobenius"), ValueError, "`norm` must be one of 'operator', 'matrix'"),
        (lambda: SpectralNormalization(power_iterations=0), ValueError, "`power_iterations` must be an int >= 1"),
        (lambda: SpectralNormalization(power_iterations=1.5), TypeError, "`power_iterations` must be an int >= 1"),
        (lambda: SpectralConstraint(0.0), ValueError, "`norm_bound` must be a finite number > 0, got 0.0"),
        (lambda: SpectralConstraint(1.0, method="svd"), ValueError, "`method` must be one of 'clip', 'rescale'"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_pattern_that_matches_nothing_is_refused_before_training(trainer_of):
    with pytest.raises(ValueError, match="matches no parameter"):
        trainer_of(SpectralNormalization(select="network.encodre.*")).fit(Untrainable(), loader())


def test_a_module_that_is_only_evaluated_keeps_its_weights(trainer_of):
    module = Regressor()
    before = weights_of(module)

    trainer_of(SpectralNormalization(0.5)).predict(module, loader())

    torch.testing.assert_close(weights_of(module), before, rtol=0, atol=0)


class Wide(LightningModule):
    """A classifier that Adam moves fast."""

    def __init__(self, rate):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
            )
            self.inputs = torch.randn(512, 64)
            self.batches = torch.randint(512, (40, 64))
        self.rate, self.norms = rate, []

    def training_step(self, batch, batch_idx):
        chosen = self.batches[batch_idx]
        return nn.functional.cross_entropy(self.network(self.inputs[chosen]), self.inputs[chosen, :10].argmax(1))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.norms.append([torch.linalg.matrix_norm(self.network[i].weight.double(), 2).item() for i in (0, 2, 4)])

    def train_dataloader(self):
        return range(40)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.rate)


@pytest.mark.parametrize("rate", [1e-7, 1e-3, 1e-2])
def test_norms_are_within_one_percent_of_the_bound_after_every_step_of_adam(rate, trainer_of):
    module = Wide(rate)
    trainer_of(SpectralNormalization(), max_epochs=1).fit(module)

    assert len(module.norms) == 40
    torch.testing.assert_close(torch.tensor(module.norms), torch.ones(40, 3), rtol=0.01, atol=0)


class ManualSteps(Regressor):
    """Steps by hand, with gradients reset as a test asks for."""

    def __init__(self, resets):
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.05))
        self.automatic_optimization, self.resets = False, resets

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        if self.resets or batch_idx == 0:
            optimizer.zero_grad(**({} if self.resets is True else {"set_to_none": False}))
        self.manual_backward(self.loss(batch))
        optimizer.step()
        if self.resets is True:
            optimizer.step()


def test_two_steps_with_one_gradient_are_two_steps_of_the_unnormalized_weights(trainer_of):
    module = ManualSteps(resets=True).double()
    trainer_of(SpectralNormalization(norm="matrix"), max_epochs=1).fit(module, loader(dtype=torch.float64))

    expected = Regressor().double()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05)
    for batch in loader(dtype=torch.float64):
        weights = {f"module.{name}": weight for name, weight in normalized(expected, "matrix").items()}
        functional_call(Loss(expected), weights, (batch,)).backward()
        optimizer.step()
        optimizer.step()
        optimizer.zero_grad()
    seen = dict(expected.named_parameters()) | normalized(expected, "matrix")
    torch.testing.assert_close(
        weights_of(module), {name: weight.detach() for name, weight in seen.items()}, rtol=1e-8, atol=1e-10
    )


def test_gradients_that_are_added_to_after_a_step_are_refused_with_the_remedy(trainer_of):
    with pytest.raises(MisconfigurationException, match=r"gradient of 'network\.encoder\.weight' .*zero_grad\(\)"):
        trainer_of(SpectralNormalization(), max_epochs=1).fit(ManualSteps(resets=False), loader())


def test_gradients_that_are_reset_in_place_are_taken(trainer_of):
    module, expected = (
        ManualSteps(resets="in place"),
        Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.05)),
    )
    trainer_of(SpectralNormalization(), max_epochs=1).fit(module, loader())
    trainer_of(SpectralNormalization(), max_epochs=1).fit(expected, loader())

    torch.testing.assert_close(weights_of(module), weights_of(expected), rtol=0, atol=0)


def _nan(known):
    known["sigma"].fill_(float("nan"))


def _other_shape(known):
    known["left"] = torch.ones(1, 1, 3)


def _missing(known):
    del known["sigma"]


@pytest.mark.parametrize("damage", [_nan, _other_shape, _missing])
def test_a_damaged_state_is_named_and_starts_anew(damage, trainer_of, tmp_path):
    trainer = trainer_of(SpectralNormalization(), max_epochs=1)
    trainer.fit(Regressor(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if "SpectralNormalization" in key)
    damage(state["weights"]["network.encoder.weight"])
    torch.save(checkpoint, tmp_path / "last.ckpt")

    module = Regressor()
    with pytest.warns(UserWarning, match=r"'network\.encoder\.weight' is damaged, or of another weight"):
        trainer_of(SpectralNormalization(), max_epochs=2).fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")

    torch.testing.assert_close(norms(module), torch.ones(3), rtol=0.02, atol=0)


@pytest.mark.parametrize("make", [SpectralNormalization, SpectralConstraint])
def test_weights_that_were_changed_in_the_checkpoint_are_held_from_the_start(make, trainer_of, tmp_path):
    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            self.norms = norms(pl_module)

    trainer = trainer_of(make(0.5), max_epochs=1)
    trainer.fit(Regressor(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    for name in ("network.encoder.weight", "network.conv.weight"):
        checkpoint["state_dict"][name] *= 3
    torch.save(checkpoint, tmp_path / "last.ckpt")

    start = Start()
    is_named = pytest.warns(UserWarning, match=r"'network\.(encoder|conv)\.weight' is damaged, or of")
    with is_named if make is SpectralNormalization else contextlib.nullcontext():
        trainer_of(make(0.5), start, max_epochs=2).fit(Regressor(), loader(), ckpt_path=tmp_path / "last.ckpt")

    assert start.norms.max() <= 0.5 * 1.01


def test_norms_are_right_in_the_very_step_after_all_weights_were_replaced(trainer_of):
    module = Wide(1e-3)
    others = Wide(1e-3)
    for weight in others.parameters():
        nn.init.normal_(weight)

    class Replace(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                pl_module.load_state_dict(others.state_dict())

    trainer_of(SpectralNormalization(), Replace(), max_epochs=1, limit_train_batches=6).fit(module)

    torch.testing.assert_close(torch.tensor(module.norms), torch.ones(6, 3), rtol=0.01, atol=0)
