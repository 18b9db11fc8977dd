"""The synthesis in integers: decoded latents -> pixels, the same on every machine.

    y_hat -> 16 bits -> first (four 8-bit products) -> stream of 16 bits
    stream -> depthwise 3x3 -> 8 bits -> expand -> gate -> 8 bits -> project -> added to the stream    (each block)
    stream -> last (four 8-bit products) -> sixteenths of a level -> 0..255

The first and last layers carry the picture itself, so that their inputs and weights have two 8-bit halves; what the
blocks add to it is smaller, and 8 bits are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.int8 import INPUT_TOP, Multiplier, Weight
from zippy_batch.codecs.integer import Arrays, fetch, fetch_within
from zippy_batch.codecs.latent.backend import Array, Backend, Scale, put_scale
from zippy_batch.codecs.latent.context import QUALITY_LEVELS
from zippy_batch.codecs.latent.features import EVERYTHING, PATCH
from zippy_batch.codecs.latent.network import GATE_LIMIT, LatentArchitecture
from zippy_batch.codecs.latent.static import CACHED_POSITIONS, IntegerStatic, Size
from zippy_batch.errors import ModelError

STREAM_BITS = 11
"""The stream is in units of 2^-11."""
STREAM_TOP = 32639
"""Largest magnitude of the stream and of the input: both halves fit 8 bits."""
GATE_BITS = 8
GATE_TOP = int(GATE_LIMIT) << GATE_BITS
PIXEL_BITS = 4
EDGE_MANTISSA_TOP = (1 << 25) - 1
"""Sums of four products stay below 2^36."""
_ROWS = 1 << 10
"""Rows at a time: products of so many stay in the cache, and a large image takes no more memory for them."""
_OUTPUTS = 3 * PATCH * PATCH


def _halves(arrays: Arrays, name: str, outputs: int, inputs: int, backend: Backend) -> Weight:
    """A matrix (outputs, inputs) of 128 * high + low as one of twice the outputs: the high halves, then the low ones.

    Raises ModelError where a sum of its four products could reach 2^36.
    """
    weight = Weight.load(arrays, name, 2 * outputs, inputs, backend.device)
    high, low = np.split(weight.largest_sums() // INPUT_TOP, 2)
    if int((128 * high + low).max()) > 1 << 21:
        raise ModelError(f"layer {name} is not exact: the magnitudes of a row must add up to at most 2^21")
    return weight


class _Block:
    def __init__(self, arrays: Arrays, name: str, width: int, backend: Backend) -> None:
        def layer(part: str, outputs: int) -> tuple[Any, Array, Scale]:
            bias = fetch_within(arrays, f"{name}.{part}.bias", "int32", (1 << 30) - 1, outputs)
            scale = Multiplier.load(arrays, f"{name}.{part}.scale", outputs)
            weight = None
            if part != "depthwise":
                weight = Weight.load(arrays, f"{name}.{part}.weight", outputs, width, backend.device)
            return weight, backend.put(bias), put_scale(backend, scale)

        _, *self.mixed = layer("depthwise", width)
        self.expand, *self.expanded = layer("expand", 2 * width)
        self.project, *self.projected = layer("project", width)
        gate = Multiplier.load(arrays, f"{name}.gate.scale", width)
        self.gate = put_scale(backend, gate)
        taps = fetch(arrays, f"{name}.depthwise.taps", "int16", 9, width)
        if np.abs(taps.astype(np.int64)).sum(0).max() > 1 << 14:
            raise ModelError(f"model: the magnitudes of {name}.depthwise.taps must add up to at most 2^14 per channel")
        self.taps = backend.put(taps)


class IntegerSynthesis:
    """The integer synthesis of one model file, on one device. Raises ModelError for a model that is not exact."""

    def __init__(self, a: LatentArchitecture, arrays: Arrays, backend: Backend) -> None:
        self._a, self._backend = a, backend
        self._to_input = Multiplier.load(arrays, "level.to_synthesis", QUALITY_LEVELS, a.latents)
        self._first = _halves(arrays, "synthesis.first.weight", a.width, a.latents, backend)
        first = Multiplier.load(arrays, "synthesis.first.scale", a.width, most=EDGE_MANTISSA_TOP)
        self._first_scale = put_scale(backend, first)
        self._level = IntegerStatic(arrays, "synthesis.static", a.width)
        self._levels = self._level.levels(fetch(arrays, "quality.level", "int16", QUALITY_LEVELS))
        self._blocks = [_Block(arrays, f"synthesis.{b}", a.width, backend) for b in range(a.synthesis_blocks)]
        self._last = _halves(arrays, "synthesis.last.weight", _OUTPUTS, a.width, backend)
        last = Multiplier.load(arrays, "synthesis.last.scale", _OUTPUTS, most=EDGE_MANTISSA_TOP)
        bias = fetch_within(arrays, "synthesis.last.bias", "int64", (1 << 36) - 1, _OUTPUTS)
        self._last_bias, self._last_scale = backend.put(bias), put_scale(backend, last)
        self._static = lru_cache(maxsize=8)(self._static_of)

    def _static_of(self, sizes: tuple[Size, ...]) -> Array:
        return self._backend.put(np.stack([self._level.spatial(size, EVERYTHING, EVERYTHING) for size in sizes]))

    def stream(self, y_hat: Array, sizes: Sequence[Size], quality: NDArray[np.int64]) -> Array:
        """y_hat (N, h, w, M) int32 in sixteenths, sizes of each image or one for all, quality (N,) 0..99
        -> (N, h, w, C) int16, what `pixels` makes images of.
        """
        n, h, w, _ = y_hat.shape
        x = self._begin(y_hat, tuple(sizes), quality).reshape(n, h, w, self._a.width)
        for block in self._blocks:
            self._add_block(block, x)
        return x

    def _begin(self, y_hat: Array, sizes: tuple[Size, ...], quality: NDArray[np.int64]) -> Array:
        """The stream (R, C) int16 before the first block."""
        backend, passes = self._backend, self._backend.passes
        n, h, w, m = y_hat.shape
        rows = n * h * w
        high, low = backend.empty("int8", rows, m), backend.empty("int8", rows, m)
        mantissa = backend.put(self._to_input.mantissa[quality])
        passes.split_latents(y_hat.reshape(n, h * w, m), (mantissa, self._to_input.shift), STREAM_TOP, high, low)
        x = backend.empty("int16", rows, self._a.width)
        level = self._levels[quality]
        if h * w <= CACHED_POSITIONS:
            static, level = self._static(sizes), backend.put(level)
            for some in _chunks(rows):
                sums = [backend.product(half[some], self._first) for half in (high, low)]
                passes.begin_stream(*sums, some.start, self._first_scale, static, level, STREAM_TOP, x[some])
            return x
        for i in range(n):
            size = sizes[i if len(sizes) > 1 else 0]
            for row in range(h):
                start = (i * h + row) * w
                some = slice(start, start + w)
                sums = [backend.product(half[some], self._first) for half in (high, low)]
                static = backend.put(self._level.spatial(size, slice(row, row + 1), EVERYTHING)[None])
                of_image = backend.put(level[i : i + 1])
                passes.begin_stream(*sums, 0, self._first_scale, static, of_image, STREAM_TOP, x[some])
        return x

    def _add_block(self, block: _Block, x: Array) -> None:
        backend, passes = self._backend, self._backend.passes
        mixed = backend.empty("int8", *x.shape)
        passes.depthwise(x, block.taps, *block.mixed, mixed)
        stream, mixed = x.reshape(-1, x.shape[-1]), mixed.reshape(-1, x.shape[-1])
        for some in _chunks(len(stream)):
            gated = backend.empty("int8", *mixed[some].shape)
            passes.gate(backend.product(mixed[some], block.expand), *block.expanded, GATE_TOP, block.gate, gated)
            passes.add_to_stream(backend.product(gated, block.project), *block.projected, STREAM_TOP, stream[some])

    def pixels(self, x: Array, grey: bool) -> NDArray[np.uint8]:
        """x (N, h, w, C) int16 -> (N, 8h, 8w, 3) uint8, or for grey images (N, 8h, 8w), the mean of the colours."""
        backend, passes = self._backend, self._backend.passes
        n, h, w, width = x.shape
        stream = x.reshape(-1, width)
        shape = (n, h * PATCH, w * PATCH)
        out = backend.empty("uint8", *shape) if grey else backend.empty("uint8", *shape, 3)
        settle = passes.to_grey if grey else passes.to_colour
        for some in _chunks(len(stream)):
            high, low = backend.empty("int8", *stream[some].shape), backend.empty("int8", *stream[some].shape)
            passes.split_stream(stream[some], STREAM_TOP, high, low)
            sums = [backend.product(half, self._last) for half in (high, low)]
            settle(*sums, some.start, self._last_bias, self._last_scale, (h, w), out)
        return backend.get(out)


def _chunks(rows: int) -> list[slice]:
    return [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
