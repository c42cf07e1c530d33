"""Predictions under many dropout masks."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, final, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.dropout.rest import ask_evaluation, warn_of_unreached
from lightning_reg.callbacks.dropout.samplable import origin_of_zeros, samplable_sites, warn_of_those_left_off
from lightning_reg.callbacks.dropout.sampler import Sampler
from lightning_reg.callbacks.dropout.sites import listed
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.nested import map_tensors, tensors_in
from lightning_reg.callbacks.trainer.packages import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    is_a,
    is_param_in_hook_signature,
    rank_zero_warn,
)
from lightning_reg.ensemble import EnsemblePrediction, summarize_predictions
from lightning_reg.ensemble.averages import Aggregate, dim_of_stack
from lightning_reg.tensorboard import tags

_FEWEST = 2
_OFF = "this dropout stays off in MonteCarloDropout, because {reason}. Use a dropout module."
_DEAD = "Calls of `F.dropout` stay off in evaluation. Use dropout modules with rates above 0."


@final
class MonteCarloDropout(DuringFit[Callable[[], None]]):
    r"""Predict, test and validate with dropout active: the mean and the spread over `num_samples` masks.

    The mean is :math:`\bar p = \frac1n \sum_i p_i`. The entropy :math:`H(\bar p)` measures the total uncertainty, the
    mutual information :math:`H(\bar p) - \frac1n \sum_i H(p_i)` the uncertainty about the model.

    In `trainer.predict`, every tensor of floating-point numbers that `predict_step` returns becomes a
    `lightning_reg.ensemble.EnsemblePrediction`: `mean`, `std` and, for class probabilities, `entropy` and
    `mutual_information` in nats. Other values must be equal for all masks.

    In `trainer.test` and `trainer.validate`, `self(...)` returns the mean, so that `test_step` and `validation_step`
    measure the ensemble. Validation during `fit` does not change. If `self(...)` returns one tensor, these are logged
    over the epoch: `reg/mc_dropout_std` (the mean spread, in the unit of the output) and, for class probabilities,
    `reg/mc_dropout_entropy` and `reg/mc_dropout_mutual_information`.

    Only two kinds of modules are in training mode, and only while they compute: dropout modules, and modules that use
    `self.training` for dropout only. The first batch shows whether all samples in one batch give the same result as one
    by one; if so, they go through the model as one batch. Compiled models run without their graphs. Two passes over the
    first batch, in training mode with all rates at 0, find other dropout, and a warning names it; the passes are left
    out if weights are sharded. If masks were drawn but no prediction varies in a whole run, a warning says so at its
    end.

    Args:
        num_samples: Number of masks, at least 2.
        aggregate: `"arithmetic"` mean, or for class probabilities the normalised `"geometric"` mean.
        seed: Seed of the masks, an int. Default: the seed follows `seed_everything`, and masks differ in every run. The
            global random state never changes.
        softmax: Whether the model returns logits, which are turned into probabilities first. `test_step` then gets the
            logarithm of the mean probabilities, which are valid logits.
        dim: The dimension of the classes in an output.
        attribute: An attribute, or a list of attributes, that hold further rates. Modules in which it is a number are
            in training mode while they compute, with every effect of this mode.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, or with `"geometric"` if outputs are not probabilities.
        MisconfigurationException: If the model has no dropout, no mask is drawn for the first batch, the step does not
            call `self(...)`, or with tensor parallelism.

    Example:
        >>> MonteCarloDropout(50, softmax=True, seed=0)
        MonteCarloDropout(num_samples=50, aggregate='arithmetic', seed=0, softmax=True, dim=1, attribute=None)

    Reference:
        Gal & Ghahramani, Dropout as a Bayesian Approximation, 2016, arXiv:1506.02142; for the geometric mean: Hinton et
        al., Improving neural networks by preventing co-adaptation of feature detectors, 2012, arXiv:1207.0580.

    """

    stages = frozenset({"predict", "test", "validate"})

    def __init__(
        self,
        num_samples: int = 20,
        *,
        aggregate: Aggregate = "arithmetic",
        seed: int | None = None,
        softmax: bool = False,
        dim: int = 1,
        attribute: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.num_samples = _checks.count("num_samples", num_samples, _FEWEST)
        self.aggregate: Aggregate = aggregate
        _checks.one_of("aggregate", aggregate, get_args(Aggregate))
        self.seed = seed if seed is None else _checks.count("seed", seed, 0)
        self.softmax = _checks.boolean("softmax", softmax)
        self.dim = _checks.integer("dim", dim)
        listed(attribute)
        self.attribute = attribute
        self._runs = 0
        self._calls = 0
        self._varies = False

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_param_in_hook_signature(pl_module.predict_step, "dataloader_iter", explicit=True):
            msg = "MonteCarloDropout needs a `predict_step` that takes a batch, not `dataloader_iter`."
            raise MisconfigurationException(msg)

        def summarize(samples: Tensor) -> EnsemblePrediction | Tensor:
            return self._summary(samples) if samples.is_floating_point() else _same_for_all(samples)

        self._replace(trainer, pl_module, "predict_step", lambda samples: map_tensors(summarize, samples))

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average(trainer, pl_module, "test_step")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":  # not during `fit`
            self._average(trainer, pl_module, "validation_step")

    def _average(self, trainer: Trainer, pl_module: LightningModule, step: str) -> None:
        """Make `self(...)` in `step` return the mean."""

        def average(samples: Tensor, *, log: bool = False) -> Tensor:
            if not samples.is_floating_point():
                return _same_for_all(samples)
            summary = self._summary(samples)
            if log:
                _log_spread(trainer, pl_module, summary)
            return (summary.mean.log() if self.softmax else summary.mean).to(samples.dtype)

        def average_all(samples: Any) -> Any:
            return average(samples, log=True) if isinstance(samples, Tensor) else map_tensors(average, samples)

        self._replace(trainer, pl_module, step, average_all)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._check_calls("test_step")

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._run is not None:
            self._check_calls("validation_step")

    def _check_calls(self, step: str) -> None:
        if not self._calls:
            msg = (
                f"MonteCarloDropout averages the outputs of `self(...)`, but `{step}` did not call it. Define `forward`"
                f" and call `self(inputs)` in `{step}`, or use `trainer.predict`."
            )
            raise MisconfigurationException(msg)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        if self._calls and not self._varies:
            rank_zero_warn(
                "MonteCarloDropout drew dropout masks, but no prediction of this run varied over them. The weights"
                " behind dropout may be 0, or its outputs may not reach the predictions."
            )
        self._end(trainer)

    @override
    def end_run(self, trainer: Trainer, run: Callable[[], None] | None) -> None:
        if run is not None:
            run()

    def _replace(self, trainer: Trainer, pl_module: LightningModule, step: str, finish: Callable[[Any], Any]) -> None:
        """During this stage, make `predict_step`, or `forward` in another step, return `finish` of its samples."""
        name, called = (step, (step,)) if step == "predict_step" else ("forward", ())
        sites, off = samplable_sites(pl_module, listed(self.attribute), called)
        if not any(site.base for site in sites):
            found = f"all rates are 0{origin_of_zeros(pl_module, sites)}" if sites else "no module has a rate"
            msg = f"MonteCarloDropout finds no dropout in {type(pl_module).__name__}: {found}. {_DEAD}"
            raise MisconfigurationException(msg)
        mesh = pl_module.device_mesh
        if mesh is not None and mesh["tensor_parallel"].size() > 1:
            msg = "MonteCarloDropout does not work with tensor parallelism, because its ranks need common masks."
            raise MisconfigurationException(msg)
        warn_of_unreached(pl_module, [*sites, *off], (step,), _OFF)
        warn_of_those_left_off(off)
        sampler = Sampler(
            pl_module,
            [site for site in sites if site.base],
            self.num_samples,
            trainer.strategy.root_device,
            # If a pass gathers weights, every rank must make the same number of passes.
            one_by_one=is_a(trainer.strategy, "FSDPStrategy", "ModelParallelStrategy"),
        )
        seed = f"{torch.initial_seed()}/{self._runs}" if self.seed is None else self.seed
        self._runs, self._calls, self._varies = self._runs + 1, 0, False
        before, method = vars(pl_module).get(name), getattr(pl_module, name)

        @wraps(method)  # Lightning looks at the signature
        def sampled(*args: Any, **kwargs: Any) -> Any:
            is_first = not self._calls
            if is_first and state.has_whole_weights(trainer, pl_module):
                ask_evaluation(pl_module, partial(method, *args, **kwargs), [*sites, *off], sampler.device, called)
            samples = sampler(method, args, kwargs, f"{seed}/{trainer.global_rank}/{self._calls}")
            self._varies = self._varies or any((tensor != tensor[:1]).any() for tensor in tensors_in(samples))
            if is_first and not self._varies and not sampler.has_drawn:
                msg = f"Predictions do not vary over dropout masks, because no dropout module acts on them. {_DEAD}"
                raise MisconfigurationException(msg)
            self._calls += 1
            return finish(samples)

        def undo() -> None:
            del vars(pl_module)[name]
            if before is not None:
                vars(pl_module)[name] = before

        vars(pl_module)[name] = sampled
        self._run = undo

    def _summary(self, samples: Tensor) -> EnsemblePrediction:
        if self.softmax:
            wide = torch.promote_types(samples.dtype, torch.float32)
            samples = torch.softmax(samples, dim_of_stack(self.dim), dtype=wide)
        return summarize_predictions(samples, self.aggregate, dim=self.dim)


def _same_for_all(samples: Tensor) -> Tensor:
    if (samples != samples[:1]).any():
        msg = (
            f"MonteCarloDropout can't average the {samples.dtype} values of this model, which vary over masks. Return"
            " probabilities or logits (`softmax=True`), not classes."
        )
        raise MisconfigurationException(msg)
    return samples[0]


def _log_spread(trainer: Trainer, pl_module: LightningModule, summary: EnsemblePrediction) -> None:
    values = {"std": summary.std, "entropy": summary.entropy, "mutual_information": summary.mutual_information}
    metrics = {f"{tags.MC_DROPOUT}_{name}": value.mean() for name, value in values.items() if value is not None}
    rows = summary.mean.size(0) if summary.mean.ndim else 1
    pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=rows, sync_dist=trainer.world_size > 1)
