"""Spectral normalization: the network uses weights of a fixed norm, while the optimizer trains W."""

from collections.abc import Sequence
from typing import final, get_args

import torch
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.spectral.control import Run, SpectralControl
from lightning_reg.callbacks.spectral.normalized import Normalization
from lightning_reg.callbacks.spectral.weights import Norm, subject
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.selection import Select, Weight


@final
class SpectralNormalization(SpectralControl):
    r"""Train W while the network uses :math:`c\,W / \sigma(W)`, whose norm is c: spectral normalization.

    The update is the one of Miyato et al.: the gradient goes through :math:`\sigma(W) = u^T W v` with constant u and v,
    which are estimated anew after each optimizer step. But the parameters of the module hold the normalized weights,
    and become W only during the optimizer's update. So monitors, weight averaging, validation, checkpoints, `deepcopy`
    and `torch.compile` all read the normalized weight, and reading changes nothing. Module types, parameter names and
    `state_dict` do not change; the optimizer has the same parameters, and its weight decay acts on W.

    - After every step, norms are c within 1 %, and within 2 % for convolutions, also under Adam at rates up to 0.01,
      because blocks of singular vectors are followed. The norms are estimated from below, so true norms are c or a
      little more; `SpectralConstraint` holds a bound.
    - Weights are normalized from the start of `fit` on, and stay so after it. `validate`, `test` and `predict` do not
      change weights.
    - Checkpoints hold normalized weights under their plain names; the callback's own state holds the rest of W. Any
      checkpoint of the module can be loaded, and a resumed run continues exactly.
    - Gradient clipping and penalties see the normalized weights and their gradients.
    - A weight that starts at zero stays zero until its first update, which is not normalized, and then has norm c.
      Leave it out if it should grow slowly. A frozen weight is normalized when it is first trained.
    - A second step with the same gradients makes the same update of W. Gradients to which a backward pass adds after a
      step are refused: reset them.

    Logged: nothing during training; `RegularizationMonitor` logs the norms (`reg/spectral_norm_max`: the largest, on
    the scale of c). A table printed before training, and TensorBoard's text `reg/setup_spectral`, show what happens to
    each weight.

    Args:
        norm_bound: c, > 0: the norm of each layer, and so the largest factor by which it stretches its input.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Weights that sit in no layer (class tokens, position tables, layer scales; see `register_layer`)
            are left alone, unless a pattern matches nothing else. Stacked experts (experts x out x in, in a module that
            is not a layer of torch) are one matrix each.
        norm: For convolutions, `"operator"` is the norm of the map between images of any size, the least upper bound
            with zero padding. `"matrix"` is the norm of the kernel reshaped to a matrix, as in Miyato et al. and torch:
            cheaper, but the convolution stretches its input by up to :math:`\prod \sqrt{\lceil k / s \rceil}` more.
        power_iterations: Improvements of the singular vectors after each step, >= 1. Each is a step of a block
            iteration, worth many of torch's; 1 is enough for the accuracy above.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            weight is complex or computed by another parametrization, or c too large for its precision.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), a weight
            is controlled twice, or is trained by SparseAdam; later, if gradients are not reset, or if the optimizer
            changes weights before it calls its closure (SAM).

    Example:
        >>> SpectralNormalization(2.0, select="critic.*")
        SpectralNormalization(norm_bound=2.0, select='critic.*', norm='operator', power_iterations=1)

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018, arXiv:1802.05957; for the norm
        of convolutions: Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019, arXiv:1805.10408.

    """

    changes_before_steps = True

    def __init__(
        self,
        norm_bound: float = 1.0,
        *,
        select: str | Sequence[str] | Select | None = None,
        norm: Norm = "operator",
        power_iterations: int = 1,
    ) -> None:
        super().__init__(norm_bound, select)
        self.norm = _checks.one_of("norm", norm, get_args(Norm))
        self.power_iterations = _checks.count("power_iterations", power_iterations, 1)

    @override
    def engine(self) -> Normalization:
        return Normalization(self.norm_bound, as_matrices=self.norm == "matrix", iterations=self.power_iterations)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        run = super().make_run(trainer, pl_module)
        names = {weight.parameter: weight for weight in run.selection.chosen}
        for optimizer in trainer.optimizers:
            held = [names[tensor] for group in optimizer.param_groups for tensor in group["params"] if tensor in names]
            if isinstance(optimizer, torch.optim.SparseAdam) and held:
                msg = (
                    f"SparseAdam cannot train {held[0].name!r} under SpectralNormalization, which makes its gradient"
                    " dense: each entry of W changes the norm. Use Adam or SGD, or leave the weight out:"
                    f" `select=Select(exclude={held[0].plain_name!r})`."
                )
                raise MisconfigurationException(msg)
        return run

    @override
    def action(self, weight: Weight) -> str:
        return f"{subject(weight)}normalized to {self.norm} norm {self.norm_bound:g}"

    @override
    def change(self, weight: Weight) -> Change:
        return "norms"

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound, "norm": self.norm}
