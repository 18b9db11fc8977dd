"""Squared error, PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zippy_batch.archives.schema import PSNR_CAP_DB
from zippy_batch.images.metrics import mean_squared_error, psnr_db, ssim


def noisy_pair(seed: int, shape: tuple[int, ...], sigma: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(0, 12, shape), axis=1) + 128
    a = np.clip(smooth, 0, 255).astype(np.uint8)
    b = np.clip(smooth + rng.normal(0, sigma, shape), 0, 255).astype(np.uint8)
    return a, b


@pytest.mark.parametrize("shape", [(7, 7, 3), (42, 42, 3), (42, 42), (218, 178, 3), (250, 250), (7, 64, 3), (31, 9)])
@pytest.mark.parametrize("sigma", [0.5, 8, 60])
def test_ssim_equals_that_of_scikit_image(shape: tuple[int, ...], sigma: float) -> None:
    from skimage.metrics import structural_similarity

    a, b = noisy_pair(1, shape, sigma)
    reference = structural_similarity(a, b, channel_axis=2 if len(shape) == 3 else None)
    assert ssim(a, b) == pytest.approx(reference, abs=1e-12)


def test_psnr_equals_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    a, b = noisy_pair(2, (42, 42, 3), 8)
    assert psnr_db(mean_squared_error(a, b)) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-12)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_small_images_have_an_ssim_in_range(height: int, width: int, grey: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (height, width) if grey else (height, width, 3)
    a, b = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert -1 <= ssim(a, b) <= 1
    assert ssim(a, b) == ssim(b, a)


def test_window_shrinks_to_the_largest_odd_side_that_fits() -> None:
    from skimage.metrics import structural_similarity

    for side, window in ((6, 5), (5, 5), (4, 3), (3, 3)):
        a, b = noisy_pair(3, (side, side + 4, 3), 20)
        assert ssim(a, b) == pytest.approx(structural_similarity(a, b, channel_axis=2, win_size=window), abs=1e-12)


def test_one_pixel_compares_luminance() -> None:
    a = np.array([[100]], np.uint8)
    b = np.array([[200]], np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 200 + c1) / (100**2 + 200**2 + c1))
    assert ssim(a, a) == 1


def test_ssim_of_flat_images_is_defined() -> None:
    black, white = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)
    assert ssim(black, black) == 1
    assert 0 < ssim(black, white) < 0.001


def test_squared_error_is_exact() -> None:
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert mean_squared_error(black, white) == 255.0**2
    assert mean_squared_error(white[::2], white[::2]) == 0
    assert psnr_db(255.0**2) == 0


def test_psnr_is_capped() -> None:
    assert psnr_db(0) == psnr_db(1e-12) == PSNR_CAP_DB


def test_strided_arrays_are_measured_like_copies() -> None:
    a, b = noisy_pair(4, (60, 60, 3), 10)
    assert ssim(a[::2, 1::3], b[::2, 1::3]) == ssim(a[::2, 1::3].copy(), b[::2, 1::3].copy())
    assert mean_squared_error(a[::2], b[::2]) == mean_squared_error(a[::2].copy(), b[::2].copy())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)),
        (np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)),
        (np.zeros((0, 8), np.uint8), np.zeros((0, 8), np.uint8)),
        (np.zeros(8, np.uint8), np.zeros(8, np.uint8)),
    ],
)
def test_unlike_images_are_refused(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ssim(a, b)
    with pytest.raises(ValueError, match="expected"):
        mean_squared_error(a, b)
