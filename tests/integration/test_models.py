"""Models of Hugging Face transformers, timm and torch: what each callback finds in them, and that all of them train."""

import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_reg import (
    ActivityPenalty,
    Constant,
    Constraint,
    DropoutScheduler,
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    Linear,
    LipschitzMonitor,
    MarginPenalty,
    MCPPenalty,
    MonteCarloDropout,
    RegularizationMonitor,
    RegularizationPath,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
    TargetSparsity,
)
from tests.documented import EXPORTED, documented
from tests.event_files import scalars, texts
from tests.integration.foreign_models import BATCH, CASES, STEPS, Classifier
from tests.models import weights_of

every_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
BOUND = 0.5
ALONE = "normalized", "constrained", "grouped", "sparse"


def batches(case):
    return DataLoader(case.inputs(), batch_size=BATCH)


def plan(folder, tag):
    """Return the table of a plan: name of a weight or module, without the name of the model, -> its action."""
    rows = re.findall(r"^\| `model\.(.*?)` \| .*? \| (.*) \|$", texts(folder)[f"{tag}/text_summary"], re.MULTILINE)
    return dict(rows)


def chosen(table, action):
    return [name for name, actions in table.items() if action in actions.split(" + ")]


class Watch(Callback):
    """Keeps what the network was at the start of each batch; stands behind all other callbacks."""

    def __init__(self, dropouts=()):
        self.dropouts, self.weights, self.rates = dropouts, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(weights_of(pl_module.model))
        self.rates.append([rate(pl_module.model.get_submodule(name)) for name in self.dropouts])


def rate_name(module):
    names = "p", "drop_prob", "attention_dropout", "dropout"
    return next(name for name in names if isinstance(vars(module).get(name), float))


def rate(module):
    return getattr(module, rate_name(module))


def set_rate(module, value):
    setattr(module, rate_name(module), value)


