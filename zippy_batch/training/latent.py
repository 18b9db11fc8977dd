"""The lossy codec's training: rate + lambda * distortion over the whole range of quality levels, and its export.

The loss of an image is

    (bits / pixels + lambda(level) * distortion) / lambda(level) ** 0.4

with a random level per image; the division lets a relative saving count about the same at every rate. The distortion is
the mean squared error on 0..255, or SSIM's distance from 1 in a unit in which it weighs about the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zippy_batch.codecs.latent.codec import LatentCodec
from zippy_batch.codecs.latent.context import QUALITY_LEVELS
from zippy_batch.codecs.latent.export import (
    entropy_arrays,
    export_arrays,
    quality_levels,
    threshold_array,
)
from zippy_batch.codecs.latent.features import LEVEL_MAX, spatial_features
from zippy_batch.codecs.latent.network import LatentArchitecture, LatentNetwork, as_float, lambda_of, to_input
from zippy_batch.codecs.model_file import model_from_bytes, serialise
from zippy_batch.errors import UsageError
from zippy_batch.images.metrics import psnr_db
from zippy_batch.training.pictures import Pool, PoolSpec, batches, draw_batch
from zippy_batch.training.run import Score

POSITIONS = 3456
"""8x8 blocks per step; 96 thumbnails of 42x42."""
ROUNDING_STRENGTH = 0.2
"""How strongly the encoder's rounding trades error for bits (`export.threshold_array`)."""
QUANTISED_FROM = 0.9
"""Share of a run after which it rounds activations, whose units are measured then."""
_MEASURED_BATCHES = 48
MIN_IMAGES = 8
"""Fewest images that there is anything to train on."""
_HELD_OUT = 256
"""Images of the pool that is scored for the log, at most a quarter of it."""
GREY_SHARE = 0.1
"""Share of the batches in colour that is turned to grey."""
SSIM_SHARES = {"mse": 0.0, "mix": 0.5, "ssim": 1.0}
"""Share of SSIM in the distortion."""
SHOWN_QUALITIES = (40, 75, 90)
"""What the log says of the held-out images."""
_SSIM_UNIT = 600.0
"""Mean squared error that weighs as much as an SSIM of 0: about what the two are to each other at 30 dB."""
_SSIM_WINDOW = 7


def loss_parts(
    network: LatentNetwork, images: Pool, level: Tensor, grey: bool, noise: bool = True
) -> tuple[Tensor, Tensor]:
    """Bits per pixel (N,) and mean squared error on 0..255 (N,)."""
    bpp, out, target = reconstruct(network, images, level, grey, noise)
    return bpp, mean_squared_errors(out, target)


