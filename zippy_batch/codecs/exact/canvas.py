"""What the network sees of coded blocks, laid out so that a block finds its neighbours.

A canvas has a row of inputs for every block of every image, and rows of zeros for a margin of one block around each
image (`blocks.Blocks`). It stays on the processor's side: what is gathered from it is what goes to a device. Compiled
by numba, because rows are short and a library's call for each of them is long.

Letters: P blocks, G coefficients of a group, K places on the canvas.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.exact.blocks import Blocks, Indices
from zippy_batch.codecs.exact.features import (
    COEFFICIENT_LIMIT,
    END_FEATURES,
    INPUT_LIMIT,
    LINEAR,
    companding_table,
    end_table,
)

Neighbours = tuple[int, ...]
"""Blocks around one and itself, by their number in 0..8, row by row."""

_COMPANDING = companding_table().astype(np.float32)
_ENDS = end_table().astype(np.float32)


def write_coefficients(
    coefficients: NDArray[np.int16], start: int, image: Indices, steps: Indices, rows: Indices, out: NDArray[np.float32]
) -> None:
    """Coefficients (P, G), the first of number `start`, of blocks of these images (P,) with steps (N, 64) -> the first
    columns of out's rows (P,): companded, those below LINEAR also linearly, and companded without their sign."""
    _write(coefficients, start, image, steps, rows, _COMPANDING, out)


def write_ends(ends: Indices, rows: Indices, out: NDArray[np.float32]) -> None:
    """Ends (P,) -> the last END_FEATURES columns of out's rows (P,)."""
    out[rows, out.shape[1] - END_FEATURES :] = _ENDS[ends]


def gather(canvas: NDArray[np.float32], blocks: Blocks, rows: Indices, which: Neighbours) -> NDArray[np.float32]:
    """(len(rows), len(which) * columns) the canvas around these blocks, neighbour by neighbour."""
    out = np.empty((len(rows), len(which) * canvas.shape[1]), np.float32)
    _gather(canvas, blocks.centre, blocks.stride, rows, np.array(which), out)
    return out


@numba.njit(cache=True, nogil=True)
def _write(coefficients, start, image, steps, rows, companding, out):  # type: ignore[no-untyped-def]
    count = coefficients.shape[1]
    linear = max(0, min(LINEAR, start + count) - start)
    for p in range(coefficients.shape[0]):
        line = out[rows[p]]
        for j in range(count):
            value = np.int64(coefficients[p, j]) * steps[image[p], start + j]
            value = min(COEFFICIENT_LIMIT, max(-COEFFICIENT_LIMIT, value))
            size = companding[abs(value)]
            line[j] = size if value > 0 else -size
            line[count + linear + j] = size
            if j < linear:
                line[count + j] = min(INPUT_LIMIT, max(-INPUT_LIMIT, value >> 2))


@numba.njit(cache=True, nogil=True)
def _gather(canvas, centre, stride, rows, which, out):  # type: ignore[no-untyped-def]
    columns = canvas.shape[1]
    for p in range(len(rows)):
        row = rows[p]
        for k in range(len(which)):
            place = centre[row] + (which[k] // 3 - 1) * stride[row] + which[k] % 3 - 1
            for c in range(columns):
                out[p, k * columns + c] = canvas[place, c]
