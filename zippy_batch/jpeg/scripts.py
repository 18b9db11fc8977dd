"""Scan scripts of common progressive encoders, so that a recipe need not spell them out.

A script says of every scan which components and coefficients it codes; what stands before its scan header are the
tables that it needs, optimised. The first scan is always spelled out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zippy_batch.jpeg.tables import kind_of


class _Scan(NamedTuple):
    components: tuple[int, ...]
    first: int
    last: int
    high: int
    low: int


def _each(count: int, *parameters: int) -> list[_Scan]:
    return [_Scan((k,), *parameters) for k in range(count)]


def _ycc_of_libjpeg(count: int) -> list[_Scan]:
    """`jpeg_simple_progression` for three components that are Y, Cb and Cr."""
    return [
        _Scan(tuple(range(count)), 0, 0, 0, 1),
        _Scan((0,), 1, 5, 0, 2),
        _Scan((2,), 1, 63, 0, 1),
        _Scan((1,), 1, 63, 0, 1),
        _Scan((0,), 6, 63, 0, 2),
        _Scan((0,), 1, 63, 2, 1),
        _Scan(tuple(range(count)), 0, 0, 1, 0),
        _Scan((2,), 1, 63, 1, 0),
        _Scan((1,), 1, 63, 1, 0),
        _Scan((0,), 1, 63, 1, 0),
    ]


def _other_of_libjpeg(count: int) -> list[_Scan]:
    """`jpeg_simple_progression` for any other components."""
    every = tuple(range(count))
    return [
        _Scan(every, 0, 0, 0, 1),
        *_each(count, 1, 5, 0, 2),
        *_each(count, 6, 63, 0, 2),
        *_each(count, 1, 63, 2, 1),
        _Scan(every, 0, 0, 1, 0),
        *_each(count, 1, 63, 1, 0),
    ]


def _ycc_of_mozjpeg(count: int) -> list[_Scan]:
    """mozjpeg's, where it does not search for a better one; all DC in one scan."""
    return [_Scan(tuple(range(count)), 0, 0, 0, 0), *_AC_OF_MOZJPEG]


def _split_ycc_of_mozjpeg(count: int) -> list[_Scan]:
    """Likewise, with DC of the components one by one."""
    return [*_each(count, 0, 0, 0, 0), *_AC_OF_MOZJPEG]


_AC_OF_MOZJPEG = (
    _Scan((0,), 1, 8, 0, 2),
    _Scan((1,), 1, 8, 0, 0),
    _Scan((2,), 1, 8, 0, 0),
    _Scan((0,), 9, 63, 0, 2),
    _Scan((0,), 1, 63, 2, 1),
    _Scan((0,), 1, 63, 1, 0),
    _Scan((1,), 9, 63, 0, 0),
    _Scan((2,), 9, 63, 0, 0),
)


@dataclass(frozen=True)
class _Script:
    scans: Callable[[int], list[_Scan]]
    """The scans of a frame of so many components."""
    components: tuple[int, ...]
    """Numbers of them that it is for."""


SCRIPTS = (
    _Script(_ycc_of_libjpeg, (3,)),
    _Script(_other_of_libjpeg, (1, 3, 4)),
    _Script(_ycc_of_mozjpeg, (3,)),
    _Script(_split_ycc_of_mozjpeg, (3,)),
)
"""Scripts, by their number in recipes."""


def later_runs(
    script: int, joined: bool, ids: Sequence[int], destinations: Sequence[int]
) -> list[tuple[bytes, list[tuple[int, list[int]]]]]:
    """For every scan but the first its header, and the table segments that are left out before it: position 0, and the
    kinds of their tables.

    joined: all tables of a scan share a segment. ids and destinations are the components' in the frame.
    """
    out = []
    for scan in SCRIPTS[script].scans(len(ids))[1:]:
        body = bytes([len(scan.components)])
        keys: list[int] = []
        for k in scan.components:
            dc = destinations[k] if scan.first == scan.high == 0 else 0
            ac = destinations[k] if scan.last else 0
            body += bytes([ids[k], dc << 4 | ac])
            keys += [4 + ac] if scan.last else [dc] if scan.high == 0 else []
        body += bytes([scan.first, scan.last, scan.high << 4 | scan.low])
        kinds = [kind_of(key, optimised=True) for key in dict.fromkeys(keys)]
        segments = [(0, kinds)] if joined and kinds else [(0, [kind]) for kind in kinds]
        out.append((b"\xff\xda" + (len(body) + 2).to_bytes(2, "big") + body, segments))
    return out
