"""The blocks of a batch of JPEG images as flat lists, one for each plane: where they lie, who their neighbours are,
what is known of them before anything is coded.

A batch holds images of any sizes and samplings. Blocks come image by image, row by row; nothing here depends on which
images share a batch.

Letters: N images, R blocks of a plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.exact.features import coarseness, static_features
from zippy_batch.codecs.exact.network import CONTEXT_PLANES
from zippy_batch.jpeg.markers import Frame

Indices = NDArray[np.int64]

ROLES = ("y", "cb", "cr")
"""What the components are taken for, in file order: that decides what one is predicted from, not whether it can be
coded."""

Geometry = tuple[int, int, tuple[tuple[int, int, int, int], ...]]
"""Height, width, and per component sampling factors (horizontal, vertical) and blocks (high, wide)."""


@dataclass(frozen=True)
class Blocks:
    """A plane of a batch."""

    image: Indices
    """(R,) number of each block's image in the batch."""
    row: Indices
    column: Indices
    """(R,)"""
    high: Indices
    wide: Indices
    """(R,) rows and columns of its image."""
    features: NDArray[np.float32]
    """(U, STATIC_FEATURES) the different static features,"""
    feature_row: Indices
    """(R,) and which of them is each block's."""
    steps: Indices
    """(N, 64) quantisation steps by image; 1 where an image has no such plane."""
    places: Mapping[str, Indices]
    """Of the planes coded before: (R,) the block there at each block's place, or their number for none."""

    @property
    def grid(self) -> tuple[Indices, Indices, Indices, Indices]:
        """Where each block is in its image, and how large that is."""
        return self.row, self.column, self.high, self.wide


def geometry(frame: Frame) -> Geometry:
    parts = ((c.horizontal, c.vertical, c.blocks_high, c.blocks_wide) for c in frame.components)
    return (frame.height, frame.width, tuple(parts))


def planes_of(frames: Sequence[Frame]) -> dict[str, Blocks]:
    """The planes of a batch in coding order, those that no image has left out. Images of one geometry should be
    neighbours: they are laid out at once."""
    runs: list[tuple[Geometry, list[int]]] = []
    for number, found in enumerate(geometry(f) for f in frames):
        if not runs or runs[-1][0] != found:
            runs.append((found, []))
        runs[-1][1].append(number)
    planes: dict[str, Blocks] = {}
    for name in CONTEXT_PLANES:
        component = ROLES.index(name)
        with_plane = [run for run in runs if len(run[0][2]) > component]
        if with_plane:
            planes[name] = _plane(frames, with_plane, component, planes)
    return planes


def _plane(
    frames: Sequence[Frame],
    runs: Sequence[tuple[Geometry, list[int]]],
    component: int,
    known: Mapping[str, Blocks],
) -> Blocks:
    parts: dict[str, list[Indices]] = {k: [] for k in ("image", "row", "column", "high", "wide", "feature_row")}
    places: dict[str, list[Indices]] = {k: [] for k in CONTEXT_PLANES[ROLES[component]] if k in known}
    seen = dict.fromkeys(places, 0)
    steps = np.ones((len(frames), 64), np.int64)
    maps: dict[tuple[Geometry, int], int] = {}
    features: list[NDArray[np.int16]] = []
    size = 0
    for shape, images in runs:
        high, wide = shape[2][component][2:]
        count = len(images)
        row, column = _raster(high, wide)
        numbers = np.array(images)[:, None]
        parts["image"].append(np.repeat(numbers, high * wide))
        parts["row"].append(np.tile(row, count))
        parts["column"].append(np.tile(column, count))
        parts["high"].append(np.full(count * high * wide, high))
        parts["wide"].append(np.full(count * high * wide, wide))
        tables = np.stack([frames[image].components[component].table for image in images])
        steps[images] = tables
        first_rows = []
        for level in coarseness(tables).tolist():
            if (shape, level) not in maps:
                maps[shape, level] = size
                features.append(_static(shape, component, level))
                size += high * wide
            first_rows.append(maps[shape, level])
        parts["feature_row"].append((np.array(first_rows)[:, None] + np.arange(high * wide)).reshape(-1))
        for name, found in places.items():
            other = ROLES.index(name)
            if len(shape[2]) > other:
                there = _places(shape[2][component], shape[2][other])
                area = shape[2][other][2] * shape[2][other][3]
                found.append((seen[name] + area * np.arange(count)[:, None] + there).reshape(-1))
                seen[name] += area * count
            else:
                found.append(np.full(count * high * wide, len(known[name].image)))
    whole = {k: np.concatenate(v) for k, v in parts.items()}
    return Blocks(
        **whole,
        features=np.concatenate(features).astype(np.float32),
        steps=steps,
        places={k: np.concatenate(v) for k, v in places.items()},
    )


@lru_cache(maxsize=16)
def _raster(high: int, wide: int) -> tuple[Indices, Indices]:
    """Row and column of each block of a grid."""
    return np.repeat(np.arange(high), wide), np.tile(np.arange(wide), high)


def _static(shape: Geometry, component: int, level: int) -> NDArray[np.int16]:
    height, width, parts = shape
    horizontal, vertical, high, wide = parts[component]
    pixels = (
        -(-height * vertical // max(v for _, v, _, _ in parts)),
        -(-width * horizontal // max(h for h, _, _, _ in parts)),
    )
    ratio = (vertical // min(v for _, v, _, _ in parts), horizontal // min(h for h, _, _, _ in parts))
    return static_features(pixels, (high, wide), level, ratio, len(parts) == 1)


@lru_cache(maxsize=16)
def _places(fine: tuple[int, int, int, int], coarse: tuple[int, int, int, int]) -> Indices:
    """For each block of one component, the number of the block of another one at its place."""
    row = np.minimum(np.arange(fine[2]) * coarse[1] // fine[1], coarse[2] - 1)
    column = np.minimum(np.arange(fine[3]) * coarse[0] // fine[0], coarse[3] - 1)
    return (row[:, None] * coarse[3] + column).reshape(-1)
