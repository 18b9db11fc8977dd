"""Curves of bytes over a quality, and what one codec needs of another's bytes at the same quality: PSNR in dB, or SSIM.

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
    quality: float


class EqualQuality(NamedTuple):
    """Bytes of one codec over those of another at equal quality; below 1 the first is smaller."""

    ratio: float
    """Geometric mean over the range."""
    low: float
    high: float


def log_bytes_at(points: Sequence[Point], qualities: Sequence[float]) -> NDArray[np.float64]:
    """Natural logarithm of bytes per image at each quality; NaN outside of the curve."""
    ordered = sorted(points, key=lambda point: point.quality)
    known = np.log([point.bytes_per_image for point in ordered])
    return np.interp(qualities, [point.quality for point in ordered], known, left=np.nan, right=np.nan)


def unbeaten(curves: Sequence[Sequence[Point]]) -> list[list[bool]]:
    """Says for each point of several curves whether none of the other curves has its quality in fewer bytes.

    Of two that are equal there, the first one's counts.
    """
    return [
        [not any(_is_beaten(point, other, j < i) for j, other in enumerate(curves) if j != i) for point in curve]
        for i, curve in enumerate(curves)
    ]


def _is_beaten(point: Point, other: Sequence[Point], also_if_equal: bool) -> bool:
    there = float(log_bytes_at(other, [point.quality])[0]) if other else math.nan
    mine = math.log(point.bytes_per_image)
    return there <= mine if also_if_equal else there < mine


def ratio_at(mine: Point, theirs: Sequence[Point]) -> float | None:
    """Bytes of `mine` over those of the other at the same quality; None outside of the other's curve."""
    there = float(log_bytes_at(theirs, [mine.quality])[0]) if theirs else math.nan
    return None if math.isnan(there) else mine.bytes_per_image / math.exp(there)


def mean_ratio(mine: Sequence[Point], theirs: Sequence[Point]) -> EqualQuality | None:
    """Over the range of quality that both curves cover; None where there is none."""
    if not mine or not theirs:
        return None
    low = max(min(point.quality for point in points) for points in (mine, theirs))
    high = min(max(point.quality for point in points) for points in (mine, theirs))
    if high <= low:
        return None
    qualities = np.linspace(low, high, 100)[1:-1].tolist()
    return EqualQuality(math.exp(np.mean(log_bytes_at(mine, qualities) - log_bytes_at(theirs, qualities))), low, high)


def level_for(target_bytes: float, levels: Sequence[int], bytes_per_image: Sequence[float]) -> int:
    """The level at which a codec takes about so many bytes, from those that were measured; within their range."""
    order = np.argsort(levels)
    # a curve that falls somewhere, as those of a few images may, is taken as flat there
    known = np.maximum.accumulate(np.log(np.asarray(bytes_per_image, np.float64)[order]))
    return round(float(np.interp(math.log(target_bytes), known, np.asarray(levels, np.float64)[order])))
