"""Finds the one byte that is damaged in data whose CRC-32 is known.

A CRC is linear: the difference of the checksum found and the checksum wanted depends only on what was changed and on
how far that is from the end. Shifting the difference back byte by byte, it becomes smaller than 256 where the damaged
byte is, and is then what that byte was changed by (error trapping; Kasami 1964). Any flipped bit is found so; any other
change of one byte in data of n bytes is told from all others but with a chance of n * 255 / 2^32, so what comes out is
checked by other means as well.
"""

from __future__ import annotations

import zlib

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.checksums import CRC_TABLES

MAX_MENDED_BYTES = 1 << 26
"""Beyond, it would take seconds, and give several answers."""
_MAX_FOUND = 16


def mended(data: bytes, crc: int) -> list[bytes]:
    """What differs from `data` in one byte and has this CRC-32; `data` itself where it has."""
    difference = zlib.crc32(data) ^ crc
    if not difference:
        return [data]
    if len(data) > MAX_MENDED_BYTES:
        return []
    found = []
    for distance, change in _trap(np.uint32(difference), len(data), _BY_TOP_BYTE, CRC_TABLES[0]):
        fixed = bytearray(data)
        fixed[len(data) - 1 - int(distance)] ^= int(change)
        found.append(bytes(fixed))
    return found


_BY_TOP_BYTE: NDArray[np.uint8] = np.argsort(CRC_TABLES[0] >> 24).astype(np.uint8)
"""The byte whose table entry has this top byte."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _trap(
    difference: np.uint32, length: int, by_top_byte: NDArray[np.uint8], table: NDArray[np.uint32]
) -> list[tuple[np.int64, np.int64]]:
    """Distance from the end and change of each byte that would explain the difference."""
    found = [(np.int64(0), np.int64(0)) for _ in range(0)]
    state = np.uint32(difference)
    for distance in range(length):
        low = by_top_byte[state >> np.uint32(24)]
        state = np.uint32((state ^ table[low]) << np.uint32(8)) | np.uint32(low)
        if state < 256 and len(found) < _MAX_FOUND:
            found.append((np.int64(distance), np.int64(state)))
    return found
