"""What both sides know about an image before its first symbol: integers only, because they steer probabilities.

Every feature is an integer in 0..256 computed from the image's height, width, grey flag and quality level with integer
arithmetic, so that an encoder and a decoder on different machines agree on it exactly. Continuous quantities are spread
over "hat" functions (linear interpolation between knots), which lets one matrix product learn any smooth function
of them.

Letters: N images, H W pixels, h w the grid of 8x8 blocks, F features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PATCH = 8
"""Side of a block in pixels: one grid position stands for PATCH x PATCH pixels."""

LEVEL_KNOTS = 12
LEVEL_STEP = 64
LEVEL_MAX = (LEVEL_KNOTS - 1) * LEVEL_STEP
"""Quality levels run from 0 to LEVEL_MAX; lambda doubles every LEVEL_STEP levels."""

_POSITION_KNOTS = 8
_SIZE_KNOTS = 6
SPATIAL_FEATURES = _POSITION_KNOTS * _POSITION_KNOTS + 2 + _SIZE_KNOTS + 1
LEVEL_FEATURES = LEVEL_KNOTS
ONE = 256
"""The integer that stands for 1.0."""


def grid_size(pixels: int) -> int:
    """Number of blocks that cover `pixels`."""
    return -(-pixels // PATCH)


def _hats(value: NDArray[np.int64], knots: int, step: int) -> NDArray[np.int64]:
    """(...,) integers in 0..(knots-1)*step -> (..., knots) weights that add up to step."""
    distance = np.abs(value[..., None] - step * np.arange(knots))
    return np.maximum(0, step - distance)


def _log2_sixteenths(value: int) -> int:
    """16 * log2(value), rounded by linear interpolation inside each octave; value >= 1."""
    octave = value.bit_length() - 1
    return 16 * octave + ((16 * value) >> octave) - 16


def _axis(pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position hats (n, 8), which add up to 16, and the number of missing pixels (n,) of the n blocks along an axis."""
    top = PATCH * np.arange(grid_size(pixels), dtype=np.int64)
    valid = np.minimum(PATCH, pixels - top)
    centre = (2 * top + valid) * (_POSITION_KNOTS - 1) * 16 // (2 * pixels)
    return _hats(centre, _POSITION_KNOTS, 16), PATCH - valid


EVERYTHING = slice(None)


def spatial_features(
    height: int, width: int, grey: bool, of_rows: slice = EVERYTHING, of_columns: slice = EVERYTHING
) -> NDArray[np.int64]:
    """(h, w, SPATIAL_FEATURES) integers in 0..256: position, missing pixels, image size, grey flag; of all positions
    of the grid or some rows and columns.
    """
    rows, rows_missing = (values[of_rows] for values in _axis(height))
    columns, columns_missing = (values[of_columns] for values in _axis(width))
    h, w = len(rows), len(columns)
    position = (rows[:, None, :, None] * columns[None, :, None, :]).reshape(h, w, -1)
    missing = np.stack(np.broadcast_arrays(rows_missing[:, None] * 32, columns_missing[None, :] * 32), axis=-1)
    # mean of log2(height) and log2(width), with knots at 16, 32, 64, 128, 256 and 512 px
    log_size = np.clip((_log2_sixteenths(height) + _log2_sixteenths(width)) // 2 - 16 * 4, 0, 16 * (_SIZE_KNOTS - 1))
    size = np.broadcast_to(_hats(np.asarray(log_size), _SIZE_KNOTS, 16) * 16, (h, w, _SIZE_KNOTS))
    flag = np.full((h, w, 1), ONE if grey else 0, np.int64)
    return np.concatenate([position, missing, size, flag], axis=-1)


def level_features(level: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) quality levels in 0..LEVEL_MAX -> (N, LEVEL_FEATURES) integers in 0..256."""
    return _hats(np.asarray(level, np.int64), LEVEL_KNOTS, LEVEL_STEP) * (ONE // LEVEL_STEP)
