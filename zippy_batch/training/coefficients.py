"""Photographs -> pools of JPEG coefficients, built once and cached.

Two kinds: the sources' own coefficients, where they are JPEG files that can be rebuilt, in pools by size and sampling;
and thumbnails shrunk from them and saved as JPEG at many qualities, as face data sets are made.

As with `pictures`, what is in a pool depends on the seed and the order of the sources alone.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.codecs.exact.blocks import ROLES, Geometry, geometry
from zippy_batch.jpeg.file import JpegImage, Unrebuildable, parse
from zippy_batch.jpeg.markers import Component, Frame
from zippy_batch.stores.atomic_file import replacing
from zippy_batch.training.pictures import (
    FEWEST,
    PoolSpec,
    Wanted,
    decode,
    in_random_order,
    map_ahead,
    pieces_of,
    read_all,
)
from zippy_batch.training.stamp import key_of, read_stamp, write_stamp

SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": 0}
"""What Pillow calls them."""
MOST = 6000
"""Images of a pool of sources, and of all of rare geometries,"""
COEFFICIENT_POOL_BYTES = 1 << 29
"""of whose coefficients a pool has so many at most,"""
COEFFICIENT_BYTES_IN_ALL = 1 << 30
"""and all pools of sources together: they stay in memory."""
LARGEST_SIDE = 1024
"""Pixels; of larger images a piece is taken, since one is the least that a step of training sees."""
_TOGETHER = 25
"""Sources that a process takes apart before it hands them over."""
_VERSION = 1
"""Raised when the same sources and specs make other pools."""


@dataclass(frozen=True)
class ThumbnailSpec:
    """One pool of images shrunk from the sources."""

    height: int
    width: int
    sampling: str
    """A key of SUBSAMPLING."""
    count: int
    weight: float
    """How often training draws from it."""
    mirror: bool = True
    """Half of the images are turned left to right before they are saved."""

    def clean(self) -> PoolSpec:
        """What the pictures are before they are saved."""
        return PoolSpec(self.height, self.width, self.count, self.weight, jpeg=0.0, mirror=self.mirror)


@dataclass(frozen=True)
class CoefficientSpecs:
    thumbnails: tuple[ThumbnailSpec, ...]
    sources_weight: float
    """Weight of all pools of sources together; each gets a share in proportion to the square root of its size."""


def default_specs() -> CoefficientSpecs:
    """A third of the batches are 42 px thumbnails, a third other sizes from 24 to 128 px, a third sources."""
    sizes = [
        *((24, 24), (32, 32), (40, 36), (48, 40), (48, 48), (56, 50), (50, 61), (64, 64), (64, 48), (72, 72)),
        *((80, 64), (96, 96)),
    ]
    specs = [ThumbnailSpec(42, 42, "4:2:0", 60000, 0.32), ThumbnailSpec(42, 42, "4:4:4", 4000, 0.02)]
    specs += [ThumbnailSpec(42, 42, "grey", 3000, 0.01)]
    specs += [ThumbnailSpec(h, w, "4:2:0", 2500, 0.14 / len(sizes)) for h, w in sizes]
    specs += [ThumbnailSpec(h, w, "4:4:4", 800, 0.04 / len(sizes)) for h, w in sizes]
    specs += [ThumbnailSpec(h, w, "grey", 400, 0.02 / len(sizes)) for h, w in sizes]
    specs += [ThumbnailSpec(64, 64, "4:2:2", 1000, 0.01), ThumbnailSpec(112, 112, "4:2:2", 500, 0.01)]
    for size, share in (((112, 112), 0.08), ((128, 128), 0.03)):
        specs += [ThumbnailSpec(*size, "4:2:0", 3000, 0.65 * share), ThumbnailSpec(*size, "4:4:4", 1500, 0.25 * share)]
        specs += [ThumbnailSpec(*size, "grey", 600, 0.1 * share)]
    return CoefficientSpecs(tuple(specs), 0.32)


def chosen_specs(own: bool, sizes: Sequence[tuple[int, int]], images: int) -> CoefficientSpecs:
    """The sources' own coefficients, images shrunk to (height, width), or both, half each."""
    share = (0.5 if own else 1.0) / max(1, len(sizes))
    kinds = (("4:2:0", 0.75), ("4:4:4", 0.15), ("grey", 0.1))
    # of 2 bytes, and with the chroma that most have
    most_samples = min(COEFFICIENT_POOL_BYTES, COEFFICIENT_BYTES_IN_ALL // max(1, len(sizes))) // 3
    specs = [
        ThumbnailSpec(h, w, sampling, round(min(4 * images, 30000, most_samples // (h * w)) * part), share * part)
        for h, w in sizes
        for sampling, part in kinds
    ]
    return CoefficientSpecs(tuple(specs), 0.0 if not own else 0.5 if sizes else 1.0)


@dataclass(frozen=True)
class CoefficientPool:
    """Images of one geometry."""

    geometry: Geometry
    coefficients: tuple[NDArray[np.int16], ...]
    """Per component (n, h, w, 64)."""
    tables: tuple[NDArray[np.uint16], ...]
    """Per component (n, 64)."""
    weight: float

    def __len__(self) -> int:
        return len(self.tables[0])

    @property
    def blocks(self) -> int:
        """Blocks of the first component of one image."""
        return int(np.prod(self.coefficients[0].shape[1:3]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, by names of their own."""
        coefficients = {f"c{k}": v for k, v in enumerate(self.coefficients)}
        return coefficients | {f"t{k}": v for k, v in enumerate(self.tables)}

    def frame(self, number: int) -> Frame:
        height, width, parts = self.geometry
        components = (Component(*part, table[number]) for part, table in zip(parts, self.tables, strict=True))
        return Frame(height, width, tuple(components))


_Found = tuple[int | None, Geometry, tuple[NDArray[np.int16], ...], tuple[NDArray[np.uint16], ...]]
"""Number of the thumbnail spec, None for a source; geometry, coefficients and tables."""


def _save_as_jpeg(image: Image.Image, sampling: str, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    quality = 75 if rng.random() < 0.4 else rng.randint(55, 97)
    picture = image.convert("L") if sampling == "grey" else image
    picture.save(stream, "JPEG", quality=quality, subsampling=SUBSAMPLING[sampling], optimize=rng.random() < 0.3)
    return stream.getvalue()


def _found(number: int | None, image: JpegImage) -> _Found:
    tables = tuple(component.table for component in image.frame.components)
    return number, geometry(image.frame), image.coefficients, tables


def _piece(image: JpegImage, rng: random.Random) -> _Found:
    """The image; of one that is too large a piece between its blocks, as if it had been saved by itself."""
    frame = image.frame
    if max(frame.height, frame.width) <= LARGEST_SIDE:
        return _found(None, image)
    most_down, most_across = (max(c.vertical for c in frame.components), max(c.horizontal for c in frame.components))
    height, top = _side(frame.height, 8 * most_down, rng)
    width, left = _side(frame.width, 8 * most_across, rng)
    down, across = -(-height // (8 * most_down)), -(-width // (8 * most_across))
    parts, coefficients = [], []
    for c, whole in zip(frame.components, image.coefficients, strict=True):
        rows = slice(top * c.vertical, (top + down) * c.vertical)
        columns = slice(left * c.horizontal, (left + across) * c.horizontal)
        piece = np.ascontiguousarray(whole[rows, columns])
        coefficients.append(piece)
        parts.append((c.horizontal, c.vertical, *piece.shape[:2]))
    return None, (height, width, tuple(parts)), tuple(coefficients), tuple(c.table for c in frame.components)


def _side(whole: int, unit: int, rng: random.Random) -> tuple[int, int]:
    """Pixels of a piece along a side, and where it begins in units of pixels between which an image can be cut."""
    if whole <= LARGEST_SIDE:
        return whole, 0
    side = LARGEST_SIDE // unit * unit
    return side, rng.randint(0, (whole - side) // unit)


def _take_apart(task: tuple[list[tuple[str, Path]], list[ThumbnailSpec], Wanted, bool]) -> list[_Found]:
    sources, specs, wanted, takes_own = task
    out: list[_Found] = []
    for seed, data in read_all(sources):
        if takes_own:
            with contextlib.suppress(Unrebuildable):
                own = parse(data)
                if len(own.frame.components) <= len(ROLES):
                    out.append(_piece(own, random.Random(f"{seed} own")))
        image = decode(data) if wanted else None
        if image is not None:
            for number, piece, rng in pieces_of(image, wanted, seed):
                out.append(_found(number, parse(_save_as_jpeg(piece, specs[number].sampling, rng))))
    return out


def build_pools(paths: Sequence[Path], specs: CoefficientSpecs, workers: int, seed: int = 0) -> list[CoefficientPool]:
    """Pools of the thumbnails, then those of the sources, the largest first, then one image each of what is left."""
    thumbnails: list[list[_Found]] = [[] for _ in specs.thumbnails]
    sources: dict[Geometry, list[_Found]] = defaultdict(list)
    room = COEFFICIENT_BYTES_IN_ALL if specs.sources_weight else 0

    def tasks() -> Iterator[tuple[list[tuple[str, Path]], list[ThumbnailSpec], Wanted, bool]]:
        for some in in_random_order(paths, seed, _TOGETHER):
            # a quarter more than needed, since some sources are too small
            wanted = [
                (i, s.clean(), max(1, round(1250 * s.count / len(paths))))
                for i, s in enumerate(specs.thumbnails)
                if len(thumbnails[i]) < s.count
            ]
            if wanted or room > 0:
                yield some, list(specs.thumbnails), wanted, room > 0

    for some in map_ahead(_take_apart, tasks(), workers):
        for found in some:
            number, shape, coefficients, _ = found
            if number is not None:
                if len(thumbnails[number]) < specs.thumbnails[number].count:
                    thumbnails[number].append(found)
            elif room > 0 and len(sources[shape]) < _most_of(coefficients):
                sources[shape].append(found)
                room -= _bytes(coefficients)
    pools = [_pool(found, spec.weight) for found, spec in zip(thumbnails, specs.thumbnails, strict=True) if found]
    # geometries that are rarer make one pool together
    many = sorted((found for found in sources.values() if len(found) >= FEWEST), key=len, reverse=True)
    few = [[image] for found in sources.values() if len(found) < FEWEST for image in found][:MOST]
    total = sum(len(found) ** 0.5 for found in many) + len(few) ** 0.5
    pools += [_pool(found, specs.sources_weight * len(found) ** 0.5 / total) for found in many]
    return pools + [_pool(found, specs.sources_weight / len(few) ** 0.5 / total) for found in few]


def _bytes(coefficients: Sequence[NDArray[np.int16]]) -> int:
    return sum(c.nbytes for c in coefficients)


def _most_of(coefficients: Sequence[NDArray[np.int16]]) -> int:
    """Images of this geometry that a pool may have."""
    return min(MOST, max(1, COEFFICIENT_POOL_BYTES // _bytes(coefficients)))


def _pool(images: Sequence[_Found], weight: float) -> CoefficientPool:
    _, shape, coefficients, tables = zip(*images, strict=True)
    parts, steps = (tuple(map(np.stack, zip(*arrays, strict=True))) for arrays in (coefficients, tables))
    return CoefficientPool(shape[0], parts, steps, weight)


def cached_pools(
    paths: Sequence[Path], specs: CoefficientSpecs, cache: Path, workers: int, sources: str
) -> list[CoefficientPool]:
    """`build_pools`, kept in `cache` for the next run with the same sources and specs.

    sources: digest of the files at `paths`, as they were when the run began.
    """
    key = key_of(f"coefficients {_VERSION}", sources, repr(specs))
    cache.mkdir(parents=True, exist_ok=True)
    stamp, stored = cache / "pools.json", cache / "pools.npz"
    listed = read_stamp(stamp, key)
    if listed is None:
        stamp.unlink(missing_ok=True)
        pools = build_pools(paths, specs, workers)
        arrays = {f"{i}.{name}": array for i, pool in enumerate(pools) for name, array in pool.arrays().items()}
        with replacing(stored) as new, new.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        listed = [[pool.geometry, pool.weight] for pool in pools]
        write_stamp(stamp, key, listed)
    with np.load(stored) as arrays:
        return [_load(arrays, i, shape, weight) for i, (shape, weight) in enumerate(listed)]


def _load(arrays: Any, number: int, shape: Any, weight: float) -> CoefficientPool:
    found: Geometry = (shape[0], shape[1], tuple(tuple(part) for part in shape[2]))
    coefficients, tables = (tuple(arrays[f"{number}.{kind}{k}"] for k in range(len(found[2]))) for kind in "ct")
    return CoefficientPool(found, coefficients, tables, weight)
