"""Whether the entropy-coded data of a sequential JPEG is whole: every code valid, every block there, nothing left over.

Decoders repair damage here without a word: a file whose middle was overwritten decodes to a picture with a grey or
garbled part. This walks the Huffman codes (ITU-T T.81, annex F) and keeps no coefficient. Progressive scans are not
walked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

_LEFT_OVER_BYTES = 4
"""Whole bytes behind the last block that are not taken for damage: some encoders write one or two."""

_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")


@dataclass(frozen=True)
class Scan:
    """One scan of a sequential frame."""

    data: bytes
    """From the end of its header to the next marker, with stuffed zeros and restart markers."""
    blocks: tuple[tuple[int, int], ...]
    """(DC table, AC table) of each block of a unit, in coding order; tables are positions in `tables`."""
    tables: tuple[bytes, ...]
    """Huffman tables as a file defines them: 16 counts of codes by length, then the symbols."""
    units: int
    """Coded units (MCUs) in the whole scan, at least 1."""
    restart_interval: int
    """Units between restart markers, 0 for none."""


def is_whole(scan: Scan) -> bool:
    """Whether the scan decodes to exactly the blocks that it should have."""
    pieces = [scan.data]
    if scan.restart_interval:
        pieces = _RESTART.split(scan.data)
        markers, pieces = pieces[1::2], pieces[::2]
        if any(marker[0] != 0xD0 + i % 8 for i, marker in enumerate(markers)):
            return False
    per_piece = scan.restart_interval or scan.units
    if len(pieces) != -(-scan.units // per_piece):
        return False
    counts, symbols = _table_arrays(scan.tables)
    layout = np.array(scan.blocks, np.int64)
    for i, piece in enumerate(pieces):
        data = np.frombuffer(piece.replace(b"\xff\0", b"\xff") + bytes(8), np.uint8)
        units = min(per_piece, scan.units - i * per_piece)
        available = 8 * (len(data) - 8)
        used = int(_decode(data, units, layout, counts, symbols))
        if not available - 8 * (_LEFT_OVER_BYTES + 1) < used <= available or used < 0:
            return False
    return True


def _table_arrays(tables: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    counts = np.zeros((len(tables), 16), np.uint8)
    symbols = np.zeros((len(tables), 256), np.uint8)
    for i, table in enumerate(tables):
        counts[i] = np.frombuffer(table, np.uint8, 16)
        symbols[i, : len(table) - 16] = np.frombuffer(table, np.uint8, offset=16)
    return counts, symbols


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _decode(
    data: NDArray[np.uint8],
    units: int,
    layout: NDArray[np.int64],
    counts: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
) -> int:
    """Number of bits that `units` units take, or a negative number at the first invalid code; data ends in 8 zeros."""
    total_bits = 8 * (data.size - 8)
    tables = counts.shape[0]
    # short codes: length << 8 | symbol by their next 8 bits; 0 where the code is longer
    short = np.zeros((tables, 256), np.int64)
    # longer codes: the first code of each length, and the position of its symbol
    first = np.zeros((tables, 17), np.int64)
    start = np.zeros((tables, 17), np.int64)
    for t in range(tables):
        code = position = 0
        for length in range(1, 17):
            first[t, length] = code
            start[t, length] = position
            for _ in range(counts[t, length - 1]):
                if length <= 8 and code < 1 << length:
                    for i in range(code << (8 - length), (code + 1) << (8 - length)):
                        short[t, i] = length << 8 | np.int64(symbols[t, position & 255])
                code += 1
                position += 1
            code <<= 1
    at = 0
    for _ in range(units):
        for b in range(layout.shape[0]):
            k = 0
            while k < 64:
                if at > total_bits:
                    return -1
                t = layout[b, 0] if k == 0 else layout[b, 1]
                byte = at >> 3
                window = np.int64(data[byte]) << 16 | np.int64(data[byte + 1]) << 8 | np.int64(data[byte + 2])
                window = (window >> (8 - (at & 7))) & 0xFFFF
                entry = short[t, window >> 8]
                length = entry >> 8
                symbol = entry & 255
                if entry == 0:
                    length = 9
                    while length <= 16:
                        offset = (window >> (16 - length)) - first[t, length]
                        if 0 <= offset < counts[t, length - 1]:
                            symbol = np.int64(symbols[t, (start[t, length] + offset) & 255])
                            break
                        length += 1
                    if length > 16:
                        return -1
                size = symbol & 15
                at += length + size
                if k == 0:
                    if symbol > 15:
                        return -1
                    k = 1
                elif size:
                    k += (symbol >> 4) + 1
                    if k > 64:
                        return -1
                elif symbol == 0xF0:
                    k += 16
                    if k > 64:
                        return -1
                else:
                    break
    return at
