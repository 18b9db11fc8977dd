"""Batches of pixels <-> payloads with the lossy codec.

    pixels -> analysis (float) -> y -> integer context + rANS -> payload
    payload -> rANS + integer context -> y_hat (integers) -> integer synthesis -> pixels

Floats stand only where they cannot change what is decoded: in the analysis, before rounding. A payload decodes to the
same pixels on every machine. A batch holds images with the same grid of 8x8 blocks; their pixel sizes, quality and
greyness may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.codecs.int8 import ProductKind
from zippy_batch.codecs.integer import exact_products, fast_type, fetch
from zippy_batch.codecs.latent.backend import Array, backend_of
from zippy_batch.codecs.latent.context import QUALITY_LEVELS, SIXTEENTHS, IntegerContext, Place
from zippy_batch.codecs.latent.features import ONE, PATCH, grid_size, level_features, spatial_features
from zippy_batch.codecs.latent.network import SCALE_LEVELS, Analysis, LatentArchitecture, LatentNetwork
from zippy_batch.codecs.latent.order import visits
from zippy_batch.codecs.latent.static import Size
from zippy_batch.codecs.latent.synthesis import IntegerSynthesis
from zippy_batch.codecs.model_file import Model
from zippy_batch.codecs.rans import RESIDUAL_LIMIT, Decoder, Tables, encode, lane_count
from zippy_batch.errors import DamagedRow, ModelError

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB, or (H, W) grey."""

