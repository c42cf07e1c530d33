r"""Rules of LSTM and GRU layers over a fixed number of steps. Their gates multiply, but only bounded values.

All matrix norms are spectral. The norms of the changes of inputs, cells and states are u, a and b. The slope of the
logistic function is at most 1/4, the slope of tanh at most 1.

LSTM. The gates lie in [0, 1] and g in [-1, 1]. So the entries of the cell :math:`c_t = f_t c_{t-1} + i_t g_t` are at
most :math:`C_t = C_0 + t`. The state is :math:`h_t = P\, o_t \tanh(c_t)`, with the projection P if there is one. Let
:math:`w_t = \frac 1 4 \|W_i\| + \frac 1 4 C_{t-1} \|W_f\| + \|W_g\|`, and let :math:`r_t` be the same sum for the
matrices U of the states. The product rule gives

.. math:: a_t &\le a_{t-1} + w_t u_t + r_t b_{t-1}, \\
          b_t &\le \|P\| (a_t + \tfrac 1 4 \|W_o\| u_t + \tfrac 1 4 \|U_o\| b_{t-1}).

GRU. The state :math:`h_t = (1 - z_t) n_t + z_t h_{t-1}` is a mean of the previous state and of n in [-1, 1]. So its
entries are at most :math:`M = \max(1, |h_0|)`. In :math:`n_t = \tanh(W_n x_t + r_t (U_n h_{t-1} + d))`, the gate r
multiplies entries of at most Q, the largest sum :math:`M \sum_j |U_{n,ij}| + |d_i|`. So

.. math:: b_t \le (1 + \|U_n\| + \tfrac Q 4 \|U_r\| + \tfrac {M + 1} 4 \|U_z\|) b_{t-1}
          + (\|W_n\| + \tfrac Q 4 \|W_r\| + \tfrac {M + 1} 4 \|W_z\|) u_t.

Both recursions are linear. The vector of state norms is at most K times the vector of input norms, where K >= 0 is a
matrix of steps by steps. So the bound is :math:`\|K\|`. It grows with the number of steps as fast as a product of one
factor for each step.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import UPWARDS, norm_upwards, precise, times
from lightning_reg.functional.lipschitz.rules.recurrent import Norms, norms_of, steps_of, weights_of
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, for_modules
from lightning_reg.functional.lipschitz.value import (
    Bound,
    Extent,
    NoBoundError,
    Operation,
    Traced,
    larger,
    largest,
    together,
)

_STEPS = 1024


@dataclass(frozen=True)
class _Recursion:
    """The factors by which changes affect each step."""

    cells: Tensor
    """The effects of inputs, states and cells on the new cells, shape (steps, 3)."""
    states: Tensor
    """The effects of inputs, states and new cells on the new states, shape (3,)."""

    def solved(self) -> tuple[Tensor, Tensor]:
        """Return the effects of all inputs, the first state and the first cell on the states and on the last cell."""
        steps = len(self.cells)
        cell, state = torch.zeros(2, steps + 2, dtype=torch.float64)
        state[-2], cell[-1] = 1.0, 1.0
        rows = []
        for step, (by_input, by_state, by_cell) in enumerate(self.cells):
            entered = torch.zeros_like(cell)
            entered[step] = 1.0
            cell = by_cell * cell + by_input * entered + by_state * state
            state = self.states[2] * cell + self.states[0] * entered + self.states[1] * state
            rows.append(state)
        if bool(self.cells.isfinite().all()) and bool(self.states.isfinite().all()):
            # Some factors overflow, and 0 times infinity is NaN.
            return torch.stack(rows).nan_to_num(math.inf, math.inf), cell.nan_to_num(math.inf, math.inf)
        return torch.stack(rows), cell


def _lstm(weights: dict[str, Any], norms: Norms, name: str, steps: int, largest_cell: float) -> _Recursion:
    inner, again = (norms(f"weight_{kind}{name}", 4) for kind in ("ih", "hh"))
    projection = f"weight_hr{name}"
    (last,) = norms(projection, 1) if projection in weights else (1.0,)
    cells = []
    for step in range(steps):
        factors = 0.25, 0.25 * (largest_cell + step), 1.0
        both = (sum(times(f, n) for f, n in zip(factors, four[:3], strict=True)) for four in (inner, again))
        cells.append([*both, 1.0])
    states = torch.tensor([0.25 * inner[3], 0.25 * again[3], 1.0], dtype=torch.float64) * last
    return _Recursion(torch.tensor(cells, dtype=torch.float64), states)


def _gru(weights: dict[str, Any], norms: Norms, name: str, steps: int, largest_state: float) -> _Recursion:
    inner, again = (norms(f"weight_{kind}{name}", 3) for kind in ("ih", "hh"))
    most = max(1.0, largest_state)
    rows = precise(weights[f"weight_hh{name}"]).chunk(3)[2].abs().sum(1) * most
    shift = weights.get(f"bias_hh{name}")
    reset = largest(rows if shift is None else rows + precise(shift).chunk(3)[2].abs().to(rows)) / 4
    # A GRU has no cells. torch orders its gates r, z and n.
    by_input, by_state = (times(reset, r) + (most + 1) / 4 * z + n for r, z, n in (inner, again))
    cells = torch.zeros(steps, 3, dtype=torch.float64)
    return _Recursion(cells, torch.tensor([by_input, 1 + by_state, 0.0], dtype=torch.float64))


def _states(op: Operation, weights: dict[str, Any], norms: Norms, input: Any, bound: float, hx: Any) -> float:
    """Return the largest of three bounds: all outputs, all last states together, and all last cells together."""
    module, is_lstm = op.module, isinstance(op.module, nn.LSTM)
    steps = steps_of(module, input)
    if steps > _STEPS:
        msg = f"its rule covers at most {_STEPS} steps, got {steps}"
        raise NoBoundError(msg)
    first, size = _start(hx, is_lstm=is_lstm)
    states, cells = [], []
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            make = _lstm if is_lstm else _gru
            rows, cell = make(weights, norms, f"_l{layer}{suffix}", steps, size).solved()
            changes = times(bound, _norm(rows[:, :steps])), *_of_start(rows, first)
            outputs.append(sum(changes))
            states.append(sum((times(bound, _norm(rows[-1:, :steps])), *_of_start(rows[-1:], first))))
            cells.append(sum((times(bound, _norm(cell[None, :steps])), *_of_start(cell[None], first))))
        bound = together(outputs)
    return larger(larger(bound, together(states)), together(cells))


def _of_start(rows: Tensor, first: tuple[float, float]) -> list[float]:
    """Return the changes that the first state and the first cell cause."""
    return [times(change, _norm(rows[:, place, None])) for change, place in zip(first, (-2, -1), strict=True)]


def _norm(matrix: Tensor) -> float:
    """Return the norm of a matrix of factors, rounded up; infinity if a factor overflows."""
    if bool(matrix.isnan().any()):
        return math.nan
    return norm_upwards(matrix) * UPWARDS if bool(matrix.isfinite().all()) else math.inf


def _start(hx: Any, *, is_lstm: bool) -> tuple[tuple[float, float], float]:
    """Return the bounds of the first state and cell, and the largest entry of the first cell (LSTM) or state (GRU)."""
    state, cell = hx if is_lstm and hx is not None else (hx, None)
    changes = [each.bound.value if isinstance(each, Traced) else 0.0 for each in (state, cell)]
    return (changes[0], changes[1]), _size(cell if is_lstm else state)


def _size(value: Any) -> float:
    if value is None:
        return 0.0
    size = value.bound.extent.entries if isinstance(value, Traced) else largest(value)
    if math.isinf(size):
        msg = "its gates multiply the initial state, and the size of that state has no known bound"
        raise NoBoundError(msg)
    return size


@for_modules(nn.LSTM, nn.GRU)
def _gated_layer(op: Operation, input: Any, hx: Any = None) -> Bound:
    weights = weights_of(op.module)
    norms = norms_of(weights)
    bound = _states(op, weights, norms, input, input.bound.value if isinstance(input, Traced) else 0.0, hx)
    return Bound(bound, own=_states(op, weights, norms, input, 1.0, None))


@for_modules(nn.LSTMCell, nn.GRUCell)
def _gated_cell(op: Operation, input: Any, hx: Any = None) -> Bound:
    module, is_lstm = op.module, isinstance(op.module, nn.LSTMCell)
    first, size = _start(hx, is_lstm=is_lstm)
    weights = dict(module.named_parameters())
    rows, _ = (_lstm if is_lstm else _gru)(weights, norms_of(weights), "", 1, size).solved()
    # The changes of the state are at least as large as the changes of the cell.
    factors = rows[0].tolist()
    changes = input.bound.value if isinstance(input, Traced) else 0.0, *first
    own = together(factors) * UPWARDS
    return Bound(sum(times(change, factor * UPWARDS) for change, factor in zip(changes, factors, strict=True)), own=own)


@for_modules(nn.LSTM, nn.GRU, book=EXTENTS)
def _layer_extent(op: Operation, bound: Bound, input: Any, hx: Any = None) -> Extent:
    is_lstm = isinstance(op.module, nn.LSTM)
    size = _start(hx, is_lstm=is_lstm)[1]
    if not is_lstm:
        return Extent(max(1.0, size))
    # This bounds the cells. The states are smaller, unless they are projected.
    return Extent(size + steps_of(op.module, input)) if not op.module.proj_size else Extent()


@for_modules(nn.LSTMCell, nn.GRUCell, book=EXTENTS)
def _cell_extent(op: Operation, bound: Bound, input: Any, hx: Any = None) -> Extent:
    is_lstm = isinstance(op.module, nn.LSTMCell)
    size = _start(hx, is_lstm=is_lstm)[1]
    return Extent(size + 1.0 if is_lstm else max(1.0, size))
