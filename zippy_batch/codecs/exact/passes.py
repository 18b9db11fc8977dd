"""What the coefficient network does between its products, compiled for the processor.

Most coefficients are 0, so a block is seen as a list of inputs: which columns of a layer they belong to, and their
values. What it adds to a state is then a few columns of the layer, and nothing is copied side by side for a product.
Sums are exact in any order (`integer.py`), so the results are those of products.

All floats are whole multiples of a power of two. Letters: R blocks of a plane, E columns of a layer for one block, S
width of the state.
"""

# numba's compiled functions have no types that mypy knows
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.exact.features import (
    COEFFICIENT_LIMIT,
    INPUT_LIMIT,
    LINEAR,
    companding_table,
    end_table,
)

_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
_COMPANDING = companding_table().astype(np.float32)
_ENDS = end_table().astype(np.float32)

Inputs = tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.float32]]
"""Of every block (R,) how many inputs it has; which columns, and their values, (R, most inputs)."""


def no_inputs(blocks: int, most: int) -> Inputs:
    return np.zeros(blocks, np.int64), np.empty((blocks, most), np.int16), np.empty((blocks, most), np.float32)


def columns_of(weight: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Weights (S, `features.group_inputs`) of so many coefficients of a block -> (E, S) the columns that
    `list_coefficients` names: of positive values, of negative ones, and the linear ones."""
    signed, linear, size = np.split(weight, [count, weight.shape[1] - count], axis=1)
    return np.ascontiguousarray(np.concatenate([size + signed, size - signed, linear], axis=1).T)


@_jit
def choose(ends, least, grid, stages):
    """(stages + 1,) where each stage begins (`network.stages_of`) among the blocks whose end is `least` or more, and
    their numbers, stage by stage."""
    row, column, _, _ = grid
    begin = np.zeros(stages + 1, np.int64)
    for r in range(len(ends)):
        if ends[r] >= least:
            begin[_stage(row[r], column[r], stages) + 1] += 1
    for stage in range(stages):
        begin[stage + 1] += begin[stage]
    at = begin.copy()
    out = np.empty(begin[stages], np.int64)
    for r in range(len(ends)):
        if ends[r] >= least:
            stage = _stage(row[r], column[r], stages)
            out[at[stage]] = r
            at[stage] += 1
    return begin, out


@_jit
def _stage(row, column, stages):
    odd = (row + column) & 1
    return 0 if stages == 1 else odd if stages == 2 else 2 if odd else row & 1


@_jit
def list_coefficients(coefficients, span, rows, image, steps, inputs):
    """The inputs that coefficients of these blocks make, span = first, one after the last: coefficients (R, 64), image
    (R,), steps (N, 64)."""
    count, column, value = inputs
    start, stop = span
    size = stop - start
    for p in range(len(rows)):
        r = rows[p]
        found = 0
        for j in range(size):
            c = np.int64(coefficients[r, start + j])
            if c:
                v = min(COEFFICIENT_LIMIT, max(-COEFFICIENT_LIMIT, c * steps[image[r], start + j]))
                column[r, found] = j if v > 0 else size + j
                value[r, found] = _COMPANDING[abs(v)]
                found += 1
                if start + j < LINEAR:
                    column[r, found] = 2 * size + j
                    value[r, found] = min(INPUT_LIMIT, max(-INPUT_LIMIT, v >> 2))
                    found += 1
        count[r] = found


@_jit
def list_ends(ends, rows, first, inputs):
    """Add the inputs of the ends of these blocks, whose columns begin with `first`."""
    count, column, value = inputs
    for p in range(len(rows)):
        r = rows[p]
        found = count[r]
        for i in range(_ENDS.shape[1]):
            feature = _ENDS[ends[r], i]
            if feature:
                column[r, found] = first + i
                value[r, found] = feature
                found += 1
        count[r] = found


@_jit
def advance(state, rows, grid, before, now, limit, out):
    """Bring the state (R, S) of these blocks up to date, and settle it: out (len(rows), S), floor, within +-limit.

    grid: (R,) row, column, rows of the image, columns. before, now: of the group before and of this one the blocks
    around that are new, by stage; their inputs; and weights (9 * E, S). Blocks around are numbered 0..8 row by row, and
    a set of them is bits.
    """
    new_before, inputs_before, weight_before = before
    new_now, inputs_now, weight_now = now
    room = 9 * max(inputs_before[1].shape[1], inputs_now[1].shape[1])
    number, factor = np.empty(room, np.int64), np.empty(room, np.float32)
    row, column, _, _ = grid
    most = np.float32(limit)
    for p in range(len(rows)):
        r = rows[p]
        line, settled = state[r], out[p]
        which = new_before[_stage(row[r], column[r], len(new_before))]
        found = _collect(r, which, grid, inputs_before, len(weight_before) // 9, number, factor)
        _add(line, found, number, factor, weight_before)
        which = new_now[_stage(row[r], column[r], len(new_now))]
        if which:
            found = _collect(r, which, grid, inputs_now, len(weight_now) // 9, number, factor)
            _add(line, found, number, factor, weight_now)
        for i in range(len(line)):
            settled[i] = min(max(np.floor(line[i]), -most), most)


@_jit
def _collect(r, which, grid, inputs, entries, number, factor):
    """Fill number and factor with the inputs of blocks around one; returns how many there are."""
    row, column, high, wide = grid
    count, columns, value = inputs
    found = 0
    for k in range(9):
        down, across = k // 3 - 1, k % 3 - 1
        inside = 0 <= row[r] + down < high[r] and 0 <= column[r] + across < wide[r]
        if (which >> k) & 1 and inside:
            n = r + down * wide[r] + across
            for t in range(count[n]):
                number[found] = k * entries + columns[n, t]
                factor[found] = value[n, t]
                found += 1
    return found


@_jit
def add_own(state, inputs, weight):
    """Add what blocks themselves make known: weight (E, S)."""
    count, columns, value = inputs
    number = np.empty(columns.shape[1], np.int64)
    for r in range(len(state)):
        for t in range(count[r]):
            number[t] = columns[r, t]
        _add(state[r], count[r], number, value[r], weight)


@_jit
def _add(line, found, number, factor, weight):
    t = 0
    # four at once: the state is then read and written a quarter as often
    while t + 4 <= found:
        a, b, c, d = weight[number[t]], weight[number[t + 1]], weight[number[t + 2]], weight[number[t + 3]]
        e, f, g, h = factor[t], factor[t + 1], factor[t + 2], factor[t + 3]
        for i in range(len(line)):
            line[i] += e * a[i] + f * b[i] + g * c[i] + h * d[i]
        t += 4
    while t < found:
        a, e = weight[number[t]], factor[t]
        for i in range(len(line)):
            line[i] += e * a[i]
        t += 1


@_jit
def add_rows(rows, numbers, out):
    """out[r] += rows[numbers[r]], where there is such a row."""
    for r in range(len(numbers)):
        if numbers[r] < len(rows):
            line, source = out[r], rows[numbers[r]]
            for i in range(len(line)):
                line[i] += source[i]


@_jit
def settle_hidden(sums, bias, limit):
    """sums (rows, C) plus bias (C,) as integers: floor, within 0..limit."""
    least, most = np.float32(0), np.float32(limit)
    for p in range(len(sums)):
        line = sums[p]
        for i in range(len(line)):
            line[i] = min(max(np.floor(line[i] + bias[i]), least), most)
