"""The norm of a function's Jacobian at samples, measured without side effects."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_reg import _checks
from lightning_reg.functional.spectral.lanczos import singular_pairs, start_vectors
from lightning_reg.functional.spectral.norms import matrix_norm
from lightning_reg.functional.tensors.precision import reported, without_autocast
from lightning_reg.functional.tensors.random import unchanged_generators

__all__ = ["jacobian_norm"]


@contextmanager
def measured(fn: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Let `fn` compute in eval mode, with kernels that autograd can differentiate twice.

    Autocast and compiled graphs are off. Random generators are restored afterwards.

    Args:
        fn: A module, a method of one, or any other function.
        device: The device of the computation.

    """
    owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    with ExitStack() as undo:
        undo.enter_context(unchanged_generators([device]))
        # Code compiled by aot_autograd cannot be differentiated twice.
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        # The same goes for fused attention kernels. In eval mode, cuDNN's recurrent kernels have no backward pass.
        undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        if device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in modules):
            undo.enter_context(torch.backends.cudnn.flags(enabled=False))
        undo.enter_context(without_autocast(device))
        # Lightning validates in inference mode.
        undo.enter_context(torch.inference_mode(False))  # noqa: FBT003  # torch's
        for module in modules:
            # Do not call `eval()`: adapters would merge their weights into the weights of the model.
            undo.callback(setattr, module, "training", module.training)
            module.training = False
        yield


# Up to this size, products with all unit vectors give the whole matrix at about the cost of Lanczos.
_EXACT = 32


def jacobian_norm(fn: Callable[[Tensor], Tensor], x: Tensor, *, iterations: int = 5) -> Tensor:
    r"""Return the spectral norm of the input Jacobian at each sample, :math:`\|J_f(x_i)\|_2`.

    The norm at any point is a lower bound of the Lipschitz constant of a differentiable function in the 2-norm. The
    number of inputs and outputs of a sample decides how the norm is computed:

    - Up to 32 inputs or 32 outputs: exactly up to rounding (relative 1e-5 in float32), from one backward pass for each
      output or one product for each input.
    - Otherwise: an estimate from below, from `iterations` Lanczos iterations. Each takes one product with J and one
      with its transpose.

    The result may exceed the true constant if a sample lies exactly on a kink (an input of ReLU that is 0, or equal
    values in a max-pool). There autograd picks one slope for each operation, and these slopes may be inconsistent. For
    :math:`relu(x) - relu(-x) - x`, which is 0 everywhere, it finds the slope -1 at 0. Kinks have measure zero, but zero
    padding, dead inputs and symmetric weights can put a sample on one.

    Nothing changes: neither the `.grad` of parameters, nor training modes, buffers of BatchNorm or random generators.
    Autocast is off. A module in half precision computes in half precision.

    Args:
        fn: A function from samples, shape (batch, ...), to outputs, shape (batch, ...). Each output must depend on its
            own sample only. A module, or a method of a module, is evaluated in eval mode. Autograd must be able to
            differentiate `fn` once, and twice if a sample has more than 32 inputs and more than 32 outputs.
        x: Samples of floating-point numbers, shape (batch, ...).
        iterations: Lanczos iterations, >= 1. With the default 5, the estimate of the largest norm in a batch is usually
            at most 10 % too small. The estimate for a single sample may be further off.

    Returns:
        One norm for each sample, shape (batch,), without a graph: float64 for float64 samples, float32 otherwise. NaN
        where J is not finite.

    Raises:
        TypeError: If `x` or the result of `fn` is not a tensor of real floating-point numbers, `fn` is not callable, or
            `iterations` is not an int.
        ValueError: If `x` or the result of `fn` does not have one row for each sample, if the result of `fn` has no
            graph, or if `iterations` is below 1.

    Example:
        >>> import torch
        >>> stretch = torch.nn.Linear(2, 3, bias=False)
        >>> _ = stretch.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0], [4.0, 0.0]]))
        >>> jacobian_norm(stretch, torch.randn(2, 2))
        tensor([5., 5.])

    Reference:
        Golub & Kahan, Calculating the Singular Values and Pseudo-Inverse of a Matrix, 1965, doi:10.1137/0702016, for
        the estimate; Pearlmutter, Fast Exact Multiplication by the Hessian, 1994, doi:10.1162/neco.1994.6.1.147, for
        products with J by differentiating twice.

    """
    _checks.function("fn", fn, "a function from samples to their outputs")
    iterations = _checks.count("iterations", iterations, 1)
    _check_rows("x", x)
    if not x.numel():
        return x.new_zeros(len(x), dtype=reported(x))
    with measured(fn, x.device), torch.enable_grad():
        jacobian = _Jacobian(fn, x)
        inputs, outputs = x[0].numel(), jacobian.outputs[0].numel()
        if not outputs:
            return x.new_zeros(len(x), dtype=reported(x))
        if outputs <= _EXACT:
            return matrix_norm(_all_products(jacobian.adjoint, x, outputs))
        if inputs <= _EXACT:
            return matrix_norm(_all_products(jacobian.apply, x, inputs))
        starts = start_vectors((len(x), inputs), None, reported(x), x.device)
        with torch.no_grad():
            return singular_pairs(jacobian.apply, jacobian.adjoint, starts, iterations)[0]


