"""Batches of pixels <-> payloads with the lossy codec.

    pixels -> analysis (float) -> y -> integer context + rANS -> payload
    payload -> rANS + integer context -> y_hat (integers) -> synthesis (float) -> pixels

Floats stand only where they cannot change a symbol that was written: in the analysis, before rounding, and in the
synthesis, after decoding. A batch holds images with the same grid of 8x8 blocks; their pixel sizes, quality and
greyness may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.codecs.integer import exact_products, fetch
from zippy_batch.codecs.latent.context import QUALITY_LEVELS, SIXTEENTHS, IntegerContext
from zippy_batch.codecs.latent.features import LEVEL_MAX, ONE, PATCH, grid_size, level_features, spatial_features
from zippy_batch.codecs.latent.network import PARITIES, SCALE_LEVELS, Analysis, LatentArchitecture, Synthesis
from zippy_batch.codecs.model_file import Model
from zippy_batch.codecs.rans import RESIDUAL_LIMIT, Decoder, Tables, encode, lane_count
from zippy_batch.errors import DamagedRow, ModelError

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB, or (H, W) grey."""


@dataclass(frozen=True)
class LatentItem:
    """What decoding one image needs; all of it is in the image's row."""

    payload: bytes
    height: int
    width: int
    grey: bool
    quality: int


def grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of 8x8 blocks; a batch's images must agree in them."""
    return grid_size(height), grid_size(width)


