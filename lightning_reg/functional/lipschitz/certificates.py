"""Certified radii of a classifier: how far its input may move before the predicted class can change."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.bound import as_inputs, check_module, device_of, findings_at
from lightning_reg.functional.lipschitz.nested import found
from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise
from lightning_reg.functional.lipschitz.stand_in import stand_in, widened
from lightning_reg.functional.lipschitz.value import Bound
from lightning_reg.functional.tensors.precision import reported, without_autocast
from lightning_reg.functional.tensors.random import unchanged_generators

__all__ = ["certified_radius", "margin_bounds"]

# An upper limit of float64's rounding of eigenvalues below 1.
_ROUNDING = 1e-12


def margin_bounds(module: nn.Module, example_input: Tensor | Sequence[Any] | dict[Any, Any]) -> Tensor:
    r"""Return upper bounds of how fast the difference of any two outputs changes with the input.

    .. math:: |(f_i(x) - f_j(x)) - (f_i(y) - f_j(y))| \le M_{ij} \|x - y\|_2

    The bounds hold for all inputs. If the last layer is linear, M is :math:`\|w_i - w_j\|_2`, the distance of two rows
    of its weight, times the bound of the network before it (see `lipschitz_bound`). M is smaller at the end of a chain
    of linear layers and activations, where the bound of the chain includes the difference of the rows. In chains of few
    units, each pair of outputs has a LipSDP bound. Otherwise M is :math:`\sqrt 2` times the bound of the module. The
    network is followed once for all classes.

    Args:
        module: A classifier that treats samples independently. It is evaluated as in eval mode, and does not change.
        example_input: The input of the module, as for `lipschitz_bound`. One sample is enough.

    Returns:
        M, shape (K, K) for K outputs, float64, on the device of the example. It is symmetric, with zeros on the
        diagonal. Entries are infinite if no bound is known (`lipschitz_bound` gives the reason), and NaN if a weight is
        not finite.

    Raises:
        TypeError: If `module` is not a module, or if the example contains no tensor.
        ValueError: If the module cannot be called with the example, or if it does not return a tensor of shape
            (batch, K) or (K,).

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> margin_bounds(layer, torch.zeros(1, 2, dtype=torch.float32)).round(decimals=2)
        tensor([[0., 5.],
                [5., 0.]], dtype=torch.float64)

    Reference:
        Tsuzuku et al., Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep Neural
        Networks, 2018, arXiv:1802.04034.

    """
    check_module(module)
    inputs = as_inputs(example_input)
    classes, device = _classes(module, inputs), device_of(inputs)
    findings, rounding = findings_at(module, inputs)
    if findings.last is None:
        bounds = torch.full((classes, classes), findings.value * math.sqrt(2) * UPWARDS, dtype=torch.float64)
    else:
        bounds = _between_rows(*findings.last).cpu()
    return (bounds * rounding).fill_diagonal_(0).to(device)


def certified_radius(logits: Tensor, margin_bounds: Tensor) -> Tensor:
    r"""Return the 2-norm distance within which no change of a sample can change its predicted class.

    .. math:: r = \min_{j \ne i} (f_i(x) - f_j(x)) / M_{ij}, \qquad i = \arg\max_k f_k(x)

    No change of the input that is shorter than r changes the class.

    Args:
        logits: Outputs of a classifier in eval mode, shape (N, K). They count as exact, so compute them in float32 at
            least: the rounding of half precision can be larger than a margin.
        margin_bounds: M, the result of `margin_bounds`, shape (K, K), entries >= 0.

    Returns:
        One radius for each sample, in the unit of the input, shape (N,), float64 for float64 logits and float32
        otherwise. The radius is 0 if two classes tie, if a logit is not finite, or if no bound is known. It is infinity
        if no change of the input can change the class.

    Raises:
        TypeError: If `logits` or `margin_bounds` is not a tensor of real floating-point numbers.
        ValueError: If the shapes do not match, or if an entry of M is negative.

    Example:
        >>> import torch
        >>> certified_radius(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[0.0, 4.0], [4.0, 0.0]]))
        tensor([0.5000, 0.0000])

    """
    _check_tensors(logits, margin_bounds)
    outputs, bounds = precise(logits.detach()), precise(margin_bounds.detach()).to(logits.device)
    if not outputs.shape[1]:
        return outputs.new_zeros(len(outputs), dtype=reported(logits))
    largest, predicted = outputs.max(1)
    margins = largest[:, None] - outputs
    limits = bounds.to(margins.device)[predicted]
    radii = torch.where(limits == 0, torch.where(margins > 0, math.inf, 0.0), margins / limits)
    radii = radii.nan_to_num(nan=0.0, posinf=math.inf)  # NaN where M is not known
    radii.scatter_(1, predicted[:, None], math.inf)
    certain = torch.where(outputs.isfinite().all(1), radii.amin(1), 0.0)
    return _downwards(certain, reported(logits)).to(logits.device)


def _between_rows(weight: Tensor, before: Bound) -> Tensor:
    """Return the bounds for the difference of each pair of outputs of `weight`, shape (rows, rows), float64."""
    rows = precise(weight)
    # Distances computed by matrix products would lose the digits of rows that are close.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    bounds = distances * before.value
    if before.chain is not None and before.chain.shape is not None:
        # With R as in `chain`: |d^T x| <= g sqrt(d^T R d). The rounding of R and its root is far below 1e-6.
        factor = torch.linalg.eigh(before.chain.shape)
        root = factor.eigenvectors * (factor.eigenvalues.clamp_min(0) + _ROUNDING).sqrt()
        within = rows @ root
        chained = torch.cdist(within, within, compute_mode="donot_use_mm_for_euclid_dist") * before.chain.gain
        bounds = torch.where(bounds.isnan(), bounds, torch.minimum(bounds, chained))
    history = before.chain and before.chain.history
    own = history.of_differences(rows) if history and bool(bounds.isfinite().all()) else None
    if own is not None:
        bounds = torch.minimum(bounds, own.to(bounds.device))
    # Rounding differs on the two sides of the diagonal.
    return torch.where(distances == 0, 0, torch.maximum(bounds, bounds.mT) * UPWARDS)


def _downwards(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    return torch.where(rounded > values, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)


def _classes(module: nn.Module, inputs: tuple[Any, ...]) -> int:
    devices = {tensor.device for tensor in found(inputs, Tensor)}
    with (
        torch.inference_mode(False),  # noqa: FBT003  # torch's
        torch.no_grad(),
        without_autocast(device_of(inputs)),
        unchanged_generators(devices),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            output = stand_in(module)(*(widened(value) for value in inputs))
        except Exception as error:  # a user's module can raise anything
            msg = f"`module` cannot be called with `example_input`: {type(error).__name__}: {error}"
            raise ValueError(msg) from error
    if not isinstance(output, Tensor) or output.ndim not in {1, 2}:
        shape = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        msg = f"`module` must return logits, a tensor of shape (batch, classes), got {shape}."
        raise ValueError(msg)
    return output.shape[-1]


def _check_tensors(logits: object, margin_bounds: object) -> None:
    for name, tensor in (("logits", logits), ("margin_bounds", margin_bounds)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            msg = f"`{name}` must be a tensor of real floating-point numbers, got {kind}."
            raise TypeError(msg)
    if not isinstance(logits, Tensor) or not isinstance(margin_bounds, Tensor):
        return
    if logits.ndim != 2:  # noqa: PLR2004  # samples and classes
        msg = f"`logits` must have shape (samples, classes), got {tuple(logits.shape)}."
        raise ValueError(msg)
    if margin_bounds.shape != (classes := logits.shape[1], classes):
        msg = (
            f"`margin_bounds` must have shape {(classes, classes)} for `logits` of {classes} classes,"
            f" got {tuple(margin_bounds.shape)}."
        )
        raise ValueError(msg)
    if (margin_bounds < 0).any():
        msg = f"`margin_bounds` must be >= 0, got {margin_bounds.min().item()}."
        raise ValueError(msg)
