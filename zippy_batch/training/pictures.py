"""Photographs -> pools of equally sized training images, built once and cached.

A pool is a uint8 array (n, H, W, 3). Several sizes are mixed because a codec trained on one size is lost on others:
thumbnails shrunk from larger faces (most of them saved as JPEG once more, since archived thumbnails are JPEGs), other
small sizes, 112 px, and native detail. A model for one data set trains on its images as they are.

Which piece of which source is in a pool depends on the seed and the order of the sources alone: every source and pool
has random numbers of its own, and a pool takes the first that come until it is full.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zippy_batch.images.pixels import Picture, read_picture
from zippy_batch.stores.atomic_file import replacing
from zippy_batch.training.stamp import key_of, read_stamp, write_stamp

Pool = NDArray[np.uint8]
FEWEST = 16
"""Images of one size, or sources of one geometry, that make a pool of their own."""
MOST_BYTES = 1 << 29
"""Most bytes of a pool,"""
MOST_BYTES_IN_ALL = 1 << 31
"""and of all pools of a run: they are built in memory."""
LARGEST_WHOLE = 256
"""Side in pixels; of larger images, and of sizes that are rare, pieces are cut."""
_PIECES = (160, 96, 48, 24)
_MCU = 16
"""Pixels over which the blocks of a JPEG with halved chroma repeat."""
_DRAWN = 0.04
"""Share of the batches that are drawn patterns."""
_TOGETHER = 50
"""Sources that a process cuts before it hands the pieces over."""
_VERSION = 3
"""Raised when the same sources and specs make other pools."""
_FILTERS = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class PoolSpec:
    """One pool: its image size, how many images, how they are cut, and how often training draws from it."""

    height: int
    width: int
    count: int
    weight: float
    native: bool = False
    """Cut at the source's own resolution, on its 8x8 lattice, instead of shrinking a square to size."""
    whole: bool = False
    """Taken as they are, from sources of just this size."""
    jpeg: float = 0.75
    """Share of the images saved as JPEG after shrinking; the rest stay clean."""
    mirror: bool = True
    """Half of the images are turned left to right, where that leaves a JPEG's blocks where they were."""
    grey: bool = False
    """Taken from sources in grey alone."""
    drawn: bool = False
    """Noise, stripes and other patterns instead of photographs: a codec that never saw them fails on them badly."""


def default_specs() -> list[PoolSpec]:
    """A fifth of the batches are 42 px thumbnails, half are native detail of 160x160 to 250x250, a quarter of that in
    grey.
    """
    specs = [PoolSpec(42, 42, 30000, 0.20)]
    shapes = [
        (24, 24),
        (32, 32),
        (28, 40),
        (40, 36),
        (48, 48),
        (56, 46),
        (50, 61),
        (64, 64),
        (64, 48),
        (72, 72),
        (80, 64),
        (96, 96),
    ]
    specs += [PoolSpec(h, w, 1200, 0.08 / len(shapes), jpeg=0.5) for h, w in shapes]
    specs += [PoolSpec(112, 112, 14000, 0.17, jpeg=0.3), PoolSpec(144, 128, 1500, 0.03, jpeg=0.3)]
    specs += [PoolSpec(218, 178, 9000, 0.15, native=True), PoolSpec(200, 200, 7000, 0.12, native=True)]
    specs += [PoolSpec(160, 160, 4000, 0.06, native=True), PoolSpec(250, 250, 8000, 0.05, native=True)]
    specs += [PoolSpec(250, 250, 900, 0.08, native=True, grey=True)]
    specs += [PoolSpec(192, 160, 2000, 0.04, native=True, grey=True)]
    specs += [PoolSpec(48, 48, 4000, 0.02, jpeg=0.3, drawn=True)]
    return specs


