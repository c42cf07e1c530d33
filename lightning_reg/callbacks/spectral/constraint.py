"""The spectral constraint: right after each step, project weights with a norm above c back to norm c."""

from collections.abc import Sequence
from typing import Literal, final, get_args

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.spectral.control import SpectralControl
from lightning_reg.callbacks.spectral.projected import Projection
from lightning_reg.callbacks.spectral.weights import is_matrix, subject
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.selection import Select, Weight

Method = Literal["clip", "rescale"]


@final
class SpectralConstraint(SpectralControl):
    r"""Keep the norm of each layer at c or below: project weights to :math:`\sigma(W) \le c` after each optimizer step.

    The bound is hard: it holds from the start of `fit`, after every step, up to a factor of 1.0001. In half precision,
    the rounding of weights comes on top; on a GPU, see the exception below. Weights within the bound do not change. A
    step that the fp16 scaler skips does not count.

    - Matrices (of Linear, Embedding, LSTM, attention) are clipped: singular values above c become c. This is the true
      projection, to the nearest matrix within the bound. Rescaling would shrink all singular values, step after step,
      and starve the network at a tight bound. Rows and columns of zeros stay exactly zero.
    - Convolutions are rescaled until their certified bound (`functional.conv_norm_bound`, for images of any size) is at
      most c, so their true norms end a few per cent below c. With reflecting or replicating padding the certified bound
      is less tight, and norms end far below c, at a third for a 3 x 3 kernel.
    - Modules, `state_dict` and gradients do not change. Ranks of DDP stay equal. Under FSDP2, one layer is gathered at
      a time.

    Cost: the callback checks matrices with a side of 256 or less after each step, and decomposes them if they are above
    the bound. In larger matrices, it follows the singular vectors above c from step to step, and clips their values to
    0.999 c. If the norm is then near c, a factorization certifies the result. If that fails, as with hundreds of
    singular values at c, a decomposition clips the matrix to 0.99 c. The callback skips all this while the weight
    cannot have moved from its last certified norm to c. One product with 8 random vectors decides that, with an error
    probability below 1e-6. For convolutions and rescaled matrices, the callback follows the norm, and holds it below c
    with a margin. It takes more steps of following if an optimizer step moves a weight far.

    During training on a GPU, the callback never waits for the device. It follows all matrices without a certificate.
    Later steps correct what it missed: with hundreds of singular values at c, norms can exceed c by a few per cent for
    some steps.

    Logged: nothing during training. `RegularizationMonitor` logs the norms (`reg/spectral_norm_max` is the largest, on
    the scale of c). A table printed before training, and TensorBoard's text `reg/setup_spectral`, show what happens to
    each weight.

    Args:
        norm_bound: c, > 0.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Weights outside any layer (class tokens, position tables, layer scales; see `register_layer`)
            are left alone, unless a pattern matches nothing else. Each stacked expert (experts x out x in, in a module
            that is not a layer of torch) is one matrix.
        method: How to project matrices: `"clip"` or `"rescale"`. Pruned matrices are always rescaled.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, if a
            weight is complex or computed by another parametrization, or if c is too large for its precision.
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
        return f"{subject(weight)}{how} to norm <= {self.norm_bound:g}"

    @override
    def change(self, weight: Weight) -> Change:
        # Clipping singular values does not preserve zeros.
        return "moves" if is_matrix(weight) and self.method == "clip" else "shrinks"

    @property
    @override
    def settings(self) -> dict[str, object]:
        return {"norm_bound": self.norm_bound}
