"""SSIMULACRA 2.1: a metric of how alike two pictures look, made for what codecs do to them.

    sRGB -> linear -> XYB, at six scales -> maps of lost structure, added edges, lost edges -> norms -> weighted sum

100 is the very same picture; 90 cannot be told apart, 70 is of high, 50 of medium, 30 of low quality, and very bad
pictures fall below 0. Jon Sneyers, Cloudinary, 2022 and 2023: https://github.com/cloudinary/ssimulacra2.

Shapes: H W pixels. Blurs take zeros for what is outside of a picture, as the original does. It has a recursive filter
where this has the Gaussian that it stands for.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SMALLEST_PX = 8
"""Of a side; what is smaller has no score."""
SCALES = 6

_SIGMA, _RADIUS = 1.5, 5
_C2 = 0.0009
_TO_LMS = np.array(
    [
        [0.30, 0.622, 0.078],
        [0.23, 0.692, 0.078],
        [0.24342268924547819, 0.20476744424496821, 0.55180986650955360],
    ]
)
_BIAS = 0.0037930732552754493
_VALUES = np.arange(256) / 255
_LINEAR = np.where(_VALUES <= 0.04045, _VALUES / 12.92, ((_VALUES + 0.055) / 1.055) ** 2.4)
# by channel, scale, norm (mean, fourth power) and map (structure, added edges, lost edges)
_WEIGHTS = np.array([
    0.0, 0.0007376606707406586, 0.0, 0.0, 0.0007793481682867309, 0.0, 0.0, 0.0004371155730107379, 0.0,
    1.1041726426657346, 0.00066284834129271, 0.00015231632783718752, 0.0, 0.0016406437456599754, 0.0,
    1.8422455520539298, 11.441172603757666, 0.0, 0.0007989109436015163, 0.000176816438078653, 0.0,
    1.8787594979546387, 10.94906990605142, 0.0, 0.0007289346991508072, 0.9677937080626833, 0.0,
    0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053, 0.0004550992113792063, 0.0, 0.0,
    0.0013648766163243398, 0.0, 0.0, 0.0, 0.0, 0.0, 7.466890328078848, 0.0, 17.445833984131262,
    0.0006235601634041466, 0.0, 0.0, 6.683678146179332, 0.00037724407979611296, 1.027889937768264,
    225.20515300849274, 0.0, 0.0, 19.213238186143016, 0.0011401524586618361, 0.001237755635509985,
    176.39317598450694, 0.0, 0.0, 24.43300999870476, 0.28520802612117757, 0.0004485436923833408, 0.0, 0.0, 0.0,
    34.77906344483772, 44.835625328877896, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0008680556573291698, 0.0, 0.0,
    0.0, 0.0, 0.0, 0.0005313191874358747, 0.0, 0.00016533814161379112, 0.0, 0.0, 0.0, 0.0, 0.0,
    0.0004179171803251336, 0.0017290828234722833, 0.0, 0.0020827005846636437, 0.0, 0.0, 8.826982764996862,
    23.19243343998926, 0.0, 95.1080498811086, 0.9863978034400682, 0.9834382792465353, 0.0012286405048278493,
    171.2667255897307, 0.9807858872435379, 0.0, 0.0, 0.0, 0.0005130064588990679, 0.0, 0.00010854057858411537,
])  # fmt: skip


def ssimulacra2(original: NDArray[np.uint8], other: NDArray[np.uint8]) -> float | None:
    """The score of `other`; both (H, W, 3), sRGB. None where a side is shorter than `SMALLEST_PX`."""
    if min(original.shape[:2]) < SMALLEST_PX:
        return None
    linear = [_LINEAR[image] for image in (original, other)]
    norms = []
    for _ in range(SCALES):
        if min(linear[0].shape[:2]) < SMALLEST_PX:
            break
        norms.append(_norms(*map(_positive_xyb, linear)))
        linear = list(map(_halved, linear))
    # smaller pictures have fewer scales, and the weights move up
    weighted = np.stack(norms, axis=1).ravel()
    return _score(float(weighted @ _WEIGHTS[: weighted.size]))


def _score(weighted: float) -> float:
    x = weighted * 0.9562382616834844
    x = 2.326765642916932 * x - 0.020884521182843837 * x**2 + 6.248496625763138e-05 * x**3
    return 100.0 - 10.0 * x**0.6276336467831387 if x > 0 else 100.0


def _positive_xyb(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) -> (3, H, W)."""
    long, medium, short = np.moveaxis(np.cbrt(linear @ _TO_LMS.T + _BIAS) - np.cbrt(_BIAS), 2, 0)
    x, y = (long - medium) / 2, (long + medium) / 2
    return np.stack([14 * x + 0.42, y + 0.01, short - y + 0.55])


def _norms(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, H, W) each -> (3 channels, 2 norms, 3 maps)."""
    mean_a, mean_b, square_a, square_b, product = _blurred(np.stack([a, b, a * a, b * b, a * b]))
    likeness = (1 - (mean_a - mean_b) ** 2) * (2 * (product - mean_a * mean_b) + _C2)
    structure = np.maximum(1 - likeness / (square_a - mean_a**2 + square_b - mean_b**2 + _C2), 0)
    edges = (1 + abs(b - mean_b)) / (1 + abs(a - mean_a)) - 1
    maps = np.stack([structure, np.maximum(edges, 0), np.maximum(-edges, 0)])
    return np.stack([maps.mean((2, 3)), (maps**4).mean((2, 3)) ** 0.25]).transpose(2, 0, 1)


def _blurred(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = planes.shape[-2:]
    return _blur_matrix(height) @ planes @ _blur_matrix(width)


@lru_cache(maxsize=64)
def _blur_matrix(size: int) -> NDArray[np.float64]:
    """(size, size), symmetric: a Gaussian along a side."""
    kernel = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
    distance = abs(np.subtract.outer(np.arange(size), np.arange(size)))
    found: NDArray[np.float64] = np.where(
        distance <= _RADIUS, kernel[_RADIUS + np.minimum(distance, _RADIUS)] / kernel.sum(), 0.0
    )
    return found


def _halved(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) -> means of 2x2; the last row or column of an odd size counts twice."""
    height, width, channels = linear.shape
    even = np.pad(linear, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    halved: NDArray[np.float64] = even.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((1, 3))
    return halved
