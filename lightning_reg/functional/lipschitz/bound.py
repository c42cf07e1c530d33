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
        value: The upper bound. Infinity if no bound is known, NaN if a weight is not finite.
        per_layer: An upper bound of the Lipschitz constant of each layer with weights, by layer name.
        unbounded: Pairs of a name and a reason, one for each layer or operation that makes the bound infinite.

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

    The bound is never below the true constant. Unless inputs are float64, it is rounded up by a factor of 1 + 1e-5, so
    it is not below `jacobian_norm` in float32 either. It exceeds the constant by a few percent in networks of a few
    layers, and by orders of magnitude in deep networks.

    The function runs `forward` on the example and bounds every torch operation that it calls. The bounds of successive
    operations multiply, the bounds of summands add up, and concatenation takes the root of the sum of squares. A module
    that is used twice counts twice. Chains of linear layers and activations have sharper bounds than the product:

    - A chain of linear layers alone: the exact constant.
    - A chain with monotone activations: ECLipsE-Fast, about half of the product at initialization.
    - A chain of up to 128 units with activations of known slopes: LipSDP, within 0.05 % of its optimum. For 128 units
      this takes about 0.2 s.

    Operations are bounded as follows:

    - Linear layers: the exact norm of the matrix. If the smaller side of the matrix has 1025 to 8192 entries, a
      certified bound replaces the norm, and exceeds it by at most 0.5 %. Convolutions: `conv_norm_bound` at the size of
      the image that they receive.
    - Activations: their largest slope, rounded up (GELU 1.12891, SiLU 1.09984). Softmax: 1/2. Log-softmax: the root of
      the number of classes.
    - Batch normalization: its slopes under the running statistics. LayerNorm, RMSNorm, GroupNorm and InstanceNorm:
      :math:`\max |\gamma| / \sqrt{\epsilon}`. Constant inputs attain this bound, but it is rarely useful. It also
      applies to normalizations written by hand, as in LLaMA and T5: rows multiplied or divided by a function of their
      length.
    - Operations that are linear in one tensor: a bound from the sizes and the constants, in most cases exact. These are
      products (einsum, tensordot, `addmm`), Fourier transforms, differences, pooling, padding, interpolation in every
      mode, indexing and scatter.
    - Reductions, deviations, distances to constants, and losses with constant targets, as functions of the prediction
      (cross entropy: :math:`\sqrt 2 / \sqrt N` for a mean over N samples).
    - `RNN` with tanh or ReLU: :math:`\|W\|` times the norm of the triangular matrix of powers of :math:`\|U\|` over the
      steps, for the input weight W and the recurrent weight U.
    - `LSTM` and `GRU`: a bound that grows with the number of steps like a product, because gates multiply bounded
      values.
    - Dot-product attention (`nn.MultiheadAttention`, `scaled_dot_product_attention`, or written by hand), gates and
      other products of two values that depend on the input: a finite bound if the size of both values has a bound, as
      after LayerNorm, RMSNorm or a sigmoid. The output of a head with n queries changes by at most
      :math:`s R_v (R_k \|\delta Q\| + \sqrt n R_q \|\delta K\|) + \sqrt n \|\delta V\|`, where R is the largest
      length of a row and s is the scale. So pre-norm transformers have a bound. In deep ones it is astronomical; read
      its logarithm over training and the constants of single layers instead. Post-norm transformers have no known
      bound, because the input of the first attention can be arbitrarily large.
    - Other products, embeddings and unknown operations: infinity. The report names each of them with the reason.
      `register_lipschitz_rule` adds a rule.

    The bound describes eval mode (no dropout, running statistics), whatever mode the module is in. The module does not
    change: a copy that shares its weights runs, and random generators are restored. Parametrized, pruned and sharded
    weights count as `forward` uses them. Forward hooks do not run. The wrappers of `torch.compile` and DDP are removed.

    Args:
        module: The network. Half precision is computed in float32, with autocast off.
        example_input: A tensor, or a tuple of the positional arguments of `forward`, on the module's device. The
            arguments may contain tensors at any depth. A dict is a single argument. The sizes matter, including the
            batch size; the values do not. If `forward` treats samples independently, one sample is enough and cheapest.
            All floating-point tensors together count as one input: the distance of two inputs is the root of the sum of
            squares over all tensors. Whole numbers among the inputs stay fixed, unless `all_labels` is set.
        fold_batch_norm: Whether to fold batch normalization into the linear layer or convolution before it, if that
            lowers the bound. Default True.
        center: The center of a ball of inputs, of the same structure as `example_input`. Default: `example_input`. Only
            a finite `radius` makes its values matter. The bound then holds for any two inputs in the ball. It can be
            smaller than the bound for all inputs, because only the slopes and sizes within the ball count: a ReLU whose
            input stays negative has the slope 0. If `forward` treats samples independently, the bound holds for each
            sample in a ball of its own.
        radius: The radius of the ball in the 2-norm, > 0. Default infinity: the bound holds for all inputs.
        all_labels: Whether the bound must hold for any whole numbers and booleans in place of those among the inputs.
            An embedding, or another table that they index, then counts with all its rows. Entries that they choose
            count as often as labels can choose them. Any other number computed from them counts as unbounded. Default
            False: the bound holds for the values in the example, such as the labels of one batch.

    Returns:
        The report. Several output tensors (in a tuple, a dict, a dataclass) together count as one output. The value is
        NaN if a weight is not finite. If the operations of the module cannot be followed, the value is infinity:
        `unbounded` then gives the reason under the name "trace", and `per_layer` has the layers that the example
        reaches. With sharded weights, all ranks must call this function together.

    Raises:
        TypeError: If `module` is not a module, if `example_input` or `center` contains no tensor, or if another
            argument has the wrong type.
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
        Neural Networks, 2019, arXiv:1906.04893, for chains of few units.

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
        # A bound for all inputs also holds in the ball.
        if not near.value > findings.value:
            findings = near
    return LipschitzReport(findings.value * rounding, findings.per_layer, findings.unbounded)