@every_model
def test_every_callback_at_once(case, trainer_of, tmp_path):
    only = {role: f"model.{getattr(case, role)}" for role in ALONE}
    callbacks = [
        L1Penalty(1e-3),
        L2Penalty(1e-3, mode="grad"),
        ElasticNetPenalty(1e-3),
        GroupLassoPenalty(1e-3, select=only["grouped"], mode="proximal"),
        SpectralNormPenalty(1e-3, norm="matrix", mode="grad"),
        TargetSparsity(L1Penalty(0.0, select=only["sparse"], mode="proximal"), 0.5, schedule=Constant(1.0)),
        SpectralNormalization(BOUND, select=only["normalized"], norm="matrix", power_iterations=10),
        SpectralConstraint(BOUND, select=only["constrained"]),
        ActivityPenalty(1e-3, select=f"model.{case.linear}"),
        MCPPenalty(1e-3, mode="grad"),
        DropoutScheduler(Linear(0.1, 0.5, STEPS - 1)),
        RegularizationMonitor(per_layer=True),
        LipschitzMonitor(target=f"model.{case.linear}", input_transform=lambda batch: torch.ones(1, 16)),
        MonteCarloDropout(5, softmax=True, dim=-1, seed=0),
    ]
    # Constraints share no weights with some of these: tests/callbacks/constraints has the pairs. A path ends the fit.
    # No margin of these networks is bounded by a product of norms.
    apart = (Constraint, MarginPenalty, RegularizationPath)
    others = [kind for kind in EXPORTED if kind not in map(type, callbacks) and not issubclass(kind, apart)]
    callbacks += [documented(kind, select=None) for kind in others]
    watch = Watch(case.dropouts)
    module = Classifier(case)
    built = [rate(module.model.get_submodule(name)) for name in case.dropouts]
    trainer = trainer_of(*callbacks, watch, max_epochs=1, logger=TensorBoardLogger(tmp_path))

    trainer.fit(module, batches(case))

    # The choice of each callback.
    table = plan(tmp_path, "reg/setup")
    assert table.keys() == weights_of(module.model).keys()
    for action in ("l1 0.001", "l2 0.001", "elastic_net 0.001", "spectral_norm 0.001"):
        assert chosen(table, action) == case.matrices, action
    assert chosen(table, "group_lasso 0.001") == [case.grouped]
    assert chosen(table, "l1-1 0") == [case.sparse]
    assert {table[name] for name in table if name not in case.matrices} == {
        "none: 1 < 2 dimensions (L1Penalty, L2Penalty, ElasticNetPenalty, SpectralNormPenalty, MCPPenalty,"
        " AnchorPenalty, NuclearNormPenalty, OrthogonalPenalty); matches no pattern of `select` (GroupLassoPenalty,"
        " L1Penalty)"
    }
    table = plan(tmp_path, "reg/setup_spectral")
    assert chosen(table, f"normalized to matrix norm {BOUND}") == [case.normalized]
    how = "rescaled" if watch.weights[0][case.constrained].ndim > 2 else "clipped"
    assert chosen(table, f"{how} to norm <= {BOUND}") == [case.constrained]
    assert list(plan(tmp_path, "reg/setup_dropout")) == case.dropouts

    # The effect of each callback on weights and rates.
    after = weights_of(module.model)
    assert all(weight.isfinite().all() for weight in after.values())
    assert torch.linalg.matrix_norm(after[case.normalized].flatten(1), 2).item() == pytest.approx(BOUND, rel=0.02)
    assert torch.linalg.matrix_norm(after[case.constrained].flatten(1), 2) <= BOUND * 1.0001
    assert (after[case.sparse] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert watch.rates == [[pytest.approx(0.1 + 0.1 * step)] * len(case.dropouts) for step in range(STEPS)]
    assert [rate(module.model.get_submodule(name)) for name in case.dropouts] == built

    # The values logged by each callback, of the weights before the step.
    logged = scalars(tmp_path)
    for step, weights in enumerate(watch.weights):
        used = [weights[name] for name in case.matrices]
        absolute, squared = sum(w.abs().sum() for w in used), sum(w.square().sum() for w in used)
        assert logged["reg/penalty/l1"][step] == pytest.approx(1e-3 * absolute.item(), rel=1e-5)
        assert logged["reg/penalty/l2"][step] == pytest.approx(1e-3 * squared.item(), rel=1e-5)
        elastic = 1e-3 * (0.5 * absolute + 0.25 * squared)
        assert logged["reg/penalty/elastic_net"][step] == pytest.approx(elastic.item(), rel=1e-5)
        units = weights[case.grouped].transpose(0, case.units).flatten(1)
        expected = 1e-3 * units.shape[1] ** 0.5 * units.norm(dim=1).sum()
        assert logged["reg/penalty/group_lasso"][step] == pytest.approx(expected.item(), rel=1e-5)
        largest = sum(torch.linalg.matrix_norm(w.flatten(1), 2).square() for w in used)
        assert logged["reg/penalty/spectral_norm"][step] == pytest.approx(1e-3 * largest.item(), rel=0.02)
        assert logged["reg/target_sparsity/reached"][step] == pytest.approx(0.5, abs=0.02)
        assert logged["reg/dropout"][step] == pytest.approx(0.1 + 0.1 * step)
    for name in case.matrices:
        tag = f"reg.weight_norm/model.{name.removesuffix('.weight')}"
        assert logged[tag][STEPS - 1] == pytest.approx(after[name].norm().item(), rel=1e-5)
    assert sum(tag.startswith("reg.weight_norm/") for tag in logged) == len(case.matrices)
    stretch = torch.linalg.matrix_norm(module.model.get_submodule(case.linear).weight, 2).item()
    for tag in ("reg/lipschitz_lower", "reg/lipschitz_upper", f"reg.lipschitz/model.{case.linear}"):
        assert logged[tag][STEPS - 1] == pytest.approx(stretch, rel=2e-5)  # the upper bound is rounded up by 1e-5

    # Predictions vary with the masks, around the mean of probabilities.
    predictions = trainer.predict(module, batches(case))
    assert len(predictions) == STEPS
    for prediction in predictions:
        torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(prediction.mean.shape[:-1]))
        assert (prediction.std > 0).any()


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=10 * lr)


