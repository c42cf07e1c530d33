"""Spectral norms: the largest singular value of matrices, of convolutions, of any linear map."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.spectral.convolution import convolution, sizes
from lightning_reg.functional.spectral.frequencies import certified_bound
from lightning_reg.functional.spectral.lanczos import adjoint_of, singular_pairs, start_vectors
from lightning_reg.functional.spectral.matrices import largest_singular_value
from lightning_reg.functional.tensors.precision import reported, wide, without_autocast
from lightning_reg.functional.tensors.weights import as_weight

__all__ = ["conv_norm_bound", "matrix_norm", "operator_norm_estimate"]


def matrix_norm(weight: Tensor) -> Tensor:
    r"""Return the spectral norm of a matrix, its largest singular value :math:`\sigma(W)`.

    Exact up to rounding, on either side of the truth (relative 2e-6 in float32): the square root of the largest
    eigenvalue of the smaller of :math:`W W^T` and :math:`W^T W`. Differentiable: the gradient is :math:`u v^T` with
    the singular vectors, a subgradient if the largest singular value is repeated, and 0 for a zero matrix.

    Args:
        weight: Floating-point or complex matrix. With more than two dimensions a batch of matrices in the last two, as
            `torch.linalg.matrix_norm` has it; for the matrix of a reshaped kernel call it with `weight.flatten(1)`,
            which is **not** the norm of the convolution (see `conv_norm_bound`). Half precision is computed in float32.

    Returns:
        The norm of each matrix, shape (batch), float32 or float64. An empty matrix has norm 0; one with an
        entry that is NaN or infinite has norm NaN.

    Raises:
        TypeError: If `weight` is not such a tensor.
        ValueError: If `weight` has fewer than two dimensions.

    Example:
        >>> import torch
        >>> matrix_norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor(5.)

    Reference:
        Golub & Van Loan, Matrix Computations, 4th edition, 2013, section 2.4.

    """
    as_weight(weight)
    if weight.ndim < 2:  # noqa: PLR2004  # a matrix
        msg = f"`weight` must have two dimensions or more, got shape {tuple(weight.shape)}."
        raise ValueError(msg)
    with without_autocast(weight.device):
        return largest_singular_value(wide(weight)).to(reported(weight))


def conv_norm_bound(  # noqa: PLR0913  # the arguments of a convolution
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    input_size: int | Sequence[int] | None = None,
    grid: int = 16,
) -> Tensor:
    r"""Return an upper bound of the operator norm of a convolution, :math:`\max_x \|W * x\|_2 / \|x\|_2`.

    The bound is certified: never below the truth, for any image. The norm of the reshaped kernel matrix is not a bound,
    because the truth is up to :math:`\prod \sqrt{\lceil k / s \rceil}` times larger. The bound is

    .. math:: \max_{\omega \in \text{grid}} \sigma(\hat W(\omega)) \prod_i \frac{1}{\cos(\pi (k'_i - 1) / 2 N_i)}

    over matrices between channels at frequencies, :math:`k' = \lceil k / s \rceil` taps in each phase of the stride and
    :math:`N` frequencies. It exceeds the truth by these factors:

    - Zero padding without `input_size`: at most the product of cosines above, relative to the limit for large images.
      With `grid=16` it is 1.02 for each dimension with 3 taps, and never more than 1.083 for each.
    - Zero padding with `input_size`: at most :math:`\prod \sqrt{1 + d (k' - 1) / b}`, if b >= 1 windows of the kernel,
      with dilation d, lie wholly in the image along a dimension; with 3x3 taps usually 1 % at 16x16 pixels, 3 % at 8x8.
      (Along more than 64 pixels the grid is not finer, which costs a factor of at most 1.005.) Exact if a group of the
      layer has at most 256 input or output values, with any padding.
    - Circular padding that keeps the size, with an `input_size` that the stride divides: exact.
    - Other padding that copies pixels: a further factor of at most :math:`\sqrt c`, with c the most copies that padding
      makes of one pixel: usually 2 for each padded dimension, more for images smaller than the padding.

    Differentiable, with the gradient at the frequency that attains the maximum. Each frequency costs a factorization or
    an eigenvalue problem, far more than `operator_norm_estimate`, and waits for the device.

    Args:
        weight: The layer's weight, shape `(rows, columns / groups, *kernel)`, 1d to 3d; of a transposed convolution
            as it is, shape `(inputs, outputs / groups, *kernel)`. Half precision is computed in float32.
        stride: As in `torch.nn.Conv2d`; a number, or one for each dimension. Default 1.
        padding: As in `torch.nn.Conv2d`; "same" and "valid", too. Default 0.
        dilation: As in `torch.nn.Conv2d`. Default 1.
        groups: As in `torch.nn.Conv2d`. The norm is the largest one of the groups. Default 1.
        padding_mode: "zeros" (default), "circular", "reflect" or "replicate".
        transposed: Whether it is a transposed convolution, the adjoint of the convolution with the same weight.
        output_padding: Output padding of a transposed convolution; it only matters with `input_size`. Default 0.
        input_size: Spatial size of the layer's input, a number or one for each dimension. Default None: a bound for
            images of any size that the layer takes.
        grid: Frequencies for each dimension, >= 1. At least 4 for each tap after the first are used, and 4 times as
            many with `input_size`. Default 16.

    Returns:
        The bound, shape (), float32 or float64. NaN for a weight that is not finite.

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If the arguments do not define a convolution, or it takes no input of `input_size`.

    Example:
        >>> import torch
        >>> kernel = torch.ones(1, 1, 3, 3)  # its reshaped matrix has norm 3
        >>> conv_norm_bound(kernel, padding=1), conv_norm_bound(kernel, padding=1, input_size=8)
        (tensor(9.3562), tensor(8.2909))

    Reference:
        Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019, arXiv:1805.10408, for circular padding;
        M. Riesz, Eine trigonometrische Interpolationsformel, 1914, for the grid.

    """
    layer = convolution(
        weight,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
        transposed=transposed,
        output_padding=output_padding,
    )
    (grid,) = sizes("grid", grid, 1)
    size = None if input_size is None else sizes("input_size", input_size, weight.ndim - 2)
    return certified_bound(weight, layer, size, grid)


def operator_norm_estimate(  # noqa: PLR0913  # the map, the method, and where it runs
    apply: Callable[[Tensor], Tensor],
    input_shape: Sequence[int],
    *,
    iterations: int,
    state: Tensor | None = None,
    method: str = "lanczos",
    adjoint: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Estimate the operator norm of a linear map, :math:`\max_x \|A x\|_2 / \|x\|_2`, from below.

    The estimate is :math:`\|A^T u\|` for a unit vector u, never above the truth except for rounding (relative 1e-6 in
    float32; 1e-3 if products run in TF32). Its accuracy depends on the map and the start. From a random start, 5
    iterations find about 0.95 of a convolution's norm, and 20 about 0.997; from the state of 10 training steps ago, 5
    iterations are usually within 0.5 %. `method="lanczos"` is far better than "power" for the same number of products.

    The result is the same on all ranks with the same kind of device, and in a resumed run with the saved state. The
    global random generator is not touched, and nothing waits for the device.

    Args:
        apply: The linear map: maps a tensor of `input_shape` to a tensor of any shape.
        input_shape: Shape of its argument.
        iterations: Products with the map and with its adjoint, >= 1.
        state: The state returned by the last call, a right singular vector, shape `input_shape`. It is perturbed by
            1e-3, because a start orthogonal to the largest singular vector would never find it. A state that is zero or
            not finite counts as None. Default None: a random start, always the same.
        method: "lanczos" (the best vector of the Krylov space) or "power" (power iteration).
        adjoint: The adjoint map, if it is cheaper than the one by autograd.
        dtype: The dtype of the vectors. Default: the dtype of `state`, else torch's default.
        device: The device of the vectors. Default: the device of `state`, else the CPU.

    Returns:
        The estimate, shape (), and the state for the next call, shape `input_shape`; both without a graph. The estimate
        is 0 for the zero map, NaN for a map that returns NaN, and the state stays usable.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `iterations` is below 1, `method` or `device` is unknown, `state` has another shape than
            `input_shape`, or autograd cannot differentiate `apply`.

    Example:
        >>> import torch
        >>> weight = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
        >>> estimate, state = operator_norm_estimate(lambda x: weight @ x, (3,), iterations=3)
        >>> estimate
        tensor(5.)
        >>> estimate, state = operator_norm_estimate(lambda x: weight @ x, (3,), iterations=1, state=state)

    Reference:
        Golub & Kahan, Calculating the Singular Values and Pseudo-Inverse of a Matrix, 1965, doi:10.1137/0702016;
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018, arXiv:1802.05957.

    """
    _checks.function("apply", apply, "a linear map from tensors to tensors")
    if adjoint is not None:
        _checks.function("adjoint", adjoint, "a linear map from tensors to tensors, or None")
    (iterations,) = sizes("iterations", iterations, 1)
    _checks.one_of("method", method, ("lanczos", "power"))
    shape = _as_shape(input_shape)
    if state is not None:
        _check_state(state, shape)
        dtype = state.dtype if dtype is None else dtype
        device = state.device if device is None else device
    dtype = _as_dtype(torch.get_default_dtype() if dtype is None else dtype)
    device = _as_device("cpu" if device is None else device)
    # Lightning validates in inference mode, where autograd finds no adjoint.
    with torch.inference_mode(False), torch.no_grad(), without_autocast(device):  # noqa: FBT003  # torch's
        states = None if state is None else state[None]
        starts = start_vectors((1, *shape), states, dtype, device)
        back = adjoint or adjoint_of(apply, starts[0])
        estimates, _, vectors = singular_pairs(
            lambda batch: apply(batch[0])[None],
            lambda batch: back(batch[0])[None],
            starts,
            iterations,
            krylov=method == "lanczos",
        )
    return estimates[0], vectors[0]


def _as_shape(input_shape: object) -> tuple[int, ...]:
    if not _checks.is_list(input_shape) or not input_shape:
        msg = f"`input_shape` must be a list or tuple of sizes, at least one, got {input_shape!r}."
        raise TypeError(msg)
    return tuple(_checks.count("input_shape", size, 0) for size in input_shape)


def _check_state(state: object, shape: tuple[int, ...]) -> None:
    if not isinstance(state, Tensor) or not state.is_floating_point():
        msg = f"`state` must be a tensor of real floating-point numbers or None, got {state!r}."
        raise TypeError(msg)
    if state.shape != shape:
        msg = f"`state` must have the shape {shape} of the input, got {tuple(state.shape)}."
        raise ValueError(msg)


def _as_dtype(dtype: object) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        msg = f"`dtype` must be a torch.dtype of real floating-point numbers or None, got {dtype!r}."
        raise TypeError(msg)
    return dtype


def _as_device(device: object) -> torch.device:
    if not isinstance(device, torch.device | str):
        msg = f"`device` must be a torch.device, the name of one or None, got {device!r}."
        raise TypeError(msg)
    try:
        return torch.device(device)
    except RuntimeError as error:
        msg = f"`device` must be one that torch knows, got {device!r}. {error}"
        raise ValueError(msg) from error
