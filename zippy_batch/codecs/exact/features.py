"""What both sides know before a coefficient is coded, and how coded coefficients are shown to the network: integers
only, because they steer probabilities.

Coefficients are seen dequantised (coefficient * step), so that one network serves every quantisation table.

Letters: R blocks of any number of images, h w a component's grid of 8x8 blocks, F features.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.latent.features import ONE, SPATIAL_FEATURES, spatial_features

INPUT_LIMIT = 255
"""Largest magnitude of a companded or linear coefficient."""
COEFFICIENT_LIMIT = 2047
"""Dequantised values are seen clamped to +-COEFFICIENT_LIMIT: twice what an 8-bit picture can have."""
LINEAR = 15
"""The first coefficients of a block, in zigzag order, are also shown linearly: neighbouring blocks continue them."""

_TABLE_KNOTS = 8
STATIC_FEATURES = SPATIAL_FEATURES + _TABLE_KNOTS + 4 + 2
"""Position, missing pixels, size, grey flag; coarseness of the table; place in the coded unit; subsampling."""

_END_KNOTS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 42, 63)
END_FEATURES = len(_END_KNOTS)

# no logarithm below is so near to a half that the last bits of a library's log2 could turn its rounding
_COMPANDING = np.rint(28 * np.log2(1 + np.arange(COEFFICIENT_LIMIT + 1) / 4)).astype(np.int64)
_LOG2_STEPS = np.rint(128 * np.log2(np.maximum(1, np.arange(1 << 16)))).astype(np.int64)


def companding_table() -> NDArray[np.int64]:
    """(COEFFICIENT_LIMIT + 1,) 28 * log2(1 + value / 4), rounded: 0..252."""
    return _COMPANDING


def log2_steps(steps: NDArray[np.integer]) -> NDArray[np.int64]:
    """128 * log2(step), rounded; steps 1..65535."""
    return _LOG2_STEPS[steps]


@lru_cache
def end_table() -> NDArray[np.int64]:
    """(64, END_FEATURES) 0..256: the end of a block (`ends_of`) spread over knots, linear in between, rounded down."""
    end, knots = np.arange(64)[:, None], np.array(_END_KNOTS)
    low = np.concatenate([[-1], knots[:-1]])
    high = np.concatenate([knots[1:], [64]])
    rising = (end - low) * ONE // (knots - low)
    falling = (high - end) * ONE // (high - knots)
    return np.clip(np.minimum(rising, falling), 0, ONE)


def ends_of(coefficients: NDArray[np.integer]) -> NDArray[np.int64]:
    """(R, 64) -> (R,) the end of each block: place of the last coefficient after DC that is not 0; 0 where all are."""
    there = coefficients != 0
    there[:, 0] = True
    return 63 - np.argmax(there[:, ::-1], axis=1)


def group_inputs(start: int, stop: int) -> int:
    """Inputs that the coefficients start..stop-1 of one block make."""
    return 2 * (stop - start) + max(0, min(LINEAR, stop) - start)


def coarseness(tables: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N,) of quantisation tables (N, 64) in zigzag order 128 * log2 of the first ten steps, their mean."""
    return log2_steps(tables[:, :10]).sum(1) // 10


def static_features(
    pixels: tuple[int, int], blocks: tuple[int, int], coarseness: int, ratio: tuple[int, int], grey: bool
) -> NDArray[np.int16]:
    """(h * w, STATIC_FEATURES) integers in 0..256 of a component; not to be written to.

    pixels is its height and width, blocks its grid (larger than the pixels need where padding blocks are coded),
    ratio how many blocks of it (down, across) one block of the coarsest component spans.
    """
    make = _cached_features if blocks[0] * blocks[1] <= _CACHED_BLOCKS else _features
    return make(pixels, blocks, coarseness, ratio, grey)


def _features(
    pixels: tuple[int, int], blocks: tuple[int, int], coarseness: int, ratio: tuple[int, int], grey: bool
) -> NDArray[np.int16]:
    h, w = blocks
    height, width = (p if -(-p // 8) == n else 8 * n for p, n in zip(pixels, blocks, strict=True))
    spatial = spatial_features(height, width, grey)
    distance = np.abs(min(coarseness, 128 * (_TABLE_KNOTS - 1)) - 128 * np.arange(_TABLE_KNOTS))
    knots = np.broadcast_to(np.maximum(0, 128 - distance) * 2, (h, w, _TABLE_KNOTS))
    place = np.zeros((h, w, 4), np.int64)
    down, across = (min(2, r) for r in ratio)
    for i in range(down):
        for j in range(across):
            place[i::down, j::across, 2 * i + j] = ONE
    flags = np.broadcast_to(np.array([ONE * (down > 1), ONE * (across > 1)], np.int64), (h, w, 2))
    features = np.concatenate([spatial, knots, place, flags], axis=-1, dtype=np.int16).reshape(h * w, -1)
    features.flags.writeable = False
    return features


_CACHED_BLOCKS = 2048
"""Of larger pictures nothing is kept: features take 174 bytes a block, and data sets of large pictures have many sizes.
"""
_cached_features = lru_cache(maxsize=128)(_features)
