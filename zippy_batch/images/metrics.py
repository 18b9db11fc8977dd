"""Distortion of 8-bit images: squared error, PSNR and SSIM, in exact integer sums.

Images are uint8 arrays (H, W) or (H, W, 3), both of the same shape. Every sum over pixels is an integer, and each float
step has one fixed order, so the figures depend neither on threads nor on the machine.

SSIM: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with the usual constants K1 = 0.01, K2 = 0.03 and L = 255.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import PSNR_CAP_DB

SSIM_WINDOW = 7
"""Side of the SSIM window in pixels, where it fits."""

_PEAK = 255.0
_C1 = (0.01 * _PEAK) ** 2
_C2 = (0.03 * _PEAK) ** 2


def _check_shapes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, got {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim not in (2, 3) or a.size == 0:
        raise ValueError(f"expected two images of one shape (H, W) or (H, W, C), got {a.shape} and {b.shape}")


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> np.int64:
    """Sum of squared differences of two flat arrays; at most 2^16 per sample, so exact up to 2^47 samples."""
    total = np.int64(0)
    for i in range(a.size):
        difference = np.int64(a[i]) - np.int64(b[i])
        total += difference * difference
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _ssim_sum(a: NDArray[np.uint8], b: NDArray[np.uint8], window: int, channels: int) -> float:
    """Sum of the SSIM index over all window positions and channels of two (H, W * channels) images.

    Keeps, for every column of samples, the sums over the last `window` rows of a, b, a^2 + b^2 (the index needs the two
    variances only added up) and a * b, and slides a window along them. All of these are integers.
    """
    height, line = a.shape
    column_a = np.zeros(line, np.int64)
    column_b = np.zeros(line, np.int64)
    column_squares = np.zeros(line, np.int64)
    column_products = np.zeros(line, np.int64)
    last = (window - 1) * channels
    pixels = window * window
    scale = 1.0 / (pixels * pixels)
    # sample covariance; a window of one pixel has none, and its contrast term is 1
    unbiased = 1.0 / (pixels * (pixels - 1)) if window > 1 else 0.0
    total = 0.0
    for y in range(height):
        entering_a, entering_b = a[y], b[y]
        for i in range(line):
            p, q = np.int64(entering_a[i]), np.int64(entering_b[i])
            column_a[i] += p
            column_b[i] += q
            column_squares[i] += p * p + q * q
            column_products[i] += p * q
        if y >= window:
            leaving_a, leaving_b = a[y - window], b[y - window]
            for i in range(line):
                p, q = np.int64(leaving_a[i]), np.int64(leaving_b[i])
                column_a[i] -= p
                column_b[i] -= q
                column_squares[i] -= p * p + q * q
                column_products[i] -= p * q
        if y < window - 1:
            continue
        for c in range(channels):
            sa = sb = squares = products = np.int64(0)
            for i in range(c, c + last, channels):
                sa += column_a[i]
                sb += column_b[i]
                squares += column_squares[i]
                products += column_products[i]
            for i in range(c, line - last, channels):
                sa += column_a[i + last]
                sb += column_b[i + last]
                squares += column_squares[i + last]
                products += column_products[i + last]
                means = sa * sb
                mean_squares = sa * sa + sb * sb
                total += ((2.0 * scale * means + _C1) * (2.0 * unbiased * (pixels * products - means) + _C2)) / (
                    (scale * mean_squares + _C1) * (unbiased * (pixels * squares - mean_squares) + _C2)
                )
                sa -= column_a[i]
                sb -= column_b[i]
                squares -= column_squares[i]
                products -= column_products[i]
    return total


def mean_squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean over all samples of (a - b)^2, in squared grey levels, 0..65025; ValueError when the shapes differ."""
    _check_shapes(a, b)
    return int(_squared_error(np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1))) / a.size


def psnr_db(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in squared grey levels; at most `PSNR_CAP_DB`."""
    if mse < 0 or math.isnan(mse):
        raise ValueError(f"expected a mean squared error >= 0, got {mse}")
    return PSNR_CAP_DB if mse == 0 else min(PSNR_CAP_DB, 10 * math.log10(_PEAK * _PEAK / mse))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Structural similarity, -1..1: mean over the channels and over all windows that lie inside the image.

    A uniform window of 7x7 pixels and the sample covariance, as in scikit-image's `structural_similarity`. In an image
    less than 7 pixels high or wide the window shrinks to the largest odd side that fits; one pixel has no variance, and
    a window of one pixel compares luminance alone. ValueError when the shapes differ.
    """
    _check_shapes(a, b)
    height, width = a.shape[:2]
    channels = a.shape[2] if a.ndim == 3 else 1
    shorter = min(height, width, SSIM_WINDOW)
    window = shorter - (shorter + 1) % 2
    positions = (height - window + 1) * (width - window + 1) * channels
    rows_a = np.ascontiguousarray(a).reshape(height, width * channels)
    rows_b = np.ascontiguousarray(b).reshape(height, width * channels)
    return float(_ssim_sum(rows_a, rows_b, window, channels)) / positions
