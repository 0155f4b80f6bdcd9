"""The softmax of a training step on the CPU, compiled by numba: one pass over the logits of a
position while they are in the cache, from logits to their gradient.
"""

from __future__ import annotations

import numpy as np
import torch

from distilrec.engine.kernels import inlined, kernel
from distilrec.networks.on_cpu import in_threads
from distilrec.training.scoring import MASKED_BELOW, MASKED_LOGIT, Dense

_F = np.float32
_MASKED, _MASKED_BELOW = _F(MASKED_LOGIT), _F(MASKED_BELOW)
_LANES = 16  # maxima that are kept side by side
_LOG2_E = _F(np.log2(np.e))
# Powers of two below are 0: a share of 2^-64 moves nothing, and products of smaller ones would not
# be normal numbers, with which processors are slow
_LOWEST = _F(-64.0)
_HALF, _NONE = _F(0.5), _F(0.0)
_BIAS, _MANTISSA, _ZERO = np.int32(127), np.int32(23), np.int32(0)  # of a float32
# 2^f for f in [-.5, .5], the interpolation in Chebyshev nodes: relative error 3e-9 before rounding
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (
    _F(c)
    for c in (1.0, 0.693147207, 0.240226512, 0.0555032721, 0.00961802560, 0.00134004322, 1.54697e-4)
)


def cross_entropy(
    logits: torch.Tensor,
    first: torch.Tensor | None,
    window: torch.Tensor,
    place: torch.Tensor,
    items: torch.Tensor,
    weights: torch.Tensor,
    scale: float,
    dense: Dense | None = None,
) -> float:
    """Put scale times the gradient of the cross-entropy in place of the logits, and return scale
    times its sum over the positions: sum_j w_j (log sum_i exp s_i - s_j), and with `dense` the same
    sum over all items j with w_j = weight * softmax(z)_j.

    logits: (positions, columns) float32; first: (windows, at least columns) int16, from which place
    on an item is left out, or None; window, place: (positions,) int64; items: (positions, n) int64,
    columns, and their weights w, (positions, n) float32. An item that is left out has no weight.
    dense: its logits z are (positions, columns) float32, and are overwritten.
    Raises IndexError for an item that is no column: compiled code would write outside the logits.
    """
    rows, columns = logits.shape
    if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < columns:
        raise IndexError(f"items {int(items.min())} to {int(items.max())} of {columns} columns")
    losses = np.zeros(rows, np.float32)
    table = np.zeros((1, 0), np.int16) if first is None else first.numpy()
    teacher = logits.new_empty(rows, 0) if dense is None else dense.logits.contiguous()
    arrays = [
        tensor.numpy()
        for tensor in (logits, teacher, window, place, items.contiguous(), weights.contiguous())
    ]
    of_dense = _F(0.0 if dense is None else dense.weight)

    def run(some: slice) -> None:
        own_logits, own_teacher, *others = (array[some] for array in arrays)
        bits = np.zeros(columns, np.int32)
        lanes = np.zeros(_LANES, np.float32)
        powers = bits.view(np.float32)
        _rows(
            own_logits, own_teacher, of_dense, table, *others, _F(scale), bits, powers, lanes,
            losses[some],
        )  # fmt: skip

    in_threads(rows, run, fewest=8)
    return float(losses.sum(dtype=np.float64)) * scale


@kernel
def _rows(  # type: ignore[no-untyped-def]
    logits, teacher, of_dense, first, window, place, items, weights, scale, bits, powers, lanes,
    losses,
):  # fmt: skip
    """Compute the loss and the gradient of each row; `powers` is `bits`, read as float32."""
    dense = teacher.shape[1] > 0
    for r in range(logits.shape[0]):
        row = logits[r]
        if first.shape[1] > 0:
            _mask(row, first[window[r]], place[r])
        highest = _maximum(row, lanes)
        total, below = _NONE, _NONE
        for j in range(items.shape[1]):
            value = row[items[r, j]]
            if value > _MASKED_BELOW:
                total += weights[r, j]
                below += weights[r, j] * (highest - value)
            else:
                weights[r, j] = _NONE
        if dense:
            expected = teacher[r]
            if first.shape[1] > 0:
                _mask(expected, first[window[r]], place[r])
            _powers_of_two(expected, _maximum(expected, lanes), bits)
            _multiply(expected, of_dense / _product_and_sum(expected, powers))
            total += of_dense
            below += _weighted(expected, row, highest)
        _powers_of_two(row, highest, bits)
        of_all = _product_and_sum(row, powers)
        _multiply(row, total * scale / of_all)
        if dense:
            _subtract(row, teacher[r], scale)
        for j in range(items.shape[1]):
            row[items[r, j]] -= weights[r, j] * scale
        losses[r] = total * np.log(of_all) + below


@inlined
def _mask(row, first, place):  # type: ignore[no-untyped-def]
    for c in range(row.shape[0]):
        row[c] = row[c] if first[c] > place else _MASKED


@inlined
def _maximum(row, lanes):  # type: ignore[no-untyped-def]
    whole = row.shape[0] // _LANES * _LANES
    lanes[:] = _MASKED
    for start in range(0, whole, _LANES):
        for c in range(_LANES):
            value = row[start + c]
            lanes[c] = value if value > lanes[c] else lanes[c]
    highest = _MASKED
    for c in range(_LANES):
        highest = lanes[c] if lanes[c] > highest else highest
    for c in range(whole, row.shape[0]):
        highest = row[c] if row[c] > highest else highest
    return highest


@inlined
def _powers_of_two(row, highest, bits):  # type: ignore[no-untyped-def]
    """exp(x - highest) = 2^f 2^k: 2^f into `row`, the bits of 2^k into `bits`."""
    for c in range(row.shape[0]):
        t = max((row[c] - highest) * _LOG2_E, _LOWEST)
        k = np.int32(t - _HALF)
        f = t - _F(k)
        row[c] = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
        bits[c] = (k + _BIAS) << _MANTISSA if t > _LOWEST else _ZERO


@inlined
def _product_and_sum(row, powers):  # type: ignore[no-untyped-def]
    total = _NONE
    for c in range(row.shape[0]):
        value = row[c] * powers[c]
        row[c] = value
        total += value
    return total


@inlined
def _multiply(row, factor):  # type: ignore[no-untyped-def]
    for c in range(row.shape[0]):
        row[c] *= factor


@inlined
def _weighted(weights, row, highest):  # type: ignore[no-untyped-def]
    """Return sum_i w_i (highest - x_i)."""
    total = _NONE
    for c in range(row.shape[0]):
        total += weights[c] * (highest - row[c])
    return total


@inlined
def _subtract(row, weights, factor):  # type: ignore[no-untyped-def]
    for c in range(row.shape[0]):
        row[c] -= weights[c] * factor