class _Jacobian:
    """The Jacobian at each sample as a linear map, from one forward pass."""

    def __init__(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.dtype = reported(x)
        self.inputs = x.detach().clone().requires_grad_()
        outputs = fn(self.inputs.clone())  # cloned, because modules may overwrite their input
        _check_rows("fn(x)", outputs)
        if len(outputs) != len(x):
            msg = f"`fn` must return one row for each of the {len(x)} samples, got shape {tuple(outputs.shape)}."
            raise ValueError(msg)
        if not outputs.requires_grad:
            msg = (
                "`fn` must be differentiable by autograd with respect to its argument, but its output has no graph."
                " Use torch operations on the argument, without `detach` or `torch.no_grad`."
            )
            raise ValueError(msg)
        self.outputs = outputs.reshape(len(x), -1)
        self._transposed: tuple[Tensor, Tensor] | None = None

    def adjoint(self, vectors: Tensor) -> Tensor:
        """Return J^T u of each sample, from shape (batch, outputs) to (batch, inputs)."""
        return self._gradient(self.outputs, self.inputs, vectors)

    def apply(self, vectors: Tensor) -> Tensor:
        """Return J v of each sample, from shape (batch, inputs) to (batch, outputs)."""
        if self._transposed is None:
            with torch.enable_grad():
                # J^T u is linear in u, so its derivative in u is J.
                u = torch.zeros_like(self.outputs, requires_grad=True)
                (image,) = torch.autograd.grad(
                    self.outputs, self.inputs, u, create_graph=True, allow_unused=True, materialize_grads=True
                )
            self._transposed = u, image
        u, image = self._transposed
        return (
            self._gradient(image, u, vectors)
            if image.requires_grad
            else torch.zeros_like(self.outputs, dtype=self.dtype)
        )

    def _gradient(self, of: Tensor, by: Tensor, vectors: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            of, by, vectors.to(of.dtype).view_as(of), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return found.flatten(1).to(self.dtype)


def _all_products(product: Callable[[Tensor], Tensor], x: Tensor, count: int) -> Tensor:
    """Return the products with all `count` unit vectors, shape (batch, count, ...)."""
    units = torch.eye(count, dtype=reported(x), device=x.device)
    return torch.stack([product(unit.expand(len(x), count)) for unit in units], 1)


def _check_rows(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        msg = f"`{name}` must be a tensor of real floating-point numbers, got {kind}."
        raise TypeError(msg)
    if not tensor.ndim:
        msg = f"`{name}` must have one row for each sample, got a tensor without dimensions."
        raise ValueError(msg)