def reconstruct(
    network: LatentNetwork, images: Pool, level: Tensor, grey: bool, noise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Bits per pixel (N,), what comes back and the images, (N, 3 or 1, H, W) in 0..1; without noise, whole levels."""
    target, padded = (x.to(level.device) for x in to_input(images))
    h, w = target.shape[2:]
    spatial = as_float(spatial_features(h, w, grey))[None].to(level.device)
    out, bits = network(padded, spatial, level, noise)
    out = out[:, :, :h, :w]
    if grey:
        out, target = out.mean(1, keepdim=True), target[:, :1]
    if not noise:
        out = (out.clamp(0, 1) * 255).round() / 255
    return bits / (h * w), out, target


def mean_squared_errors(out: Tensor, target: Tensor) -> Tensor:
    """(N,) on 0..255, of images (N, C, H, W) in 0..1."""
    return 255.0**2 * ((out - target) ** 2).mean((1, 2, 3))


def _distortion(out: Tensor, target: Tensor, ssim_share: float) -> Tensor:
    """(N,) the mean squared error on 0..255, unless SSIM has a share in it."""
    mse = mean_squared_errors(out, target)
    return (1 - ssim_share) * mse + ssim_share * _SSIM_UNIT * (1 - _ssim(out, target)) if ssim_share else mse


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of images (N, C, H, W) in 0..1 -> (N,), windows of 7x7 or as large as the image, with gradients.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    window = min(_SSIM_WINDOW, *a.shape[2:])

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, 1)

    mean_a, mean_b = mean(a), mean(b)
    unbiased = window**2 / max(1, window**2 - 1)
    variance_a, variance_b = unbiased * (mean(a * a) - mean_a**2), unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (value / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean((1, 2, 3))


def to_grey(images: Pool) -> Pool:
    luma = (images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)
    return np.repeat(luma[..., None], 3, -1)


def are_grey(images: Pool) -> NDArray[np.bool_]:
    """(N,) whether red, green and blue are equal everywhere: such a picture is archived as a grey one."""
    return (images == images[..., :1]).all((1, 2, 3))


def _as_archived(images: Pool) -> list[Pool]:
    """Images (H, W, 3), grey ones (H, W)."""
    return [image[..., 0] if grey else image for image, grey in zip(images, are_grey(images), strict=True)]


def random_levels(n: int, rng: np.random.Generator) -> Tensor:
    """Levels over the whole range, denser where most archives are made."""
    wide, dense = rng.random(n), 0.1 + 0.6 * rng.random(n)
    return torch.from_numpy(np.where(rng.random(n) < 0.35, dense, wide).astype(np.float32)) * LEVEL_MAX


def evaluate(
    network: LatentNetwork, images: Pool, qualities: Sequence[int], ssim_share: float = 0.0
) -> tuple[list[tuple[int, float, float]], float]:
    """(quality, bits per pixel, PSNR of the pooled error in dB) with real rounding, and the mean loss."""
    rows, losses = [], []
    device, grey = network.log_gain.device, are_grey(images)
    alike = [(images[grey == flag], flag) for flag in (False, True)]
    parts = [(some[i : i + 64], flag) for some, flag in alike for i in range(0, len(some), 64)]
    for quality in qualities:
        bits, errors = [], []
        for part, flag in parts:
            level = torch.full((len(part),), float(quality_levels()[quality - 1]), device=device)
            bpp, out, target = reconstruct(network, part, level, flag, noise=False)
            losses.append(_weighted(bpp, _distortion(out, target, ssim_share), level))
            bits.append(bpp)
            errors.append(mean_squared_errors(out, target))
        rows.append((quality, torch.cat(bits).mean().item(), psnr_db(torch.cat(errors).mean().item())))
    return rows, torch.cat(losses).mean().item()


def _weighted(bpp: Tensor, distortion: Tensor, level: Tensor) -> Tensor:
    lam = lambda_of(level)
    return (bpp + lam * distortion) / lam**0.4 * 0.02**0.4


class LatentTask:
    """Training of one network on pools of pictures (`run.Task`).

    A part of the pool that training draws from most is held out and scored for the log.
    """

    def __init__(
        self,
        network: LatentNetwork,
        pools: Sequence[Pool],
        specs: Sequence[PoolSpec],
        positions: int = POSITIONS,
        loss: str = "mse",
    ) -> None:
        self.network = network
        scored = _scored_pool(pools, specs)
        held = min(_HELD_OUT, len(pools[scored]) // 4)
        kept = len(pools[scored]) - held
        self._held_out = np.array(pools[scored][kept:])
        self._pools, self._specs, self._positions = list(pools), specs, positions
        self._pools[scored] = pools[scored][:kept]
        self._ssim_share = SSIM_SHARES[loss]
        self._is_quantised = False

    def card(self) -> dict[str, Any]:
        return self.network.architecture.to_dict()

    def is_hidden(self, name: str) -> bool:
        return any(part in name for part in ("expand", "project", "hidden", "near.", "far."))

    def reach(self, share: float) -> bool:
        """The last part of a run rounds activations as the integer networks do."""
        if self._is_quantised or share < QUANTISED_FROM:
            return False
        # also where a model file brought units: its weights have moved since
        self._measure()
        self.network.quantise_activations()
        self._is_quantised = True
        return True

    def _measure(self) -> None:
        rng = np.random.default_rng(2)
        device = self.network.log_gain.device
        with torch.no_grad(), self.network.measuring():
            for _ in range(_MEASURED_BATCHES):
                images, grey = _of_one_kind(draw_batch(self._pools, self._specs, self._positions, rng))
                level = random_levels(len(images), rng).to(device)
                reconstruct(self.network, images, level, grey, noise=False)

    def loss(self, rng: np.random.Generator) -> Tensor:
        images, grey = _of_one_kind(draw_batch(self._pools, self._specs, self._positions, rng))
        if not grey and rng.random() < GREY_SHARE:
            images, grey = to_grey(images), True
        level = random_levels(len(images), rng).to(self.network.log_gain.device)
        bpp, out, target = reconstruct(self.network, images, level, grey, noise=True)
        return _weighted(bpp, _distortion(out, target, self._ssim_share), level).mean()

    def evaluate(self, network: LatentNetwork) -> Score:
        rows, loss = evaluate(network, self._held_out, SHOWN_QUALITIES, self._ssim_share)
        shown = "  ".join(f"q{quality} {bpp:.3f} bit/px {psnr:.2f} dB" for quality, bpp, psnr in rows)
        return Score(loss, shown)


def _scored_pool(pools: Sequence[Pool], specs: Sequence[PoolSpec]) -> int:
    """The pool with the largest weight among those of photographs with enough images. Raises UsageError."""
    found = [(spec, len(pool)) for spec, pool in zip(specs, pools, strict=True)]
    enough = [i for i, (spec, count) in enumerate(found) if count >= MIN_IMAGES and not spec.drawn]
    if not enough:
        there = ", ".join(f"{count} of {spec.width}x{spec.height} px" for spec, count in found if not spec.drawn)
        raise UsageError(
            f"training needs {MIN_IMAGES} images of one size, and the sources give {there}; they are too few, cannot "
            "be decoded or are smaller than that: add some, or choose a smaller size (--sizes 32x32)"
        )
    return max(enough, key=lambda i: specs[i].weight)


def _of_one_kind(images: Pool) -> tuple[Pool, bool]:
    """Those of a batch that are archived as its first one is, in grey or in colour, and whether in grey."""
    grey = are_grey(images)
    return images[grey == grey[0]], bool(grey[0])


def count_residuals(codec: LatentCodec, samples: Sequence[Pool], seed: int = 0) -> list[NDArray[np.float64]]:
    """How often each residual came up under each scale index, in the order of the tables, over batches at random
    qualities.
    """
    radius = codec.tables.radius
    counts = [np.zeros(2 * r + 2) for r in radius]
    rng = np.random.default_rng(seed)
    for images in samples:
        qualities = rng.integers(1, QUALITY_LEVELS + 1, len(images)).tolist()
        residuals, tables = codec.encode_symbols(_as_archived(images), qualities)
        for i in range(1, len(radius)):
            of_table = tables == i
            symbols = codec.tables.symbols(residuals[of_table], tables[of_table])
            counts[i] += np.bincount(symbols, minlength=len(counts[i]))
    return counts


def export(
    network: LatentNetwork,
    pools: Sequence[Pool],
    specs: Sequence[PoolSpec],
    card: dict[str, Any],
    batches_of_samples: int = 160,
    strength: float = ROUNDING_STRENGTH,
) -> bytes:
    """A network -> the bytes of a model file, weights rounded and tables counted on samples of its pools. The network
    is left with the weights that the file has.

    strength: how strongly rounding trades error for bits.
    """
    stream = batches(pools, specs, 1152, np.random.default_rng(1))
    samples = [next(stream) for _ in range(batches_of_samples)]
    arrays = export_arrays(network.cpu(), samples[: batches_of_samples // 4])
    arrays["encoder.threshold"] = threshold_array(arrays, strength)
    card = {**card, "codec": "latent", "architecture": network.architecture.to_dict()}
    # counted once under the prior's thresholds, then under the thresholds that follow from the counts
    for _ in range(2):
        codec = LatentCodec(model_from_bytes(serialise(arrays, card)))
        arrays |= entropy_arrays(count_residuals(codec, samples))
        arrays["encoder.threshold"] = threshold_array(arrays, strength)
    return serialise(arrays, card)


def new_network() -> LatentNetwork:
    return LatentNetwork(LatentArchitecture())


def build(card: dict[str, Any]) -> LatentNetwork:
    """The network of a checkpoint's card, not trained."""
    return LatentNetwork(LatentArchitecture.from_dict(card))
