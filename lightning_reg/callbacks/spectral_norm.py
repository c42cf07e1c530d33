"""Layers of norm c during training: spectral normalization."""

from collections.abc import Sequence
from typing import Literal, final, get_args

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks._normalization import Normalization
from lightning_reg.callbacks._spectral_control import SpectralControl
from lightning_reg.selection import Select, Weight

__all__ = ["SpectralNormalization"]

Norm = Literal["operator", "matrix"]


@final
class SpectralNormalization(SpectralControl):
    r"""Train W while the network uses :math:`c\,W / \sigma(W)`, whose norm is c: spectral normalization.

    The update is that of Miyato et al.: the gradient goes through :math:`\sigma(W) = u^T W v` with u and v constant,
    and u and v are advanced once after each optimizer step. But the parameters of the module hold the normalized
    weights, and become W for the moment of the optimizer's update only. So whatever reads a weight finds the
    normalized one, and changes nothing by reading: monitors, weight averaging, validation, checkpoints, `deepcopy`,
    `torch.compile`. Module types, parameter names and `state_dict` stay as they are; the optimizer has the same
    parameters, and its weight decay acts on W.

    - :math:`\sigma` is a lower estimate, so true norms are above c: by less than 1 % where a step changes weights
      little, by up to a third in the first epochs of Adam at 0.003, and for a moment by more (up to twice c has been
      seen) where momentum moves weights far. `power_iterations` lessens that; `SpectralConstraint` holds a bound.
    - Weights are normalized from the start of `fit` on, and stay so after it. `validate`, `test` and `predict` take the
      weights as they are.
    - Checkpoints hold normalized weights under their plain names; what is needed to go on with W is in the callback's
      own state. Any checkpoint of the module can be loaded, and a resumed run goes on exactly.
    - Gradient clipping and penalties see the normalized weights and their gradients.
    - A zero weight stays zero. A frozen weight is normalized when it is first trained.

    Logged: nothing at steps; `RegularizationMonitor` has the norms (`reg/spectral_norm_max`: the largest, on the scale
    of c). What happens to which weight is printed before training, and TensorBoard's text `reg/setup_spectral`.

    Args:
        norm_bound: c, > 0: the norm of each layer, and so the factor by which it stretches its input at most.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions.
        norm: Of convolutions: `"operator"` is the norm of the map between images (of 16 pixels a side, or more where
            the kernel asks for it); `"matrix"` that of the kernel reshaped to a matrix, as Miyato et al. and torch have
            it: cheaper, but the convolution stretches its input by up to :math:`\prod \sqrt{\lceil k / s \rceil}` more.
        power_iterations: Products with each weight and its transpose after each step, >= 1.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            weight is complex or computed by another parametrization.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), or a
            weight is controlled twice.

    Example:
        >>> SpectralNormalization(2.0, select="critic.*")
        SpectralNormalization(norm_bound=2.0, select='critic.*', norm='operator', power_iterations=1)

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018, arXiv:1802.05957; for the norm
        of convolutions: Ryu et al., Plug-and-Play Methods Provably Converge, 2019, arXiv:1905.05406.

    """

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
    def action(self, weight: Weight) -> str:
        return f"normalized to {self.norm} norm {self.norm_bound:g}"

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound, "norm": self.norm}
