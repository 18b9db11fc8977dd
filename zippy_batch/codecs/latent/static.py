"""What is known of an image before its first symbol, in the integer networks: a linear map of its features, computed
once for all images of a size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.integer import Arrays, fetch_within
from zippy_batch.codecs.latent.features import (
    LEVEL_FEATURES,
    SPATIAL_FEATURES,
    grid_size,
    level_features,
    spatial_features,
)

STATIC_BITS = 16
"""Weights are integers of 2^-16 of a unit of the result, for features of 256."""
_TOP = 1 << 30
_LIMIT = 1 << 28
"""Largest magnitude of a result: several of them add up within 32 bits."""
Size = tuple[int, int, bool]
"""Height and width in pixels, and whether the image is grey."""

CACHED_POSITIONS = 4096
"""Of larger grids only parts are held in memory, so that large images do not fill it."""


@lru_cache(maxsize=64)
def _cached_features(size: Size) -> NDArray[np.float64]:
    return spatial_features(*size).astype(np.float64)


def _features(size: Size, rows: slice, columns: slice) -> NDArray[np.float64]:
    """(h', w', F) at the positions named."""
    h, w = grid_size(size[0]), grid_size(size[1])
    if h * w <= CACHED_POSITIONS:
        return _cached_features(size)[rows, columns]
    return spatial_features(*size, rows, columns).astype(np.float64)


class IntegerStatic:
    """The static layer called NAME of a model file, for `width` units. Sums are exact in float64 (below 2^53)."""

    def __init__(self, arrays: Arrays, name: str, width: int) -> None:
        """Raises ModelError where the file lacks it or its weights are out of bounds."""
        spatial = fetch_within(arrays, f"{name}.spatial", "int32", _TOP, width, SPATIAL_FEATURES)
        level = fetch_within(arrays, f"{name}.level", "int32", _TOP, width, LEVEL_FEATURES)
        self._bias = fetch_within(arrays, f"{name}.bias", "int32", _LIMIT, width).astype(np.int64)
        self._spatial, self._level = spatial.astype(np.float64), level.astype(np.float64)

    def spatial(self, size: Size, rows: slice, columns: slice) -> NDArray[np.int32]:
        """(h' * w', width): the part that depends on the position, at the positions named."""
        features = _features(size, rows, columns)
        return _settled(features.reshape(-1, features.shape[-1]) @ self._spatial.T)

    def levels(self, level: NDArray[Any]) -> NDArray[np.int32]:
        """(Q,) levels -> (Q, width): the part that depends on the quality, and the bias."""
        sums = level_features(level).astype(np.float64) @ self._level.T
        return (_settled(sums) + self._bias).clip(-_LIMIT, _LIMIT).astype(np.int32)


def _settled(sums: NDArray[np.float64]) -> NDArray[np.int32]:
    rounded = (sums.astype(np.int64) + (1 << (STATIC_BITS - 1))) >> STATIC_BITS
    return rounded.clip(-_LIMIT, _LIMIT).astype(np.int32)
