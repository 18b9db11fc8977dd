"""The context model in integers: what the entropy coder's tables are chosen by, the same on every machine.

Latents are coded visit by visit (`order.py`), and inside each visit group of channels by group of channels:

    static, coded neighbours -> shared --+--> first -> hidden -> second -> out -> mean, scale per channel
    own earlier groups       -> own    --+
                                         (of neighbours and own groups the values, and their companded magnitudes)
    mean  -> mu in sixteenths of a quantisation step
    scale -> table index 0..63 (0: the residual is certainly 0)
    y_hat = mu + 16 * residual, in sixteenths;   and in 8 bits, what later steps see

Products are of 8-bit integers (`int8.py`), all else is integer arithmetic (`passes.py`). The tensors come from a
model file, and their exactness is proved whenever one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.int8 import Multiplier, Weight
from zippy_batch.codecs.integer import Arrays, fetch, fetch_within
from zippy_batch.codecs.latent.backend import Array, Backend, put_scale
from zippy_batch.codecs.latent.features import LEVEL_MAX
from zippy_batch.codecs.latent.network import SCALE_LEVELS, LatentArchitecture
from zippy_batch.codecs.latent.order import DEPTHS, FAR, NEAR, VISIT_KINDS, Visit, parity_of, visits
from zippy_batch.codecs.latent.static import CACHED_POSITIONS, IntegerStatic, Size
from zippy_batch.errors import ModelError

SIXTEENTHS = 16
QUALITY_LEVELS = 100
SHARED_BITS = 14
"""Sums before the first rectifier are in units of 2^-14."""
LATENT_MEAN_BITS = 18
"""Means are in units of 2^-18 deviations, before they are brought to sixteenths of a step."""
LATENT_SCALE_BITS = 4
"""Scales are in sixteenths of a table index."""
MEAN_TOP = (1 << 23) - 1
VALUE_TOP = (1 << 19) - 1
"""Largest mean in sixteenths of a step."""
_SUMMAND_TOP = 1 << 28
"""Largest magnitude of each summand before the first rectifier: the six of them add up within 32 bits."""

CodeStep = Callable[["Place", int, Array, Array], Array]
"""(place, first channel, mean (R, G) in sixteenths, table index (R, G)) -> residuals (R, G) int32."""


@dataclass(frozen=True)
class Place:
    """Where a visit's positions lie, as the passes take it."""

    row: int
    column: int
    stride: int
    spacing: int
    rows: int
    columns: int

    @staticmethod
    def of(visit: Visit, grid: tuple[int, int]) -> Place:
        return Place(visit.row, visit.column, visit.stride, visit.spacing, *visit.shape(grid))

    def numbers(self) -> tuple[int, int, int, int, int, int]:
        return self.row, self.column, self.stride, self.spacing, self.rows, self.columns

    @property
    def positions(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Levels:
    """Tables of a batch's qualities, one row per image."""

    to_sixteenths: Array
    """(N, M) mantissas: from the unit of means to sixteenths of a step."""
    to_canvas: Array
    """(N, M) mantissas: from sixteenths to what later steps see."""
    scale_offset: Array
    """(N, M) what the gain adds to a scale, in sixteenths."""
    quality: NDArray[np.int64]
    """(N,) 0..99"""


class _Layer:
    """Weight, bias (which takes in that rectified inputs are stored less 128), and multiplier of the sums."""

    def __init__(self, arrays: Arrays, name: str, shape: tuple[int, int], backend: Backend) -> None:
        self.weight = Weight.load(arrays, f"{name}.weight", *shape, backend.device)
        bias = fetch(arrays, f"{name}.bias", "int32", shape[0]).astype(np.int64) + 128 * self.weight.sums()
        if np.abs(bias).max() >= 1 << 30:
            raise ModelError(f"model: the bias of {name} must be within +-2^30")
        scale = Multiplier.load(arrays, f"{name}.scale", shape[0])
        self.bias, self.scale = backend.put(bias.astype(np.int32)), put_scale(backend, scale)


def _prove_summand(name: str, weight: Weight | None, scale: Multiplier) -> None:
    """ModelError where scaled sums could leave the range of a summand of the first rectifier's input."""
    if weight is not None and (largest := int(scale.apply(weight.largest_sums()).max())) > _SUMMAND_TOP:
        raise ModelError(f"layer {name} is not exact: scaled sums must be within +-{_SUMMAND_TOP}, may be {largest}")


class _Step:
    """One group at one kind of positions."""

    def __init__(self, arrays: Arrays, name: str, a: LatentArchitecture, group: int, backend: Backend) -> None:
        width, start, size = a.context_width, a.starts[group], a.groups[group]
        self.channels = slice(start, start + size)
        self.own = Weight.load(arrays, f"{name}.own.weight", width, 2 * start, backend.device) if start else None
        own = Multiplier.load(arrays, f"{name}.own.scale", width)
        _prove_summand(f"{name}.own", self.own, own)
        first = Multiplier.load(arrays, f"{name}.first.scale", width)
        self.bias = backend.put(fetch_within(arrays, f"{name}.first.bias", "int32", _SUMMAND_TOP, width))
        self.own_scale, self.first_scale = put_scale(backend, own), put_scale(backend, first)
        self.hidden = _Layer(arrays, f"{name}.hidden", (width, width), backend)
        self.out = _Layer(arrays, f"{name}.out", (2 * size, width), backend)


class _Kind:
    """All layers of one kind of positions."""

    def __init__(self, arrays: Arrays, kind: str, a: LatentArchitecture, level: NDArray[Any], backend: Backend) -> None:
        name = f"context.{kind}"
        self.parity = parity_of(kind)
        width = a.context_width
        self.static = IntegerStatic(arrays, f"{name}.static", width)
        self.levels = self.static.levels(level)
        depths = DEPTHS if kind.startswith("coarse") else 0
        self.depths = fetch_within(arrays, f"{name}.depth", "int32", _SUMMAND_TOP, depths, width)
        scale = Multiplier.load(arrays, f"{name}.shared.scale", width)
        self.scale = put_scale(backend, scale)
        self.inputs = (len(NEAR[self.parity]) + 1) * a.latents + len(FAR[self.parity]) * a.far_latents
        self.weight = None
        if self.parity:
            self.weight = Weight.load(arrays, f"{name}.shared.weight", width, self.inputs, backend.device)
            _prove_summand(f"{name}.shared", self.weight, scale)
            self.near, self.far = (backend.put(np.array(o[self.parity], np.int64)) for o in (NEAR, FAR))
        self.steps = [_Step(arrays, f"{name}.{g}", a, g, backend) for g in range(len(a.groups))]


class IntegerContext:
    """The integer context model of one model file, on one device. Raises ModelError for a model that is not exact."""

    def __init__(self, a: LatentArchitecture, arrays: Arrays, backend: Backend) -> None:
        self._a, self._backend = a, backend
        level = fetch(arrays, "quality.level", "int16", QUALITY_LEVELS)
        if not 0 <= level.min() <= level.max() <= LEVEL_MAX:
            raise ModelError(f"model: quality.level must be 0..{LEVEL_MAX}")
        self._kinds = {kind: _Kind(arrays, kind, a, level, backend) for kind in VISIT_KINDS}
        self._to_sixteenths = Multiplier.load(arrays, "level.to_sixteenths", QUALITY_LEVELS, a.latents)
        self._to_canvas = Multiplier.load(arrays, "level.to_canvas", QUALITY_LEVELS, a.latents)
        self._scale_offset = fetch(arrays, "level.scale_offset", "int16", QUALITY_LEVELS, a.latents).astype(np.int32)
        self._nothing = backend.no_sums(a.context_width)
        self._static = lru_cache(maxsize=32)(self._static_of)

    def _static_of(self, sizes: tuple[Size, ...], visit: Visit) -> Array:
        """(sizes, P, C) static part of a visit, of each image size."""
        layer = self._kinds[visit.kind].static
        return self._backend.put(np.stack([layer.spatial(size, visit.rows, visit.columns) for size in sizes]))

    def levels(self, quality: NDArray[np.int64]) -> Levels:
        """quality (N,) 0..99."""
        put = self._backend.put
        tables = (self._to_sixteenths.mantissa, self._to_canvas.mantissa, self._scale_offset)
        to_sixteenths, to_canvas, scale_offset = (put(t[quality]) for t in tables)
        return Levels(to_sixteenths, to_canvas, scale_offset, quality)

    def traverse(
        self, sizes: Sequence[Size], quality: NDArray[np.int64], grid: tuple[int, int], code: CodeStep
    ) -> Array:
        """Visit all steps in coding order; `code` turns each step's prediction into residuals.

        sizes: of each image, or one for all; quality (N,) 0..99. Returns y_hat (N, h, w, M) int32 in sixteenths.
        """
        backend, n, (h, w), m = self._backend, len(quality), grid, self._a.latents
        canvas, seen_sizes = backend.zeros("int8", n, h, w, m), backend.zeros("int8", n, h, w, m)
        y_hat = backend.empty("int32", n, h, w, m)
        levels = self.levels(quality)
        for visit in visits(grid):
            place = Place.of(visit, grid)
            kind = self._kinds[visit.kind]
            shared = self._shared(kind, visit, place, (canvas, seen_sizes), tuple(sizes), levels)
            own = backend.empty("int8", n * place.positions, 2 * m)
            for step in kind.steps:
                mean, index = self._predict(step, shared, own, levels)
                residual = code(place, step.channels.start, mean, index)
                backend.passes.absorb(
                    mean, residual, place.numbers(), step.channels.start,
                    (levels.to_canvas[:, step.channels], self._to_canvas.shift),
                    y_hat, canvas, seen_sizes, own,
                )  # fmt: skip
        return y_hat

    def _shared(
        self,
        kind: _Kind,
        visit: Visit,
        place: Place,
        coded: tuple[Array, Array],
        sizes: tuple[Size, ...],
        levels: Levels,
    ) -> Array:
        """(R, C) int32: what all groups of a visit share."""
        backend, rows = self._backend, len(levels.quality) * place.positions
        level = kind.levels[levels.quality]
        if visit.depth is not None:
            level = level + kind.depths[visit.depth]
        sums = self._nothing
        if kind.weight is not None:
            seen = backend.empty("int8", rows, kind.inputs)
            backend.passes.gather(*coded, place.numbers(), kind.near, kind.far, self._a.far_latents, seen)
            sums = backend.product(seen, kind.weight)
        small = place.positions <= CACHED_POSITIONS
        static = (self._static if small else self._static_of)(sizes, visit)
        out = backend.empty("int32", rows, self._a.context_width)
        backend.passes.share(sums, kind.scale, static, backend.put(level), out)
        return out

    def _predict(self, step: _Step, shared: Array, own: Array, levels: Levels) -> tuple[Array, Array]:
        """Mean (R, G) int32 in sixteenths and table index (R, G) uint8 of a group."""
        backend, passes = self._backend, self._backend.passes
        rows, size = len(shared), step.channels.stop - step.channels.start
        sums = self._nothing if step.own is None else backend.product(own[:, : 2 * step.channels.start], step.own)
        a = backend.empty("int8", *shared.shape)
        passes.rectify(shared, step.bias, sums, step.own_scale, step.first_scale, a)
        hidden, out = step.hidden, step.out
        b = backend.empty("int8", *shared.shape)
        passes.rectify_sums(backend.product(a, hidden.weight), hidden.bias, hidden.scale, b)
        mean, index = backend.empty("int32", rows, size), backend.empty("uint8", rows, size)
        passes.predict(
            backend.product(b, out.weight), out.bias, out.scale,
            (levels.to_sixteenths[:, step.channels], self._to_sixteenths.shift), levels.scale_offset[:, step.channels],
            (MEAN_TOP, VALUE_TOP, SCALE_LEVELS - 1), mean, index,
        )  # fmt: skip
        return mean, index
