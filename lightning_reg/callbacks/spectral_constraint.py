"""Layers of norm c at most, after every step: the spectral constraint."""

from collections.abc import Sequence
from typing import Literal, final, get_args

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks._layer_weights import is_matrix
from lightning_reg.callbacks._projection import Projection
from lightning_reg.callbacks._spectral_control import SpectralControl
from lightning_reg.selection import Select, Weight

__all__ = ["SpectralConstraint"]

Method = Literal["clip", "rescale"]


@final
class SpectralConstraint(SpectralControl):
    r"""Keep the norm of each layer at c or below: after each optimizer step, back into :math:`\sigma(W) \le c`.

    A hard bound: it holds from the start of `fit` on, after every step, up to a factor of 1.0001 (in half precision up
    to the rounding of weights). Weights inside it are not touched. A step that the scaler of fp16 skips is none.

    - Matrices (of Linear, Embedding, LSTM, attention) are clipped: singular values above c become c. That is the
      nearest matrix inside, the true projection. Rescaling makes all singular values smaller instead, step after step,
      and starves the network at a tight bound.
    - Convolutions are rescaled by their certified bound (`functional.conv_norm_bound`, for images of any size), so
      their true norms end a few per cent below c.
    - Modules, `state_dict` and gradients stay as they are. Ranks of DDP stay equal; under FSDP2 one layer is gathered
      at a time.

    What it costs: a warm estimate from below tells which weights are above 0.9 c; for those, and for every weight after
    64 steps, the exact norm or the certified bound follows (always for matrices with a side of 64 or less, and
    convolutions with 16 channels or less). The decision waits for the device once a step; the singular value
    decomposition of a large matrix, and the bound of a convolution of many channels, take longer than a training step.
    Only where a single step takes a large layer from below 0.9 c in its estimate to above c, which moves the weight by
    a tenth of its norm, may the estimate miss it for some steps.

    Logged: nothing at steps; `RegularizationMonitor` has the norms (`reg/spectral_norm_max`: the largest, on the scale
    of c). What happens to which weight is printed before training, and TensorBoard's text `reg/setup_spectral`.

    Args:
        norm_bound: c, > 0.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions.
        method: Of matrices: `"clip"` or `"rescale"`. Pruned ones are rescaled.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            weight is complex or computed by another parametrization.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), or a
            weight is controlled twice.

    Example:
        >>> SpectralConstraint(1.0, select="encoder.*")
        SpectralConstraint(norm_bound=1.0, select='encoder.*', method='clip')

    Reference:
        Gouk et al., Regularisation of Neural Networks by Enforcing Lipschitz Continuity, 2021, arXiv:1804.04368; for
        clipping: Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019, arXiv:1805.10408.

    """

    def __init__(
        self,
        norm_bound: float,
        *,
        select: str | Sequence[str] | Select | None = None,
        method: Method = "clip",
    ) -> None:
        super().__init__(norm_bound, select)
        self.method = _checks.one_of("method", method, get_args(Method))

    @override
    def engine(self) -> Projection:
        return Projection(self.norm_bound, clips=self.method == "clip")

    @override
    def action(self, weight: Weight) -> str:
        how = "clipped" if is_matrix(weight) and self.method == "clip" else "rescaled"
        return f"{how} to norm <= {self.norm_bound:g}"

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound}
