"""The formulas of the dropout modules, with the rate as a tensor and random numbers as an argument.

The modules themselves take the rate as a Python number and draw from the global generator. But `torch.compile`
recompiles for every new number, and Monte Carlo samples need their own random streams.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SELU_FLOOR = -1.7580993408473766  # where SELU saturates: - scale * alpha of Klambauer et al. 2017

# Subclasses with their own `forward` may compute anything.
_ELEMENTWISE = (nn.Dropout, nn.AlphaDropout)
_CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
# Dimensions of an input without a batch. `Dropout2d` treats three dimensions as a batch of one-dimensional maps.
_UNBATCHED_1D, _UNBATCHED_3D = 2, 4


def is_drop_path(module: nn.Module) -> bool:
    """Tell whether this is stochastic depth: `DropPath` of timm or Hugging Face, `StochasticDepth` of torchvision."""
    name = type(module).__name__.lower()
    attribute = "p" if "stochasticdepth" in name else "drop_prob"
    return ("droppath" in name or "stochasticdepth" in name) and attribute in vars(module)


def has_formula(module: nn.Module) -> bool:
    """Tell whether `drop` knows the formula of this module."""
    if "forward" in vars(module):
        return False
    return is_drop_path(module) or type(module).forward in [kind.forward for kind in (*_ELEMENTWISE, *_CHANNELWISE)]


def mask_shape(module: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the mask for an input of `shape`: 1 along dimensions that are dropped together."""
    if isinstance(module, _CHANNELWISE):
        is_unbatched_1d = isinstance(module, nn.Dropout1d) and len(shape) == _UNBATCHED_1D
        is_unbatched_3d = isinstance(module, nn.Dropout3d) and len(shape) == _UNBATCHED_3D
        kept = 1 if is_unbatched_1d or is_unbatched_3d else 2
    elif isinstance(module, _ELEMENTWISE):
        kept = len(shape)
    else:
        kept = 0 if getattr(module, "mode", "row") == "batch" else 1  # torchvision can also drop whole batches
    return (*shape[:kept], *(1 for _ in shape[kept:]))


def drop(module: nn.Module, inputs: Tensor, rate: Tensor | float, noise: Tensor) -> Tensor:
    """Return the output of `module` in training mode at `rate`.

    Args:
        module: A module for which `has_formula` is true.
        inputs: Any floating-point tensor that the module takes.
        rate: In [0, 1), a number or a tensor of shape (). Nothing waits for a tensor's value.
        noise: Uniform in [0, 1), with the shape of the mask. Always in float32, because bfloat16 has only 128 numbers
            between 0.5 and 1.

    Returns:
        A tensor of the shape of `inputs`; `inputs` itself if the module works in place.

    """
    keep = noise >= rate
    if isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
        # a x + b, with a and b that keep mean 0 and variance 1; dropped entries of x are at the floor.
        slope = ((1 - rate) * (1 + rate * _SELU_FLOOR**2)) ** -0.5
        offset = -slope * rate * _SELU_FLOOR
        outputs = torch.where(keep, inputs, _SELU_FLOOR) * slope + offset
    else:
        factor = keep / (1 - rate) if getattr(module, "scale_by_keep", True) else keep
        outputs = inputs * factor.to(inputs.dtype)
    outputs = outputs.to(inputs.dtype)
    return inputs.copy_(outputs) if getattr(module, "inplace", False) else outputs
