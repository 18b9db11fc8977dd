"""Curves of bytes over PSNR, and what one codec needs of another's bytes at the same PSNR.

Between two points of a curve bytes are interpolated on a logarithmic scale, and beyond its ends nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Point(NamedTuple):
    """One setting of a codec."""

    bytes_per_image: float
    psnr_db: float


class EqualPsnr(NamedTuple):
    """Bytes of one codec over those of another at equal PSNR; below 1 the first is smaller."""

    ratio: float
    """Geometric mean over the range."""
    low_db: float
    high_db: float


def log_bytes_at(points: Sequence[Point], at_db: Sequence[float]) -> NDArray[np.float64]:
    """Natural logarithm of bytes per image at each PSNR; NaN outside of the curve."""
    ordered = sorted(points, key=lambda point: point.psnr_db)
    known = np.log([point.bytes_per_image for point in ordered])
    return np.interp(at_db, [point.psnr_db for point in ordered], known, left=np.nan, right=np.nan)


def ratio_at(mine: Point, theirs: Sequence[Point]) -> float | None:
    """Bytes of `mine` over those of the other at the same PSNR; None outside of the other's curve."""
    there = float(log_bytes_at(theirs, [mine.psnr_db])[0]) if theirs else math.nan
    return None if math.isnan(there) else mine.bytes_per_image / math.exp(there)


def mean_ratio(mine: Sequence[Point], theirs: Sequence[Point]) -> EqualPsnr | None:
    """Over the range of PSNR that both curves cover; None where there is none."""
    if not mine or not theirs:
        return None
    low = max(min(point.psnr_db for point in points) for points in (mine, theirs))
    high = min(max(point.psnr_db for point in points) for points in (mine, theirs))
    if high <= low:
        return None
    at_db = np.linspace(low, high, 100)[1:-1].tolist()
    return EqualPsnr(math.exp(np.mean(log_bytes_at(mine, at_db) - log_bytes_at(theirs, at_db))), low, high)


def level_for(target_bytes: float, levels: Sequence[int], bytes_per_image: Sequence[float]) -> int:
    """The level at which a codec takes about so many bytes, from those that were measured; within their range."""
    order = np.argsort(levels)
    # a curve that falls somewhere, as those of a few images may, is taken as flat there
    known = np.maximum.accumulate(np.log(np.asarray(bytes_per_image, np.float64)[order]))
    return round(float(np.interp(math.log(target_bytes), known, np.asarray(levels, np.float64)[order])))
