"""The mean and the spread of several predictions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_reg import _checks

_TOLERANCE = 1e-2  # softmax in bfloat16 has an error of up to 2^-8

Aggregate = Literal["arithmetic", "geometric"]


class EnsemblePrediction(NamedTuple):
    """The outcome of several predictions of the same thing.

    Example:
        >>> prediction = summarize_predictions([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])])
        >>> prediction.mean, prediction.std
        (tensor([2., 2.]), tensor([1.4142, 0.0000]))

    """

    mean: Tensor
    """The arithmetic or geometric mean, with the shape of one prediction."""
    std: Tensor
    """The standard deviation over the predictions, with n - 1 in the denominator; with the same shape."""
    entropy: Tensor | None = None
    """For class probabilities: the entropy of the mean in nats, in [0, log C], the total uncertainty. The dimension of
    the classes is gone."""
    mutual_information: Tensor | None = None
    """For class probabilities: the entropy of the arithmetic mean minus the mean of the entropies, in nats, >= 0. It
    measures the uncertainty about the model, which more data would reduce. The dimension of the classes is gone."""


def average_predictions(
    predictions: Sequence[Tensor] | Tensor, aggregate: Aggregate = "arithmetic", *, dim: int = 1
) -> Tensor:
    r"""Average predictions, :math:`\frac1n \sum_i p_i` or :math:`\prod_i p_i^{1/n}` normalised over the classes.

    Args:
        predictions: Tensors of one shape, or one tensor with the predictions along its first dimension.
        aggregate: `"arithmetic"` takes any numbers. `"geometric"` takes class probabilities; for one softmax layer with
            dropout 0.5 it equals the prediction with halved weights.
        dim: The dimension of the classes in one prediction, for `"geometric"`.

    Returns:
        A tensor with the shape of one prediction, float32 at least. NaN where the geometric mean does not exist because
        every class has probability 0 in some prediction.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there are no predictions, their shapes differ, or with `"geometric"` if they are not
            probabilities.

    Example:
        >>> certain, uncertain = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
        >>> average_predictions([certain, uncertain])
        tensor([[0.7000, 0.3000]])
        >>> average_predictions([certain, uncertain], "geometric")
        tensor([[0.7500, 0.2500]])

    Reference:
        Hinton et al., Improving neural networks by preventing co-adaptation of feature detectors, 2012,
        arXiv:1207.0580.

    """
    _checks.one_of("aggregate", aggregate, get_args(Aggregate))
    _checks.integer("dim", dim)
    stacked = _stacked(predictions)
    if aggregate == "arithmetic":
        return stacked.mean(0)
    if not are_probabilities(stacked, dim):
        msg = (
            'aggregate="geometric" needs class probabilities: numbers >= 0 with sum 1 along the classes, which are in'
            f" dimension {dim} of predictions of shape {tuple(stacked.shape[1:])}. Apply softmax, or set `dim`."
        )
        raise ValueError(msg)
    return torch.softmax(stacked.log().mean(0), dim)


def summarize_predictions(
    predictions: Sequence[Tensor] | Tensor, aggregate: Aggregate = "arithmetic", *, dim: int = 1
) -> EnsemblePrediction:
    r"""Return the mean of predictions and measures of their spread.

    Args:
        predictions: At least two tensors of one shape, or one tensor with the predictions along its first dimension.
        aggregate: As for `average_predictions`.
        dim: The dimension of the classes in one prediction, if predictions are class probabilities.

    Returns:
        Mean and spread; with entropy :math:`H(\bar p)` and mutual information :math:`H(\bar p) - \frac1n \sum_i H(p_i)`
        if the predictions are class probabilities.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: As for `average_predictions`, or if there is only one prediction.

    Example:
        Two models that are both certain, but disagree:

        >>> summary = summarize_predictions([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
        >>> summary.entropy, summary.mutual_information
        (tensor([0.6931]), tensor([0.6931]))

    Reference:
        Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, 2011, arXiv:1112.5745.

    """
    stacked = _stacked(predictions)
    mean = average_predictions(stacked, aggregate, dim=dim)
    if len(stacked) == 1:
        msg = "`predictions` must be at least two, because one has no spread, got 1."
        raise ValueError(msg)
    std = stacked.std(0)
    if not are_probabilities(stacked, dim):
        return EnsemblePrediction(mean, std)
    # Above 0 but for rounding (Jensen), and with the arithmetic mean only.
    information = _entropy(stacked.mean(0), dim) - _entropy(stacked, dim_of_stack(dim)).mean(0)
    return EnsemblePrediction(mean, std, _entropy(mean, dim), information.clamp_min(0))


def are_probabilities(stacked: Tensor, dim: int) -> bool:
    """Tell whether predictions along dimension 0 are class probabilities along `dim` of one; waits for the device."""
    if not -(stacked.ndim - 1) <= dim < stacked.ndim - 1 or not stacked.numel():
        return False
    totals = stacked.sum(dim_of_stack(dim))
    return bool(((stacked >= 0).all() & ((totals - 1).abs() < _TOLERANCE).all()).item())


def _stacked(predictions: object) -> Tensor:
    stacked = predictions if isinstance(predictions, Tensor) else _joined(predictions)
    if not stacked.ndim or stacked.is_complex():
        what = "complex" if stacked.is_complex() else "of one number"
        msg = f"`predictions` must be real and stacked along the first dimension, got a tensor that is {what}."
        raise TypeError(msg)
    if not len(stacked):
        msg = "`predictions` must be at least one, got none."
        raise ValueError(msg)
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


def _joined(predictions: object) -> Tensor:
    if not _checks.is_list(predictions):
        msg = f"`predictions` must be a tensor or a list of tensors, got a {type(predictions).__name__}."
        raise TypeError(msg)
    if not all(isinstance(item, Tensor) for item in predictions):
        msg = f"`predictions` must be tensors, got {[type(item).__name__ for item in predictions]}."
        raise TypeError(msg)
    shapes = {tuple(item.shape) for item in predictions}
    if len(shapes) > 1:
        msg = f"`predictions` must be of one shape, got {', '.join(map(str, sorted(shapes)))}."
        raise ValueError(msg)
    return torch.stack(list(predictions)) if predictions else torch.empty(0)


def dim_of_stack(dim: int) -> int:
    """Return the dimension in stacked predictions that is `dim` in one prediction."""
    return dim + 1 if dim >= 0 else dim


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(dim)
    return entropy.clamp_min(0)  # a probability of 1 may be rounded up