def term(case, model):
    named = dict(model.named_parameters())
    weights = [named[name] for name in case.matrices]
    units = named[case.grouped].transpose(0, case.units).flatten(1)
    return (
        0.01 * sum(weight.abs().sum() for weight in weights)
        + 0.02 * sum(weight.square().sum() for weight in weights)
        + 0.03 * units.shape[1] ** 0.5 * units.norm(dim=1).sum()
    )


def penalties(case):
    return (
        L1Penalty(0.01),
        L2Penalty(0.02, mode="grad"),
        GroupLassoPenalty(0.03, select=f"*{case.grouped}"),
    )


def by_hand(case, *, rates=None):
    module = Classifier(case, sgd)
    for name in case.dropouts if rates is not None else ():
        set_rate(module.model.get_submodule(name), rates)
    optimizer = module.configure_optimizers()
    for index, inputs in enumerate(batches(case)):
        optimizer.zero_grad()
        (module.training_step(inputs, index) + term(case, module.model)).backward()
        optimizer.step()
    return weights_of(module)


def assert_same(actual, expected):
    # Some gradients are zero up to rounding, such as the gradient of a bias of keys in attention.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@every_model
def test_its_training_equals_a_hand_written_objective(case, trainer_of):
    module = Classifier(case, sgd)

    trainer_of(*penalties(case), max_epochs=1).fit(module, batches(case))

    assert_same(weights_of(module), by_hand(case))


# torch.compile looks at `.grad` of tensors within transformers.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.parametrize("name", ["gpt2", "convnext"])
def test_the_training_of_a_compiled_model_equals_a_hand_written_objective(name, trainer_of, tmp_path):
    case = CASES[name]
    module = Classifier(case, sgd)
    module.model = torch.compile(module.model, backend="aot_eager")
    callbacks = [*penalties(case), DropoutScheduler(Constant(0.0))]

    trainer_of(*callbacks, max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(module, batches(case))

    assert chosen(plan(tmp_path, "reg/setup"), "l1 0.01") == case.matrices
    assert list(plan(tmp_path, "reg/setup_dropout")) == case.dropouts
    actual = {name.replace("_orig_mod.", ""): weight for name, weight in weights_of(module).items()}
    assert_same(actual, by_hand(case, rates=0.0))


@every_model
def test_no_dropout_escapes_the_scheduler(case, trainer_of):
    class Compare(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trained, again = pl_module(batch), pl_module(batch)
            pl_module.eval()
            self.differs = not torch.equal(trained, again)
            self.is_evaluation = torch.allclose(trained, pl_module(batch), rtol=1e-4, atol=1e-5)
            pl_module.train()

    compare = Compare()
    settings = {"max_epochs": 1, "limit_train_batches": 1}

    trainer_of(DropoutScheduler(Constant(0.0)), compare, **settings).fit(Classifier(case), batches(case))
    assert compare.is_evaluation

    trainer_of(DropoutScheduler(Constant(0.5)), compare, **settings).fit(Classifier(case), batches(case))
    assert compare.differs


def test_a_tied_weight_answers_to_both_of_its_names(trainer_of, tmp_path):
    case = CASES["gpt2"]
    module = Classifier(case)

    trainer_of(L1Penalty(0.1, select="model.lm_head.weight"), max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(
        module, batches(case)
    )

    assert module.model.lm_head.weight is module.model.transformer.wte.weight
    assert chosen(plan(tmp_path, "reg/setup"), "l1 0.1") == ["transformer.wte.weight"]


def test_an_output_of_hugging_face_keeps_its_kind_in_predictions(trainer_of):
    class Whole(Classifier):
        def predict_step(self, inputs, batch_idx):
            return self.model(inputs)

    case = CASES["bert"]
    module = Whole(case)
    (output, *_) = trainer_of(MonteCarloDropout(5, seed=0)).predict(module, batches(case))

    assert type(output) is type(module.model(case.inputs()))
    assert output.logits.mean.shape == (BATCH, 3)
    assert (output.logits.std > 0).any()
