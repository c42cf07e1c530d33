"""Rules of elementwise functions, by their least and largest slopes, and of softmax."""

import math
from typing import Any

from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import precise, smaller
from lightning_reg.functional.lipschitz.rules.registry import (
    EXTENTS,
    TURNS,
    for_all,
    for_functions,
    for_modules,
    without_bound,
)
from lightning_reg.functional.lipschitz.value import (
    Bound,
    Extent,
    NoBoundError,
    Operation,
    Slopes,
    Traced,
    constant,
)

_MONOTONE = Slopes(0.0, 1.0)
_RELU = Slopes(0.0, 1.0, is_half=True)
_ANY = Slopes(-1.0, 1.0)
# Rounded away from zero. The slopes of GELU and SiLU at x and -x add up to 1.
_GELU = Slopes(-0.12891, 1.12891)
_GELU_TANH = Slopes(-0.12900, 1.12900)
_SELU = Slopes(0.0, 1.758100)
# From this threshold on, the jump of softplus is too small for float32.
_SMOOTH_THRESHOLD = 15.0

_FIXED: tuple[tuple[tuple[type[nn.Module], ...], str, Slopes], ...] = (
    ((nn.ReLU,), "relu", _RELU),
    (
        (nn.ReLU6, nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Hardtanh, nn.Softshrink),
        "relu6 tanh softsign tanhshrink logsigmoid hardtanh softshrink arctan atan asinh arcsinh",
        _MONOTONE,
    ),
    ((nn.Sigmoid,), "sigmoid expit", Slopes(0.0, 0.25)),
    ((nn.Hardsigmoid,), "hardsigmoid", Slopes(0.0, 0.166667)),
    ((nn.SiLU,), "silu", Slopes(-0.09984, 1.09984)),
    ((nn.Mish,), "mish", Slopes(-0.12, 1.08850)),
    ((nn.Hardswish,), "hardswish", Slopes(-0.5, 1.5)),
    ((nn.SELU,), "selu", _SELU),
    ((), "sin cos abs absolute", _ANY),
    ((), "neg negative", Slopes(-1.0, -1.0)),
    ((), "erf", Slopes(0.0, 1.128380)),
    ((), "erfc", Slopes(-1.128380, 0.0)),
    ((), "ndtr", Slopes(0.0, 0.398943)),
    ((), "nan_to_num", _MONOTONE),
)
for _types, _names, _slopes in _FIXED:
    for_all(_types, _names, lambda op, input, *_, _slopes=_slopes, **__: _slopes)

for_functions(
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal tan sinh cosh acos asin arccos arcsin logit acosh"
    " atanh erfinv lgamma digamma"
)(without_bound("its derivative is unbounded, so it has no finite Lipschitz constant"))
for_functions("sign round floor ceil trunc frac heaviside remainder fmod floor_divide floordiv sgn mod")(
    without_bound("it is discontinuous, so it has no finite Lipschitz constant")
)


@for_functions("gelu")
@for_modules(nn.GELU, settings="approximate")
def _gelu(op: Operation, input: Traced, approximate: str = "none") -> Slopes:
    return _GELU if approximate == "none" else _GELU_TANH


# Places where a smooth slope is largest or least, and places on both sides of a jump of the slope.
_BESIDE = 1e-9
_TURNS: tuple[tuple[tuple[type[nn.Module], ...], str, tuple[float, ...]], ...] = (
    ((nn.ReLU, nn.LeakyReLU, nn.Softplus, nn.LogSigmoid), "relu leaky_relu softplus logsigmoid", ()),
    ((nn.Tanh, nn.Sigmoid, nn.Softsign, nn.Tanhshrink), "tanh sigmoid expit softsign tanhshrink", (0.0,)),
    ((nn.Hardsigmoid, nn.ReLU6), "hardsigmoid relu6", (0.0, 3.0)),
    ((), "arctan atan asinh arcsinh erf", (0.0,)),
    ((nn.ELU, nn.SELU), "elu selu", (-_BESIDE, _BESIDE)),
    ((nn.GELU,), "gelu", (-1.4185040087908285, -math.sqrt(2), math.sqrt(2), 1.4185040087908285)),
    ((nn.SiLU,), "silu", (-2.399357280515468, 2.399357280515468)),
    ((nn.Mish,), "mish", (-2.2563763963607935, 1.4905711794854284)),
    ((nn.Hardswish,), "hardswish", (-3 - _BESIDE, -3 + _BESIDE, 3 - _BESIDE, 3 + _BESIDE)),
)
for _types, _names, _places in _TURNS:
    for_all(_types, _names, _places, TURNS)


def _leaky(slope: float) -> Slopes:
    return Slopes(min(1.0, slope), max(1.0, abs(slope))) if not math.isnan(slope) else Slopes(slope, slope)


@for_functions("leaky_relu")
@for_modules(nn.LeakyReLU, settings="negative_slope")
def _leaky_relu(op: Operation, input: Traced, negative_slope: float = 0.01, inplace: bool = False) -> Slopes:
    return _leaky(negative_slope)


