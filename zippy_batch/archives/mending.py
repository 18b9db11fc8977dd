"""Finds the one byte that is damaged in data whose CRC-32 is known.

A CRC is linear: the difference of the checksum found and the checksum wanted depends only on what was changed and on
how far that is from the end. Shifting the difference back byte by byte, it becomes smaller than 256 where the damaged
byte is, and is then what that byte was changed by (error trapping; Kasami 1964). Any flipped bit is found so; any other
change of one byte in data of n bytes is told from all others but with a chance of n * 255 / 2^32, so what comes out is
checked by other means as well.
"""

from __future__ import annotations

import os
import zlib

if os.environ.get("NUMBA_DISABLE_JIT"):
    # refuses that, before an archive is read; it is not imported otherwise, because numba takes a third of a second
    from zippy_batch.archives import checksums as checksums

MAX_MENDED_BYTES = 1 << 26
"""Beyond, it would take seconds, and give several answers."""


def mended(data: bytes, crc: int) -> list[bytes]:
    """What differs from `data` in one byte and has this CRC-32; `data` itself where it has."""
    difference = zlib.crc32(data) ^ crc
    if not difference:
        return [data]
    if len(data) > MAX_MENDED_BYTES:
        return []
    from zippy_batch.archives.checksums import trap

    found = []
    for distance, change in trap(difference, len(data)):
        fixed = bytearray(data)
        fixed[len(data) - 1 - int(distance)] ^= int(change)
        found.append(bytes(fixed))
    return found
