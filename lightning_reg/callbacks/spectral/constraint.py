"""The spectral constraint: weights that have left the ball of norm c go back into it, right after the step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.spectral.control import SpectralControl
from lightning_reg.callbacks.spectral.weights import WeightNorms, is_matrix, layer_of, local, mask_of
from lightning_reg.functional.spectral.matrices import clip_singular_values
from lightning_reg.functional.tensors.precision import without_autocast
from lightning_reg.functional.tensors.shards import local_slice
from lightning_reg.selection import Select, Weight

# The estimate is from below. Followed from step to step it is within a few per cent, unless a step moves a weight as
# far as it is long.
_ITERATIONS = 10
_MARGIN = 0.1
# Where an exact norm or a certified bound costs little more than an estimate, none is trusted: of matrices with so
# short a side, of convolutions of so few channels. Elsewhere not for longer than so many steps.
_SHORT_SIDE = 64
_FEW_CHANNELS = 16
_TRUSTED_STEPS = 64
# Beyond so many times the bound, rounding in float32 would be seen in what is left.
_FAR = 10


class Projection:
    """Projects weights onto norms of at most a bound.

    Args:
        norm_bound: c, the largest norm.
        clips: Whether matrices have their singular values clipped; else they are rescaled, as convolutions are.

    """

    def __init__(self, norm_bound: float, *, clips: bool) -> None:
        self._bound, self._clips = norm_bound, clips
        self._norms = WeightNorms()
        self._weights: dict[Tensor, Weight] = {}
        self._ages: dict[str, int] = {}
        """Steps since the exact norm of a weight was last computed."""

    @torch.no_grad()
    def start(self, weights: Iterable[Weight], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Project `weights`; those among `saved` are inside already."""
        for weight in weights:
            self._weights[weight.parameter] = weight
            known = saved.get(weight.name)
            if known is None:
                self._project(weight)
            else:
                self._ages[weight.name] = int(known["age"])
                if "v" in known:
                    self._norms.vectors[weight.name] = known["v"].to(weight.parameter.device)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what decides on the next exact norms, on the CPU."""
        vectors = self._norms.vectors
        return {
            weight.name: {"age": torch.tensor(self._ages[weight.name])}
            | ({"v": vectors[weight.name].cpu().clone()} if weight.name in vectors else {})
            for weight in self._weights.values()
        }

    def before_step(self, optimizer: Optimizer) -> None:
        """Do nothing: gradients are as they are."""

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Project what `optimizer` has taken out of the ball; waits for the device."""
        held = (tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None)
        weights = [self._weights[tensor] for tensor in held if tensor in self._weights]
        small = [weight for weight in weights if _is_small(weight)]
        for weight in [*small, *self._doubtful([weight for weight in weights if not _is_small(weight)])]:
            self._project(weight)

    def stop(self) -> None:
        """Do nothing: the weights are in the ball after each step."""

    def _doubtful(self, weights: Sequence[Weight]) -> list[Weight]:
        """Return those that may be outside, by their estimates."""
        for weight in weights:
            self._ages[weight.name] += 1
        estimates = [pair.sigma for pair in self._norms.pairs(weights, _ITERATIONS)]
        if not estimates:
            return []
        sure = torch.stack([estimate.to(estimates[0].device) for estimate in estimates]) <= self._bound * (1 - _MARGIN)
        return [
            weight
            for weight, is_sure in zip(weights, sure.tolist(), strict=True)
            if not is_sure or self._ages[weight.name] >= _TRUSTED_STEPS
        ]

    def _project(self, weight: Weight) -> None:
        """Bring a weight inside, by its exact norm or the certified bound of it; NaN is left as it is."""
        self._ages[weight.name] = 0
        layer, values = layer_of(weight), local(weight)
        with without_autocast(values.device):
            norm = layer.norm_bound()
            excess = float(norm) / self._bound
            if not excess > 1:
                return
            # Rounding may lengthen.
            bound = self._bound * (1 - torch.finfo(values.dtype).eps)
            if self._clips and is_matrix(weight) and mask_of(weight) is None:
                clipped = clip_singular_values(layer.matrix(), bound, is_far=excess > _FAR)
                values.copy_(local_slice(layer.from_matrix(clipped), weight.parameter))
            else:
                values.copy_(values * (bound / norm))


def _is_small(weight: Weight) -> bool:
    if is_matrix(weight):
        return min(weight.shape[0], weight.shape[1:].numel()) <= _SHORT_SIDE
    return min(weight.shape[:2]) <= _FEW_CHANNELS


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
            dimensions. Those that sit in no layer (class tokens, position tables, layer scales; see `register_layer`)
            are left alone, unless a pattern matches nothing else.
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