@for_functions("rrelu")
@for_modules(nn.RReLU, settings="lower upper")
def _rrelu(  # the arguments of torch's function
    op: Operation,
    input: Traced,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Slopes:
    if training:
        return Slopes(min(1.0, lower), max(1.0, abs(lower), abs(upper)))
    return _leaky((lower + upper) / 2)


@for_functions("prelu")
@for_modules(nn.PReLU, settings="weight")
def _prelu(op: Operation, input: Any, weight: Tensor) -> Slopes:
    slopes = precise(constant(weight))
    return (
        _leaky(math.nan)
        if slopes.isnan().any()
        else Slopes(min(1.0, float(slopes.min())), max(1.0, float(slopes.abs().max())))
    )


@for_functions("elu")
@for_modules(nn.ELU, settings="alpha")
def _elu(op: Operation, input: Traced, alpha: float = 1.0, inplace: bool = False) -> Slopes:
    return Slopes(min(0.0, alpha), max(1.0, abs(alpha)))


@for_functions("celu")
@for_modules(nn.CELU, settings="alpha")
def _celu(op: Operation, input: Traced, alpha: float = 1.0, inplace: bool = False) -> Slopes:
    if alpha < 0:
        msg = "its derivative is unbounded if `alpha` is negative"
        raise NoBoundError(msg)
    return _MONOTONE


@for_functions("softplus")
@for_modules(nn.Softplus, settings="beta threshold")
def _softplus(op: Operation, input: Traced, beta: float = 1.0, threshold: float = 20.0) -> Slopes:
    if threshold < _SMOOTH_THRESHOLD:
        msg = f"its `threshold` is below {_SMOOTH_THRESHOLD:g}, which makes it discontinuous"
        raise NoBoundError(msg)
    return _MONOTONE


@for_functions("threshold")
@for_modules(nn.Threshold, settings="threshold value")
def _threshold(op: Operation, input: Traced, threshold: float, value: float, inplace: bool = False) -> Slopes:
    if threshold != value:
        msg = "it is discontinuous unless `value` equals `threshold`"
        raise NoBoundError(msg)
    return _MONOTONE


@for_functions("hardshrink")
@for_modules(nn.Hardshrink, settings="lambd")
def _hardshrink(op: Operation, input: Traced, lambd: float = 0.5) -> Slopes:
    if lambd:
        msg = "it is discontinuous unless `lambd` is 0"
        raise NoBoundError(msg)
    return _MONOTONE


@for_functions("clamp clip clamp_min clamp_max")
def _clamp(op: Operation, input: Any, *limits: Any, **named: Any) -> Slopes:
    constant([limits, named])
    return _MONOTONE


@for_functions("softmax softmin")
@for_modules(nn.Softmax, nn.Softmin, settings="dim")
def _softmax(op: Operation, input: Traced, dim: int | None = None, *_: Any, **__: Any) -> float | Bound:
    if _classes(input, dim) == 1:
        return 0.0
    scores = input.bound.extent.scores
    # The Jacobian is diag(p) - p p^T. Its norm is largest for two classes of probability 1/2.
    bound = input.bound.after(0.5)
    if scores is None or not _is_last(input, dim):
        return bound
    # The change of a row is at most the standard deviation of the score changes under the probabilities p.
    by_scores = scores.by_row + math.sqrt(input.value.shape[-2]) * scores.by_column
    return Bound(smaller(bound.value, by_scores))


@for_functions("softmax softmin", book=EXTENTS)
@for_modules(nn.Softmax, nn.Softmin, book=EXTENTS, settings="dim")
def _softmax_extent(
    op: Operation, bound: Bound, input: Traced, dim: int | None = None, *_: Any, **__: Any
) -> Extent | None:
    if not input.value.ndim or dim is None:
        return None
    scores = input.bound.extent.scores if _is_last(input, dim) else None
    return Extent(1.0, 1.0, dim % input.value.ndim - input.value.ndim, scores and scores._replace(are_shares=True))


def _is_last(input: Traced, dim: int | None) -> bool:
    return dim is not None and dim % input.value.ndim == input.value.ndim - 1


@for_functions("log_softmax")
@for_modules(nn.LogSoftmax, settings="dim")
def _log_softmax(op: Operation, input: Traced, dim: int | None = None, *_: Any, **__: Any) -> float:
    # The norm of the Jacobian 1 - 1 p^T is convex in p. It is largest if one class has probability 1.
    classes = _classes(input, dim)
    return 0.0 if classes == 1 else math.sqrt(classes)


@for_modules(nn.Softmax2d)
def _softmax2d_layer(op: Operation, input: Traced) -> float | Bound:
    return _softmax(op, input, -3)


def _classes(input: Traced, dim: int | None) -> int:
    if dim is None:  # torch's implicit choice, deprecated
        dim = 0 if input.value.ndim in {0, 1, 3} else 1
    return int(input.value.shape[dim]) if input.value.ndim else 1


@for_functions("logsumexp")
def _logsumexp(op: Operation, input: Traced, *_: Any, **__: Any) -> float:
    return 1.0


@for_modules(
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
def _identity(op: Operation, input: Traced, *_: Any, **__: Any) -> Bound:
    return input.bound


@for_functions("dropout dropout1d dropout2d dropout3d feature_dropout")
def _dropout(op: Operation, input: Traced, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> Bound:
    if not training:
        return input.bound
    # The mask is random, but no mask enlarges a change by more than this.
    return input.bound.after(1 / (1 - p) if p < 1 else 0.0)


@for_functions("alpha_dropout feature_alpha_dropout")
def _alpha_dropout(
    op: Operation, input: Traced, p: float = 0.5, training: bool = False, *_: Any, train: bool = False, **__: Any
) -> Bound:  # the arguments of torch's function
    if training or train:
        msg = "it is random in training mode, so it has no fixed Lipschitz constant; turn that mode off"
        raise NoBoundError(msg)
    return input.bound