def chosen_specs(sizes: Mapping[tuple[int, int], int], own: bool, shrunk: Sequence[tuple[int, int]]) -> list[PoolSpec]:
    """The images as they are, images shrunk to (height, width), or both, half each.

    sizes: how many sources have each (height, width).
    """
    own_share = (1 - _DRAWN) * (1.0 if not shrunk else 0.5 if own else 0.0)
    specs = _own_specs(sizes, own_share) if own else []
    images = sum(sizes.values())
    for h, w in shrunk:
        count = min(4 * images, 36000, MOST_BYTES // (3 * h * w))
        specs.append(PoolSpec(h, w, count, (1 - _DRAWN - own_share) / len(shrunk)))
    return [*_within(specs, MOST_BYTES_IN_ALL), PoolSpec(48, 48, 2000, _DRAWN, jpeg=0.3, drawn=True)]


def _within(specs: Sequence[PoolSpec], most_bytes: int) -> list[PoolSpec]:
    """Specs of which all have fewer images, in proportion, where they would take more bytes together."""
    total = sum(3 * spec.height * spec.width * spec.count for spec in specs)
    return [replace(s, count=max(1, s.count * most_bytes // max(total, most_bytes))) for s in specs]


def _own_specs(sizes: Mapping[tuple[int, int], int], share: float) -> list[PoolSpec]:
    """Images as they are; pieces of those that are large or of a rare size."""
    total = sum(sizes.values())
    whole = {
        size: count
        for size, count in sizes.items()
        if count >= FEWEST and max(size) <= LARGEST_WHOLE and min(size) >= 8
    }
    specs = [
        PoolSpec(h, w, min(count, MOST_BYTES // (3 * h * w)), share * count / total, native=True, whole=True)
        for (h, w), count in sorted(whole.items(), key=lambda item: (-item[1], item[0]))
    ]
    pieces: Counter[int] = Counter()
    for size, count in sizes.items():
        if size not in whole:
            pieces[next((side for side in _PIECES if side <= min(size)), _PIECES[-1])] += count
    return specs + [
        PoolSpec(side, side, min(4 * count, MOST_BYTES // (3 * side * side)), share * count / total, native=True)
        for side, count in pieces.most_common()
    ]


def _square(image: Image.Image, rng: random.Random) -> Image.Image:
    """A random square that covers most of the picture, near its centre."""
    w, h = image.size
    side = rng.uniform(0.55, 1.0) * min(w, h) if rng.random() < 0.7 else min(w, h)
    x = (w - side) * min(1.0, max(0.0, rng.gauss(0.5, 0.2)))
    y = (h - side) * min(1.0, max(0.0, rng.gauss(0.5, 0.2)))
    return image.crop((round(x), round(y), round(x + side), round(y + side)))


def _resave(image: Image.Image, rng: random.Random) -> Image.Image:
    quality = 75 if rng.random() < 0.75 else rng.randint(60, 95)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=2 if rng.random() < 0.85 else 0)
    return Image.open(buffer).convert("RGB")


def decode(data: bytes) -> Image.Image | None:
    """The picture in RGB, and not turned, as the archive codes it; None for what it keeps as it is."""
    picture = read_picture(data)
    return Image.fromarray(picture.pixels).convert("RGB") if isinstance(picture, Picture) else None


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(plane) for plane in image.split())
    return np.array_equal(red, green) and np.array_equal(green, blue)


def cut(image: Image.Image, spec: PoolSpec, rng: random.Random) -> Image.Image | None:
    """One training image of the spec's size, or None where the source is too small for it."""
    if spec.grey and not _is_grey(image):
        return None
    if spec.whole:
        return image if image.size == (spec.width, spec.height) else None
    if spec.native:
        w, h = image.size
        if w < spec.width or h < spec.height:
            return None
        x, y = (8 * rng.randint(0, (d - s) // 8) for d, s in ((w, spec.width), (h, spec.height)))
        return image.crop((x, y, x + spec.width, y + spec.height))
    square = _square(image, rng)
    if min(square.size) < 0.8 * max(spec.height, spec.width):
        return None
    out = square.resize((spec.width, spec.height), rng.choice(_FILTERS))
    if spec.mirror and rng.random() < 0.5:
        out = ImageOps.mirror(out)
    return _resave(out, rng) if rng.random() < spec.jpeg else out


def draw_pattern(height: int, width: int, rng: np.random.Generator) -> Pool:
    """(H, W, 3) uint8: noise, checkers, stripes, a gradient or rectangles, in two random colours and any contrast."""
    y, x = np.mgrid[0:height, 0:width]
    period = int(rng.integers(1, 12))
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    kind = int(rng.integers(6))
    if kind == 0:
        mix = rng.random((height, width, int(rng.choice([1, 3]))))
    elif kind == 1:
        mix = rng.integers(0, 2, (height, width, int(rng.choice([1, 3])))).astype(float)
    elif kind == 2:
        mix = ((x // period + y // period) % 2.0)[..., None]
    elif kind == 3:
        mix = (along % (2 * period) < period).astype(float)[..., None]
    elif kind == 4:
        mix = ((along - along.min()) / np.ptp(along))[..., None]
    else:
        mix = np.zeros((height, width, 1))
        for _ in range(int(rng.integers(1, 30))):
            top, left = rng.integers(0, height), rng.integers(0, width)
            mix[top : top + rng.integers(1, 12), left : left + rng.integers(1, 12)] = rng.random()
    first, second = rng.integers(0, 256, 3), rng.choice([rng.integers(0, 256, 3), 255 * rng.integers(0, 2, 3)])
    return np.rint(first + mix * (second - first)).astype(np.uint8)


def _draw_pool(spec: PoolSpec, seed: int) -> Pool:
    rng, choices = np.random.default_rng(seed), random.Random(seed)
    drawn = [Image.fromarray(draw_pattern(spec.height, spec.width, rng)) for _ in range(spec.count)]
    return np.stack([np.asarray(_resave(i, choices) if choices.random() < spec.jpeg else i) for i in drawn])


Wanted = Sequence[tuple[int, PoolSpec, int]]
"""Number of a pool, its spec, and thousandths of a piece that each source gives."""


def pieces_of(image: Image.Image, wanted: Wanted, seed: str) -> Iterator[tuple[int, Image.Image, random.Random]]:
    """Number of a pool, a piece for it, and the random numbers of this source and pool."""
    for index, spec, copies in wanted:
        rng = random.Random(f"{seed} {index}")
        for _ in range(copies // 1000 + (rng.randrange(1000) < copies % 1000)):
            piece = cut(image, spec, rng)
            if piece is not None:
                yield index, piece, rng


def _cut_many(task: tuple[list[tuple[str, Path]], Wanted]) -> list[tuple[int, Pool]]:
    """Sources that cannot be read or decoded are left out."""
    sources, wanted = task
    out: list[tuple[int, Pool]] = []
    for seed, data in read_all(sources):
        image = decode(data)
        if image is not None:
            out += [(index, np.asarray(piece)) for index, piece, _ in pieces_of(image, wanted, seed)]
    return out


def read_all(sources: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, bytes]]:
    for seed, path in sources:
        with contextlib.suppress(OSError):
            yield seed, path.read_bytes()


Task = TypeVar("Task")
Result = TypeVar("Result")


def map_ahead(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results in order. No more tasks are taken than keep the processes at work, so that results never pile up."""
    rest, pending = iter(tasks), deque[Future[Result]]()
    with ProcessPoolExecutor(workers) as executor:
        pending.extend(executor.submit(work, task) for task in islice(rest, workers + 1))
        while pending:
            yield pending.popleft().result()
            pending.extend(executor.submit(work, task) for task in islice(rest, 1))


def in_random_order(paths: Sequence[Path], seed: int, together: int) -> Iterator[list[tuple[str, Path]]]:
    """Some sources at a time, each with a seed of its own."""
    order = list(paths)
    random.Random(seed).shuffle(order)
    for i in range(0, len(order), together):
        yield [(f"{seed} {i + k}", path) for k, path in enumerate(order[i : i + together])]


def build_pools(paths: Sequence[Path], specs: Sequence[PoolSpec], workers: int, seed: int = 0) -> list[Pool]:
    """Cut every spec's images out of the sources, spread evenly over them."""
    pools = [_draw_pool(s, seed) if s.drawn else np.empty((s.count, s.height, s.width, 3), np.uint8) for s in specs]
    filled = [len(pool) if spec.drawn else 0 for pool, spec in zip(pools, specs, strict=True)]

    def tasks() -> Iterator[tuple[list[tuple[str, Path]], Wanted]]:
        for sources in in_random_order(paths, seed, _TOGETHER):
            # a third more than needed, since some sources are too small, and two of each where few are in grey
            wanted = [
                (i, s, 1000 if s.whole else 2000 if s.grey else max(1, round(1333 * s.count / len(paths))))
                for i, s in enumerate(specs)
                if filled[i] < s.count
            ]
            if wanted:
                yield sources, wanted

    for result in map_ahead(_cut_many, tasks(), workers):
        for index, piece in result:
            if filled[index] < len(pools[index]):
                pools[index][filled[index]] = piece
                filled[index] += 1
    return [pool[:count] for pool, count in zip(pools, filled, strict=True)]


def cached_pools(
    paths: Sequence[Path], specs: Sequence[PoolSpec], cache: Path, workers: int, sources: str
) -> list[Pool]:
    """`build_pools`, kept in `cache` for the next run with the same sources and specs; mapped, not read, from there.

    sources: digest of the files at `paths`, as they were when the run began.
    """
    key = key_of(f"pictures {_VERSION}", sources, repr(list(specs)))
    cache.mkdir(parents=True, exist_ok=True)
    stamp = cache / "pools.json"
    if read_stamp(stamp, key) is None:
        stamp.unlink(missing_ok=True)
        for i, pool in enumerate(build_pools(paths, specs, workers)):
            with replacing(cache / f"pool-{i:02d}.npy") as new, new.open("wb") as stream:
                np.save(stream, pool)
        write_stamp(stamp, key, len(specs))
    return [np.load(cache / f"pool-{i:02d}.npy", mmap_mode="r") for i in range(len(specs))]


def batches(
    pools: Sequence[Pool], specs: Sequence[PoolSpec], positions: int, rng: np.random.Generator
) -> Iterator[Pool]:
    """Endless batches as `draw_batch` draws them."""
    while True:
        yield draw_batch(pools, specs, positions, rng)


def draw_batch(pools: Sequence[Pool], specs: Sequence[PoolSpec], positions: int, rng: np.random.Generator) -> Pool:
    """(n, H, W, 3) of one size, about `positions` 8x8 blocks in all."""
    weights = np.array([s.weight if len(p) else 0.0 for s, p in zip(specs, pools, strict=True)])
    i = int(rng.choice(len(pools), p=weights / weights.sum()))
    spec = specs[i]
    blocks = -(-spec.height // 8) * -(-spec.width // 8)
    images = pools[i][rng.integers(0, len(pools[i]), max(2, positions // blocks))]
    if spec.mirror and spec.native and spec.width % (_MCU if spec.whole else 8) == 0:
        turned = rng.random(len(images)) < 0.5
        images[turned] = images[turned, :, ::-1]
    return images
