"""A certified upper bound of the Lipschitz constant of a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg import _checks
from lightning_reg.functional.lipschitz.nested import found
from lightning_reg.functional.lipschitz.rounding import FAR_UPWARDS
from lightning_reg.functional.lipschitz.rules.registry import UserRule, register
from lightning_reg.functional.lipschitz.stand_in import widened
from lightning_reg.functional.lipschitz.walk import Findings, walk
from lightning_reg.functional.tensors.precision import without_autocast

__all__ = ["LipschitzReport", "lipschitz_bound"]


@dataclass(frozen=True)
class LipschitzReport:
    """The result of `lipschitz_bound`.

    Attributes:
        value: The upper bound; infinity if there is none, NaN if a weight is not finite.
        per_layer: The constant of each single layer with weights, by name.
        unbounded: The name of each layer or operation that makes the bound infinite, with the reason.

    Example:
        >>> report = LipschitzReport(value=2.0, per_layer={"0": 2.0})
        >>> report.value, report.unbounded
        (2.0, ())

    """

    value: float
    per_layer: dict[str, float] = field(default_factory=dict)
    unbounded: tuple[tuple[str, str], ...] = ()


def lipschitz_bound(
    module: nn.Module,
    example_input: Tensor | Sequence[Any] | dict[Any, Any],
    *,
    fold_batch_norm: bool = True,
    center: Tensor | Sequence[Any] | dict[Any, Any] | None = None,
    radius: float = math.inf,
    all_labels: bool = False,
) -> LipschitzReport:
    r"""Return an upper bound of a module's Lipschitz constant, :math:`\max_{x, y} \|f(x) - f(y)\|_2 / \|x - y\|_2`.

    The bound is never below the truth. It is rounded up, by 1e-5 unless inputs are float64, so that it is also not
    below the result of `jacobian_norm` in float32. It exceeds the truth by a few percent for networks of a few layers,
    and by orders of magnitude for deep ones. It comes from a walk over the torch operations that `forward` calls:
    successive operations multiply, sums add, concatenation takes the root of the sum of squares, and a module used
    twice counts twice. In chains of linear layers and monotone activations, the bound is the smaller of the product and
    ECLipsE-Fast (about half of the product at initialization), and exact without activations. In chains of up to 128
    units, with any activations of known slopes, it is the bound of LipSDP, up to 0.05 %: no multipliers of single units
    give less. That takes about 0.2 s for 128 units.

    - Layers: the exact norm of matrices (with more than 1024 rows and columns a certified bound that is 0.5 % above it
      at most), `conv_norm_bound` of convolutions at the size of the image that they get.
    - Activations: their largest slope, rounded up (GELU 1.12891, SiLU 1.09984); softmax 1/2, log-softmax the root of
      the number of classes.
    - Batch normalization by running statistics. LayerNorm, RMSNorm, GroupNorm and InstanceNorm:
      :math:`\max |\gamma| / \sqrt{\epsilon}`, attained at constant inputs: a true bound, but rarely useful. The same if
      they are written by hand, as in LLaMA and T5: rows times or over a function of their length.
    - What is linear in one tensor, from the sizes and the constants: products (einsum, tensordot, `addmm`), Fourier
      transforms, differences, pooling, padding, interpolation in every mode, indices, scatter. Most are exact.
    - Reductions, deviations, distances to constants; losses with constant targets, as functions of the prediction
      (cross entropy :math:`\sqrt 2 / \sqrt N` for a mean over N samples).
    - `RNN` with tanh or ReLU: :math:`\|W\|` times the norm of the triangle of powers of :math:`\|U\|` over its steps.
    - `LSTM` and `GRU`: gates multiply what is bounded, so there is a bound, which grows with the steps like a product.
    - Dot-product attention (`nn.MultiheadAttention`, `scaled_dot_product_attention`, or written by hand), gates and
      other products of two values that depend on the input: finite where their size has a bound, as after LayerNorm,
      RMSNorm or a sigmoid. A head of n queries changes by :math:`s R_v (R_k \|\delta Q\| + \sqrt n R_q \|\delta
      K\|) + \sqrt n \|\delta V\|` at most, if rows are no longer than R and s is the scale. So transformers that
      normalize first have a bound. Deep ones have an astronomical one: its logarithm over training and the constants
      of layers are what can be read. Those that normalize last have none, for nothing bounds what the first attends to.
    - Other products, embeddings, and operations that are not known: infinity, with name and reason, never skipped.
      `register_lipschitz_rule` adds a rule.

    The bound is for eval mode (no dropout, running statistics), whatever the mode of the module, which does not change:
    the walk runs a copy that shares its weights, and restores random generators. Parametrized, pruned and sharded
    weights count as `forward` uses them. Forward hooks are not run. Wrappers of `torch.compile` and DDP are removed.

    Args:
        module: The network. Half precision is computed in float32, with autocast off.
        example_input: A tensor, or a tuple of the positional arguments of `forward`, on the module's device, with
            tensors anywhere in them. A dict is a single argument. The sizes matter, including the batch; the values do
            not. If `forward` treats samples independently, one sample is enough and cheapest: the network runs on it
            once. All floating-point tensors count as one input (distances are roots of sums of squares); whole numbers
            beside them are held fixed, unless `all_labels`.
        fold_batch_norm: Whether batch normalization is folded into the linear layer or convolution before it, if that
            gives less. Default True.
        center: Of a ball of inputs. The bound then holds for any two of them, and is smaller: activations have the
            slopes that they have there, of a ReLU that stays off 0, and values the size that they have there. An input
            like `example_input`, and by default that; its values count. Where `forward` keeps samples apart, the bound
            holds for each of them in a ball of its own.
        radius: Of the ball, in the 2-norm, > 0. Default infinity: the bound for all inputs.
        all_labels: Whether whole numbers and booleans among the inputs may be any others. An embedding, or a table that
            they index, then counts with all its rows, and a number that is computed from them otherwise as unbounded.
            Default False: the bound holds for those of the example, such as the labels of one batch.

    Returns:
        The report. Several output tensors (in a tuple, a dict, a dataclass) count as one, like inputs. The value is NaN
        if a weight is not finite. If the walk cannot follow the module, the value is infinity, and the report has the
        layers that the example reaches and the reason under the name "trace". A collective call for sharded weights.

    Raises:
        TypeError: If `module` is not a module, `example_input` or `center` holds no tensor, or another argument is of
            the wrong kind.
        ValueError: If `radius` is not > 0.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
        >>> for layer in network[0], network[2]:
        ...     _ = nn.init.orthogonal_(layer.weight)
        >>> report = lipschitz_bound(network, torch.zeros(1, 4))
        >>> round(report.value, 4), sorted(report.per_layer), report.unbounded
        (1.0, ['0', '2'], ())

    Reference:
        Gouk et al., Regularisation of Neural Networks by Enforcing Lipschitz Continuity, 2021, arXiv:1804.04368;
        Xu & Sivaranjani, ECLipsE: Efficient Compositional Lipschitz Constant Estimation for Deep Neural Networks, 2024,
        arXiv:2404.04375, for chains; Fazlyab et al., Efficient and Accurate Estimation of Lipschitz Constants for Deep
        Neural Networks, 2019, arXiv:1906.04893, for small ones.

    """
    check_module(module)
    _checks.boolean("fold_batch_norm", fold_batch_norm)
    reach = _distance(radius)
    _checks.boolean("all_labels", all_labels)
    inputs = as_inputs(example_input)
    if center is not None:
        inputs = as_inputs(center, "center")
    findings, rounding = findings_at(module, inputs, fold=fold_batch_norm, all_labels=all_labels)
    if math.isfinite(reach):
        near, _ = findings_at(module, inputs, fold=fold_batch_norm, reach=reach, all_labels=all_labels)
        # What is certain everywhere is so in the ball.
        if not near.value > findings.value:
            findings = near
    return LipschitzReport(findings.value * rounding, findings.per_layer, findings.unbounded)


def _distance(radius: object) -> float:
    is_infinite = isinstance(radius, float) and radius == math.inf
    distance = math.inf if is_infinite else _checks.number("radius", radius)
    if distance <= 0:
        msg = f"`radius` must be a number > 0, got {radius!r}; infinity stands for all inputs."
        raise ValueError(msg)
    return distance


def findings_at(
    module: nn.Module,
    inputs: tuple[Any, ...],
    *,
    fold: bool = True,
    reach: float = math.inf,
    all_labels: bool = False,
) -> tuple[Findings, float]:
    """Return the findings of the walk, and the factor that compensates the rounding of the forward pass."""
    with torch.inference_mode(False), torch.no_grad(), without_autocast(device_of(inputs)):  # noqa: FBT003  # torch's
        findings = walk(module, [widened(value) for value in inputs], fold=fold, reach=reach, all_labels=all_labels)
    in_double = all(tensor.dtype == torch.float64 for tensor in found(inputs, Tensor) if tensor.is_floating_point())
    return findings, 1.0 if in_double else FAR_UPWARDS


def check_module(module: object) -> None:
    """Raise if `module` is not a module."""
    if not isinstance(module, nn.Module):
        msg = f"`module` must be a torch.nn.Module, got {module!r} of type {type(module).__name__}."
        raise TypeError(msg)


def device_of(inputs: tuple[Any, ...]) -> torch.device:
    """Return the device of the first tensor."""
    return next(found(inputs, Tensor)).device


def register_lipschitz_rule(target: type[nn.Module] | Callable[..., Any], rule: Callable[..., Any]) -> None:
    """Register the Lipschitz constant of a layer or function for `lipschitz_bound`.

    Args:
        target: A module type or a function. The walk then does not enter modules of this type, nor of subclasses with
            the same `forward` and the same methods that it calls. A function of torch also stands for the tensor method
            of that name. Your own function must be called by a global name where `forward` is written. A second
            registration replaces the first.
        rule: Called as `rule(module, *args, **kwargs)`, or for a function as `rule(*args, **kwargs)`, with the
            arguments of the module or function at the example input. `module` is in eval mode, with plain weights. The
            rule returns the constant, a number >= 0 (infinity if there is none), for all tensors among the arguments
            as one: their distance is the root of the sum of squares. It may depend on the sizes of tensors, but must
            hold for any values. The bound relies on it without a check.

    Raises:
        TypeError: If `target` is neither a module type nor a function, or `rule` is not callable. An error in the rule,
            or an answer that is not such a number, is raised by `lipschitz_bound`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Clip(nn.Module):
        ...     def forward(self, x):
        ...         return x / max(1.0, x.norm().item())  # what no trace can follow
        >>> register_lipschitz_rule(Clip, lambda module, x: 1.0)  # the projection onto a ball
        >>> lipschitz_bound(nn.Sequential(Clip(), nn.Tanh()), torch.zeros(1, 3, dtype=torch.float64)).value
        1.0

    """
    is_module = isinstance(target, type) and issubclass(target, nn.Module)
    if isinstance(target, nn.Module) or (isinstance(target, type) and not is_module) or not callable(target):
        msg = f"`target` must be a subclass of torch.nn.Module or a function, got {target!r}."
        raise TypeError(msg)
    _checks.function("rule", rule, "callable as rule(module, *inputs) or, for a function, rule(*inputs)")
    register(target, UserRule(rule))


def as_inputs(example_input: Any, name: str = "example_input") -> tuple[Any, ...]:
    """Return the arguments of `forward`."""
    inputs = (example_input,) if isinstance(example_input, Tensor | dict) else example_input
    if not isinstance(inputs, tuple | list) or next(found(inputs, Tensor), None) is None:
        kind = type(example_input).__name__
        msg = f"`{name}` must be a tensor or a tuple of the inputs of `forward`, or its one dict, got a {kind}."
        raise TypeError(msg)
    return tuple(inputs)
