"""Photographs -> pools of JPEG coefficients, built once and cached.

Two kinds: the sources' own coefficients, where they are JPEG files that can be rebuilt, in pools by size and sampling;
and thumbnails shrunk from them and saved as JPEG at many qualities, as face data sets are made.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.exact.blocks import Geometry, geometry
from zippy_batch.jpeg.file import JpegImage, Unrebuildable, parse
from zippy_batch.jpeg.headers import Component, Frame
from zippy_batch.training.pictures import FEWEST, PoolSpec, cut, decode

SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": 0}
"""What Pillow calls them."""
MOST = 6000
"""Images of a pool of sources."""


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


@dataclass(frozen=True)
class CoefficientSpecs:
    thumbnails: tuple[ThumbnailSpec, ...]
    sources_weight: float
    """Of all pools of sources together; each gets a share in proportion to the square root of its size."""


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
    specs = [
        ThumbnailSpec(h, w, sampling, round(min(4 * images, 30000) * part), share * part)
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
        """Of the first component of one image."""
        return int(np.prod(self.coefficients[0].shape[1:3]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By names of their own."""
        coefficients = {f"c{k}": v for k, v in enumerate(self.coefficients)}
        return coefficients | {f"t{k}": v for k, v in enumerate(self.tables)}

    def frame(self, number: int) -> Frame:
        height, width, parts = self.geometry
        components = (Component(*part, table[number]) for part, table in zip(parts, self.tables, strict=True))
        return Frame(height, width, tuple(components))


_Found = tuple[int | None, JpegImage]
"""Number of the thumbnail spec, None for a source, and the image."""


def _save_as_jpeg(image: Image.Image, sampling: str, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    quality = 75 if rng.random() < 0.4 else rng.randint(55, 97)
    picture = image.convert("L") if sampling == "grey" else image
    picture.save(stream, "JPEG", quality=quality, subsampling=SUBSAMPLING[sampling], optimize=rng.random() < 0.3)
    return stream.getvalue()


def _take_apart(task: tuple[list[Path], list[tuple[int, ThumbnailSpec, int]], int]) -> list[_Found]:
    paths, wanted, seed = task
    rng = random.Random(seed)
    out: list[_Found] = []
    for path in paths:
        data = path.read_bytes()
        with contextlib.suppress(Unrebuildable):
            out.append((None, parse(data)))
        image = decode(io.BytesIO(data))
        if image is None:
            continue
        for number, spec, copies in wanted:
            for _ in range(copies // 1000 + (rng.randrange(1000) < copies % 1000)):
                piece = cut(image, PoolSpec(spec.height, spec.width, 1, 1.0, jpeg=0.0), rng)
                if piece is not None:
                    out.append((number, parse(_save_as_jpeg(piece, spec.sampling, rng))))
    return out


def _find_all(paths: Sequence[Path], specs: CoefficientSpecs, workers: int, seed: int) -> Iterator[list[_Found]]:
    order = list(paths)
    random.Random(seed).shuffle(order)
    # thousandths of an image of each spec per source; a quarter more, since some sources are too small
    wanted = [(i, s, max(1, round(1250 * s.count / max(1, len(order))))) for i, s in enumerate(specs.thumbnails)]
    tasks = [(order[i : i + 100], wanted, seed + i) for i in range(0, len(order), 100)]
    with concurrent.futures.ProcessPoolExecutor(workers) as executor:
        yield from executor.map(_take_apart, tasks)


def build_pools(paths: Sequence[Path], specs: CoefficientSpecs, workers: int, seed: int = 0) -> list[CoefficientPool]:
    """Pools of the thumbnails, then those of the sources, the largest first, then one image each of what is left."""
    thumbnails: list[list[JpegImage]] = [[] for _ in specs.thumbnails]
    sources: dict[Geometry, list[JpegImage]] = defaultdict(list)
    for some in _find_all(paths, specs, workers, seed):
        for number, image in some:
            if number is None:
                sources[geometry(image.frame)].append(image)
            else:
                thumbnails[number].append(image)
    pools = [
        _pool(found[: spec.count], spec.weight)
        for found, spec in zip(thumbnails, specs.thumbnails, strict=True)
        if found
    ]
    # geometries that are rarer make one pool together
    many = sorted((found for found in sources.values() if len(found) >= FEWEST), key=len, reverse=True)
    few = [[image] for found in sources.values() if len(found) < FEWEST for image in found]
    total = sum(len(found) ** 0.5 for found in many) + len(few) ** 0.5
    pools += [_pool(found[:MOST], specs.sources_weight * len(found) ** 0.5 / total) for found in many]
    return pools + [_pool(found, specs.sources_weight / len(few) ** 0.5 / total) for found in few]


def _pool(images: Sequence[JpegImage], weight: float) -> CoefficientPool:
    components = range(len(images[0].coefficients))
    return CoefficientPool(
        geometry(images[0].frame),
        tuple(np.stack([image.coefficients[k] for image in images]) for k in components),
        tuple(np.stack([image.frame.components[k].table for image in images]) for k in components),
        weight,
    )


def cached_pools(paths: Sequence[Path], specs: CoefficientSpecs, cache: Path, workers: int) -> list[CoefficientPool]:
    """`build_pools`, kept in `cache` for the next run with the same sources and specs."""
    key = json.dumps([[str(p) for p in paths], repr(specs)])
    cache.mkdir(parents=True, exist_ok=True)
    stamp, stored = cache / "pools.json", cache / "pools.npz"
    if not stamp.exists() or json.loads(stamp.read_text())["key"] != key:
        pools = build_pools(paths, specs, workers)
        arrays = {f"{i}.{name}": array for i, pool in enumerate(pools) for name, array in pool.arrays().items()}
        np.savez(stored, **arrays)  # type: ignore[arg-type]
        stamp.write_text(json.dumps({"key": key, "pools": [[p.geometry, p.weight] for p in pools]}))
    listed: list[tuple[Any, float]] = json.loads(stamp.read_text())["pools"]
    with np.load(stored) as arrays:
        return [_load(arrays, i, shape, weight) for i, (shape, weight) in enumerate(listed)]


def _load(arrays: Any, number: int, shape: Any, weight: float) -> CoefficientPool:
    found: Geometry = (shape[0], shape[1], tuple(tuple(part) for part in shape[2]))
    coefficients, tables = (tuple(arrays[f"{number}.{kind}{k}"] for k in range(len(found[2]))) for kind in "ct")
    return CoefficientPool(found, coefficients, tables, weight)