class LatentCodec:
    """One model on one device. Safe to use from several threads.

    What was written decodes to the same symbols on every device, at any batch size, thread count and precision. By
    default the analysis runs in bfloat16 where the device is fast at it, and the synthesis in float32; `precision` sets
    both. Raises ModelError for a model that is not whole or not exact.
    """

    def __init__(self, model: Model, device: str = "cpu", precision: torch.dtype | None = None) -> None:
        arrays = model.arrays
        self._architecture = a = _architecture(model)
        self._device = torch.device(device)
        self._synthesis_type = precision or torch.float32
        self._analysis_type = precision or _fast_type(self._device)
        self._analysis = _transform(Analysis, a, arrays, "analysis.", self._device).to(self._analysis_type)
        self._synthesis = _transform(Synthesis, a, arrays, "synthesis.", self._device).to(self._synthesis_type)
        self._context = IntegerContext(a, arrays, self._device)
        self._level = fetch(arrays, "quality.level", "int16", QUALITY_LEVELS)
        if not 0 <= self._level.min() <= self._level.max() <= LEVEL_MAX:
            raise ModelError(f"model: quality.level must be 0..{LEVEL_MAX}")
        self._gain = self._float(arrays, "gain.analysis", QUALITY_LEVELS, a.latents)
        self._inverse_gain = self._float(arrays, "gain.synthesis", QUALITY_LEVELS, a.latents)
        self._threshold = self._float(arrays, "encoder.threshold", SCALE_LEVELS)
        self.book = _tables(arrays)

    def _float(self, arrays: Mapping[str, NDArray], name: str, *shape: int) -> Tensor:
        return torch.from_numpy(fetch(arrays, name, "float32", *shape).copy()).to(self._device)

    def encode(self, images: Sequence[Pixels], qualities: Sequence[int]) -> list[bytes]:
        """Images (H, W, 3) or (H, W) uint8 of one grid, quality 1..100 of each -> one payload each."""
        if not images:
            return []
        residuals, tables = self.encode_symbols(images, qualities)
        h, w = grid(*images[0].shape[:2])
        return encode(residuals, tables, _symbol_lanes((h, w), self._architecture.groups), self.book)

    def encode_symbols(
        self, images: Sequence[Pixels], qualities: Sequence[int]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """What `encode` writes, before entropy coding: residuals and table indices (N, T), in coding order."""
        sizes = [(i.shape[0], i.shape[1], i.ndim == 2) for i in images]
        h, w = self._common_grid([s[:2] for s in sizes])
        x = _to_blocks(images, h, w).to(self._device).float().mul_(1 / 255).sub_(0.5).to(self._analysis_type)
        tables: list[NDArray[np.uint8]] = []
        residuals: list[NDArray[np.int32]] = []
        with exact_products(self._device):
            spatial, level, quality = self._features(sizes, qualities)
            features = ((f / ONE).to(self._analysis_type) for f in (spatial, level))
            y = self._analysis(x, *features).float()
            # clamped to what the coder can represent: no picture comes near it, and NaN must not reach the integers
            y = torch.nan_to_num(y * self._gain[quality][:, None, None] * SIXTEENTHS).clamp_(-1e5, 1e5)

            def code(k: int, channels: slice, mu: Tensor, index: Tensor) -> Tensor:
                i, j = PARITIES[k]
                r = self._quantise(y[:, i::2, j::2, channels], mu, index)
                tables.append(index.flatten(1).to(torch.uint8).cpu().numpy())
                residuals.append(r.flatten(1).to(torch.int32).cpu().numpy())
                return r

            self._context.traverse(spatial, level, quality, (h, w), code)
        return np.concatenate(residuals, 1), np.concatenate(tables, 1)

    def decode(self, items: Sequence[LatentItem]) -> list[Pixels]:
        """Items of one grid -> their pixels; DamagedRow where a payload is not what this model wrote."""
        pixels, damage = self.decode_checked(items)
        if damage:
            index, reason = next(iter(sorted(damage.items())))
            raise DamagedRow(f"image {index} of the batch: {reason}")
        return pixels

    def decode_checked(self, items: Sequence[LatentItem]) -> tuple[list[Pixels], dict[int, str]]:
        """As `decode`, but names the damaged images (index -> reason) and still returns the others."""
        if not items:
            return [], {}
        y_hat, damage = self.decode_symbols(items)
        sizes = [(i.height, i.width, i.grey) for i in items]
        with exact_products(self._device):
            spatial, level, quality = self._features(sizes, [i.quality for i in items])
            y = y_hat * (self._inverse_gain[quality][:, None, None] / SIXTEENTHS)
            inputs = ((v).to(self._synthesis_type) for v in (y, spatial / ONE, level / ONE))
            blocks = self._synthesis(*inputs).float()
        colour = _to_pixels(blocks) if not all(i.grey for i in items) else None
        grey = _to_grey_pixels(blocks) if any(i.grey for i in items) else None
        out = []
        for n, item in enumerate(items):
            source = grey if item.grey else colour
            assert source is not None
            out.append(np.ascontiguousarray(source[n, : item.height, : item.width]))
        return out, damage

    def decode_symbols(self, items: Sequence[LatentItem]) -> tuple[Tensor, dict[int, str]]:
        """Items of one grid -> y_hat in sixteenths (N, h, w, M), the same on every machine, and the damage by image
        index.
        """
        sizes = [(i.height, i.width, i.grey) for i in items]
        h, w = self._common_grid([s[:2] for s in sizes])
        lanes = lane_count(h * w)
        decoder = Decoder([i.payload for i in items], lanes, self.book)
        with exact_products(self._device):
            spatial, level, quality = self._features(sizes, [i.quality for i in items])

            def code(k: int, channels: slice, mu: Tensor, index: Tensor) -> Tensor:
                flat = index.flatten(1).to(torch.uint8).cpu().numpy()
                positions = mu.shape[1] * mu.shape[2]
                r = decoder.pop(flat, _step_lanes(positions, channels.stop - channels.start, lanes))
                return torch.from_numpy(r).to(self._device, torch.float32).view_as(mu)

            y_hat = self._context.traverse(spatial, level, quality, (h, w), code)
        return y_hat, decoder.finish()

    def _quantise(self, y: Tensor, mu: Tensor, index: Tensor) -> Tensor:
        """Residuals that trade a little error for fewer bits: magnitudes round up only above 1/2 + threshold."""
        distance = (y - mu) * (1 / SIXTEENTHS)
        magnitude = distance.abs()
        threshold = self._threshold[index.long()]
        up = torch.where(magnitude < 1.5, threshold, 0.4 * threshold)
        rounded = (magnitude + 0.5 - up).floor_().clamp_(0, RESIDUAL_LIMIT) * distance.sign()
        return rounded * (index > 0)

    def level_of(self, quality: int) -> int:
        """Level of a quality 1..100 (see `features.py`)."""
        return int(self._level[quality - 1])

    def _features(
        self, sizes: Sequence[tuple[int, int, bool]], qualities: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Integer features in float32 containers: spatial (N or 1, h, w, F), level (N, F), quality index (N,)."""
        if any(not 1 <= q <= QUALITY_LEVELS for q in qualities):
            raise DamagedRow(f"quality must be 1..{QUALITY_LEVELS}, found {sorted(set(qualities))}")
        distinct = sorted(set(sizes))
        maps = {size: torch.from_numpy(spatial_features(*size)).float() for size in distinct}
        spatial = torch.stack([maps[s] for s in (sizes if len(distinct) > 1 else distinct)])
        quality = torch.tensor([q - 1 for q in qualities])
        level = torch.from_numpy(level_features(self._level[quality.numpy()])).float()
        return spatial.to(self._device), level.to(self._device), quality.to(self._device)

    @staticmethod
    def _common_grid(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        if any(not 1 <= side <= MAX_SIDE for size in sizes for side in size):
            raise DamagedRow(f"height and width must be 1..{MAX_SIDE}, found {max(sizes)}")
        grids = {grid(*size) for size in sizes}
        if len(grids) != 1:
            raise ValueError(f"a batch needs images of one grid, found {sorted(grids)}")
        return next(iter(grids))


def _step_lanes(positions: int, group: int, lanes: int) -> NDArray[np.int64]:
    """Lane of each symbol of a step: its position's number inside the step, modulo the number of lanes."""
    return np.repeat(np.arange(positions) % lanes, group)


def _symbol_lanes(size: tuple[int, int], groups: Sequence[int]) -> NDArray[np.int64]:
    """Lane of every symbol of an image with this grid, in coding order."""
    h, w = size
    lanes = lane_count(h * w)
    counts = [len(range(i, h, 2)) * len(range(j, w, 2)) for i, j in PARITIES]
    return np.concatenate([_step_lanes(count, group, lanes) for count in counts for group in groups])


def _to_blocks(images: Sequence[Pixels], h: int, w: int) -> Tensor:
    """Images (H, W, 3) or (H, W) uint8 -> (N, h, w, 192) uint8, edges repeated, in `network.unshuffle` order."""
    whole = np.empty((len(images), h * PATCH, w * PATCH, 3), np.uint8)
    for out, image in zip(whole, images, strict=True):
        height, width = image.shape[:2]
        out[:height, :width] = image if image.ndim == 3 else image[..., None]
        out[height:, :width] = out[height - 1, :width]
        out[:, width:] = out[:, width - 1 : width]
    blocks = torch.from_numpy(whole).view(-1, h, PATCH, w, PATCH, 3)
    return blocks.permute(0, 1, 3, 5, 2, 4).reshape(-1, h, w, 3 * PATCH * PATCH)


def _to_pixels(blocks: Tensor) -> NDArray[np.uint8]:
    """(N, h, w, 192) around -0.5..0.5 -> (N, 8h, 8w, 3) uint8."""
    levels = torch.nan_to_num(blocks).mul_(255).add_(127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()
    n, h, w, _ = levels.shape
    parts = levels.view(n, h, w, 3, PATCH, PATCH).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, h * PATCH, w * PATCH, 3).numpy()


def _to_grey_pixels(blocks: Tensor) -> NDArray[np.uint8]:
    """(N, h, w, 192) around -0.5..0.5 -> (N, 8h, 8w) uint8, the mean of the three colours."""
    n, h, w, _ = blocks.shape
    grey = blocks.view(n, h, w, 3, PATCH * PATCH).mean(3, keepdim=True).expand(n, h, w, 3, PATCH * PATCH)
    return _to_pixels(grey.reshape(n, h, w, -1))[..., 0]


def _architecture(model: Model) -> LatentArchitecture:
    card: Any = model.card.get("architecture")
    try:
        return LatentArchitecture.from_dict(card)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"model {model.name!r}: architecture {card!r} is not understood: {error}") from error


def _fast_type(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on processors with bfloat16 dot products, else float32."""
    if device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.bfloat16
    return torch.float32


Transform = TypeVar("Transform", Analysis, Synthesis)


def _transform(
    kind: type[Transform], a: LatentArchitecture, arrays: Mapping[str, NDArray], prefix: str, device: torch.device
) -> Transform:
    # before networks of these sizes take any memory, the file must have arrays of them
    for block in range(a.blocks if kind is Analysis else a.synthesis_blocks):
        fetch(arrays, f"{prefix}blocks.{block}.expand.weight", "float32", 2 * a.width, a.width)
    fetch(arrays, f"{prefix}first.bias", "float32", a.width)
    module = kind(a)
    state = {
        name: torch.from_numpy(fetch(arrays, prefix + name, "float32", *value.shape).copy())
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.to(device).eval().requires_grad_(False)


def _tables(arrays: Mapping[str, NDArray]) -> Tables:
    radius = fetch(arrays, "entropy.radius", "int16", SCALE_LEVELS).astype(np.int64)
    sizes = 2 * radius[1:] + 2
    if (radius < 0).any():
        raise ModelError("model: entropy.radius must not be negative")
    flat = fetch(arrays, "entropy.frequencies", "uint16", int(sizes.sum())).astype(np.int64)
    try:
        return Tables.from_frequencies(np.split(flat, np.cumsum(sizes)[:-1]))
    except ValueError as error:
        raise ModelError(f"model: {error}") from error