_FARTHEST = 1e5
"""Largest latent, in sixteenths of a step, that the encoder takes: no picture comes near it."""
_NO_PIXELS: Pixels = np.empty((0, 0), np.uint8)
_BAND_POSITIONS = 1 << 14
"""Positions that the analysis takes at a time, which bounds its memory."""


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

    What was written decodes to the same pixels on every device, at any batch size, thread count and `precision`, which
    is that of the analysis: by default bfloat16 where the device is fast at it. `products` names the arithmetic of the
    integer networks, which changes no result; by default the faster one. With more `effort`, 0..9, `encode` takes
    longer and finds smaller payloads (`refine.py`). Raises ModelError for a model that is not whole or not exact.
    """

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        precision: torch.dtype | None = None,
        products: ProductKind | None = None,
        effort: int = 0,
    ) -> None:
        arrays = model.arrays
        self._architecture = a = _architecture(model)
        self._device, self._effort = torch.device(device), effort
        self._backend = backend_of(self._device, products)
        self._type = precision or fast_type(self._device)
        self._analysis = _analysis(a, arrays, self._device).to(self._type)
        self._context = IntegerContext(a, arrays, self._backend)
        self._synthesis = IntegerSynthesis(a, arrays, self._backend)
        self._level = fetch(arrays, "quality.level", "int16", QUALITY_LEVELS)
        gain = fetch(arrays, "gain.analysis", "float32", QUALITY_LEVELS, a.latents)
        threshold = fetch(arrays, "encoder.threshold", "float32", SCALE_LEVELS)
        if not (np.isfinite(gain).all() and np.isfinite(threshold).all()):
            raise ModelError("model: gain.analysis and encoder.threshold must be finite")
        self._gain = torch.from_numpy(gain.copy()).to(self._device)
        self._threshold = self._backend.put(threshold)
        self._nearest = self._backend.put(np.zeros_like(threshold))
        self.tables = _tables(arrays)
        self._float_network = _float_network(a, arrays).to(self._device) if effort else None

    def encode(self, images: Sequence[Pixels], qualities: Sequence[int]) -> list[bytes]:
        """Images (H, W, 3) or (H, W) uint8 of one grid, quality 1..100 of each -> one payload each."""
        if not images:
            return []
        residuals, tables = self.encode_symbols(images, qualities)
        h, w = grid(*images[0].shape[:2])
        return encode(residuals, tables, _symbol_lanes((h, w), self._architecture.groups), self.tables)

    def encode_symbols(
        self, images: Sequence[Pixels], qualities: Sequence[int]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """What `encode` writes, before entropy coding: residuals and table indices (N, T), in coding order."""
        tables: list[NDArray[np.uint8]] = []
        residuals: list[NDArray[np.int32]] = []
        sizes = [(i.shape[0], i.shape[1], i.ndim == 2) for i in images]
        h, w = self._common_grid([s[:2] for s in sizes])
        quality = _quality_indices(qualities)
        backend, count = self._backend, len(images)
        with exact_products(self._device):
            y, threshold = self._latents(images, sizes, quality)

            def code(place: Place, start: int, mean: Array, index: Array) -> Array:
                r = backend.empty("int32", *mean.shape)
                backend.passes.quantise(y, place.numbers(), start, mean, index, threshold, RESIDUAL_LIMIT, r)
                tables.append(backend.get(index).reshape(count, -1))
                residuals.append(backend.get(r).reshape(count, -1))
                return r

            self._context.traverse(_sizes(sizes), quality, (h, w), code)
        return np.concatenate(residuals, 1), np.concatenate(tables, 1)

    def _latents(
        self, images: Sequence[Pixels], sizes: Sequence[Size], quality: NDArray[np.int64]
    ) -> tuple[Array, Array]:
        """(N, h, w, M) float32 in sixteenths of a step, and the thresholds to round them with."""
        from zippy_batch.codecs.latent.refine import can_refine, refined

        blocks = _to_blocks(images, *grid(*images[0].shape[:2]))
        y = self._analysed(blocks, sizes, quality)
        threshold = self._threshold
        if self._float_network is not None and can_refine((y.shape[1], y.shape[2])):
            # what is refined has its bits weighed against its error already
            threshold = self._nearest
            y = refined(self._float_network, y, blocks, sizes, self._level[quality], self._effort)
        # NaN must not reach the integers
        return self._backend.from_tensor(torch.nan_to_num(y * SIXTEENTHS).clamp_(-_FARTHEST, _FARTHEST)), threshold

    def _analysed(self, blocks: Tensor, sizes: Sequence[Size], quality: NDArray[np.int64]) -> Tensor:
        """(N, h, w, M) float32 in steps."""
        count, h, w, _ = blocks.shape
        y = torch.empty(count, h, w, self._architecture.latents, device=self._device)
        # whole images as far as they go: rows around a band of rows are analysed for nothing
        together = max(1, _BAND_POSITIONS // (h * w))
        for first in range(0, count, together):
            some = slice(first, first + together)
            self._analyse_bands(blocks[some], sizes[some], quality[some], y[some])
        return y

    def _analyse_bands(self, blocks: Tensor, sizes: Sequence[Size], quality: NDArray[np.int64], y: Tensor) -> None:
        """Fill y with what `_analysed` returns, a band of rows after another."""
        count, h, w, _ = blocks.shape
        level = torch.from_numpy(level_features(self._level[quality])).float().div(ONE).to(self._device, self._type)
        gain = self._gain[torch.from_numpy(quality).to(self._device)][:, None, None]
        # a band of rows sees as many rows around it as the blocks of the analysis reach
        reach = self._architecture.blocks
        height = max(1, _BAND_POSITIONS // (count * w))
        for top in range(0, h, height):
            above, below = max(0, top - reach), min(h, top + height + reach)
            x = blocks[:, above:below].to(self._device).float().mul_(1 / 255).sub_(0.5).to(self._type)
            band = [spatial_features(*size, slice(above, below)) for size in _sizes(sizes)]
            spatial = torch.from_numpy(np.stack(band)).float().div(ONE).to(self._device, self._type)
            part = self._analysis(x, spatial, level)[:, top - above : top - above + height].float()
            y[:, top : top + height] = part * gain

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
        sizes = _sizes([(i.height, i.width, i.grey) for i in items])
        with exact_products(self._device):
            stream = self._synthesis.stream(y_hat, sizes, _quality_indices([i.quality for i in items]))
            out: list[Pixels] = [_NO_PIXELS] * len(items)
            for grey in {item.grey for item in items}:
                chosen = [n for n, item in enumerate(items) if item.grey == grey]
                made = self._synthesis.pixels(stream if len(chosen) == len(items) else stream[chosen], grey)
                for n, whole in zip(chosen, made, strict=True):
                    out[n] = np.ascontiguousarray(whole[: items[n].height, : items[n].width])
        return out, damage

    def decode_symbols(self, items: Sequence[LatentItem]) -> tuple[Array, dict[int, str]]:
        """Items of one grid -> y_hat (N, h, w, M) int32 in sixteenths, the same on every machine, and the damage by
        image index.
        """
        sizes = [(i.height, i.width, i.grey) for i in items]
        h, w = self._common_grid([s[:2] for s in sizes])
        lanes = lane_count(h * w)
        decoder = Decoder([i.payload for i in items], lanes, self.tables)
        backend = self._backend

        def code(place: Place, start: int, mean: Array, index: Array) -> Array:
            flat = backend.get(index).reshape(len(items), -1)
            r = decoder.pop(flat, _step_lanes(place.positions, mean.shape[1], lanes))
            return backend.put(r.reshape(mean.shape))

        with exact_products(self._device):
            quality = _quality_indices([i.quality for i in items])
            y_hat = self._context.traverse(_sizes(sizes), quality, (h, w), code)
        return y_hat, decoder.finish()

    def level_of(self, quality: int) -> int:
        """Level of a quality 1..100 (see `features.py`)."""
        return int(self._level[quality - 1])

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
    lanes = lane_count(size[0] * size[1])
    counts = [Place.of(visit, size).positions for visit in visits(size)]
    return np.concatenate([_step_lanes(count, group, lanes) for count in counts for group in groups])


def _sizes(sizes: Sequence[Size]) -> list[Size]:
    """The sizes of a batch, or one where all are alike."""
    return [sizes[0]] if len(set(sizes)) == 1 else list(sizes)


def _quality_indices(qualities: Sequence[int]) -> NDArray[np.int64]:
    if any(not 1 <= q <= QUALITY_LEVELS for q in qualities):
        raise DamagedRow(f"quality must be 1..{QUALITY_LEVELS}, found {sorted(set(qualities))}")
    return np.array(qualities, np.int64) - 1


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


def _architecture(model: Model) -> LatentArchitecture:
    card: Any = model.card.get("architecture")
    try:
        return LatentArchitecture.from_dict(card)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"model {model.name!r}: architecture {card!r} is not understood: {error}") from error


def _analysis(a: LatentArchitecture, arrays: Mapping[str, NDArray], device: torch.device) -> Analysis:
    # before networks of these sizes take any memory, the file must have arrays of them
    for block in range(a.blocks):
        fetch(arrays, f"analysis.blocks.{block}.expand.weight", "float32", 2 * a.width, a.width)
    fetch(arrays, "analysis.first.bias", "float32", a.width)
    module = Analysis(a)
    state = {}
    for name, value in module.state_dict().items():
        array = fetch(arrays, f"analysis.{name}", "float32", *value.shape)
        if not np.isfinite(array).all():
            raise ModelError(f"model: array analysis.{name} must be finite")
        state[name] = torch.from_numpy(array.copy())
    module.load_state_dict(state)
    return module.to(device).eval().requires_grad_(False)


def _float_network(a: LatentArchitecture, arrays: Mapping[str, NDArray]) -> LatentNetwork:
    """What the integer networks compute, with gradients."""
    from zippy_batch.codecs.latent.float_network import fill_network

    network = LatentNetwork(a)
    with torch.no_grad():
        fill_network(network, arrays)
    network.quantise_activations()
    return network.eval().requires_grad_(False)


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
