"""A small hash of what a picture looks like: those of pictures that were scaled or coded again differ in few bits.

    pixels -> grey -> means of 8 rows of 9 fields -> is each field brighter than the one to its left?  64 bits

Pairs of near hashes are found by their bands: of two that differ in at most n bits, cut into n + 1 bands, one band is
the same. (N. Krawetz, "Kind of like that", 2013; Manku, Jain and Das Sarma, "Detecting near-duplicates for web
crawling", 2007.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
MOST_BITS = 15
"""Beyond that, bands are too short to tell hashes apart, and unlike pictures are near."""
_ROWS, _FIELDS = 8, 9
_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Of R, G and B in what the eye takes for brightness (ITU-R BT.601)."""

Hashes = NDArray[np.uint64]


def dhash(pixels: NDArray[np.uint8]) -> int:
    """The hash, from 0 to 2^64 - 1, of a picture (H, W, 3) or (H, W)."""
    grey = pixels.astype(np.float32) if pixels.ndim == 2 else pixels.astype(np.float32) @ _WEIGHTS
    rows, columns = _edges(grey.shape[0], _ROWS), _edges(grey.shape[1], _FIELDS)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    sizes = _sizes(rows, grey.shape[0])[:, None] * _sizes(columns, grey.shape[1])[None, :]
    means = sums / sizes
    # a tenth of a level: of what is flat, rounding decides nothing
    bits = means[:, 1:] > means[:, :-1] + np.float32(0.1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _edges(size: int, fields: int) -> NDArray[np.int64]:
    return np.arange(fields, dtype=np.int64) * size // fields


def _sizes(edges: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Pixels of each field: at least one, where there are fewer pixels than fields."""
    return np.maximum(np.diff(edges, append=size), 1)


def near_pairs(hashes: Hashes, most_bits: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Arrays of places of hashes, all of them different, of which each pair differs in at most so many bits. A pair may
    come several times. Takes memory in proportion to the hashes, whatever they are."""
    bands = most_bits + 1
    edges = [HASH_BITS * band // bands for band in range(bands + 1)]
    for start, stop in pairwise(edges):
        keys = (hashes >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first, apart = np.arange(len(keys) - 1), 1
        # neighbours, then those two apart, and so on, as long as any have this band in common
        while len(first := first[first + apart < len(keys)]):
            first = first[keys[first] == keys[first + apart]]
            one, other = order[first], order[first + apart]
            is_near = np.bitwise_count(hashes[one] ^ hashes[other]) <= most_bits
            if is_near.any():
                yield one[is_near], other[is_near]
            apart += 1


def near_groups(hashes: Hashes, most_bits: int) -> list[list[int]]:
    """Places of hashes that are near each other, or near one that is: groups of two or more, each in order."""
    different, where = np.unique(hashes, return_inverse=True)
    group = list(range(len(different)))

    def root(one: int) -> int:
        while group[one] != one:
            group[one] = group[group[one]]
            one = group[one]
        return one

    for some, others in near_pairs(different, most_bits):
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            group[root(one)] = root(other)
    found: dict[int, list[int]] = {}
    for place, one in enumerate(where.tolist()):
        found.setdefault(root(one), []).append(place)
    return [places for places in found.values() if len(places) > 1]