def _distance(radius: object) -> float:
    is_infinite = isinstance(radius, float) and radius == math.inf
    distance = math.inf if is_infinite else _checks.number("radius", radius)
    if distance <= 0:
        msg = f"`radius` must be a number > 0, got {radius!r}. Infinity bounds the module for all inputs."
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
    """Return the findings of the walk, and the factor that compensates for rounding in the forward pass."""
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
        target: A module type or a function. `lipschitz_bound` then uses the rule instead of following the operations
            inside. The rule of a module type also applies to subclasses that override neither `forward` nor a method
            that `forward` calls. The rule of a torch function also applies to the tensor method of the same name. Call
            your own function by a global name in the file that defines `forward`. A second registration replaces the
            first.
        rule: A function that returns the Lipschitz constant, a number >= 0 (infinity if there is none). It is called as
            `rule(module, *args, **kwargs)` for a module, and as `rule(*args, **kwargs)` for a function, with the
            arguments at the example input. `module` is in eval mode and has plain weights. All tensors among the
            arguments together count as one input: the distance of two inputs is the root of the sum of squares over
            all tensors. The constant may depend on the sizes of tensors, but must hold for any values.
            `lipschitz_bound` relies on it without a check.

    Raises:
        TypeError: If `target` is neither a module type nor a function, or if `rule` is not callable. `lipschitz_bound`
            raises if the rule fails or returns anything but a number >= 0.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Clip(nn.Module):
        ...     def forward(self, x):
        ...         return x / max(1.0, x.norm().item())  # the path depends on the input
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
        msg = (
            f"`{name}` must be a tensor, a dict with tensors, or a tuple of the arguments of `forward` with tensors,"
            f" got a {kind}."
        )
        raise TypeError(msg)
    return tuple(inputs)
