"""Scans of JPEG files <-> coefficients: the compiled decoder and encoder, and what they say in Python's terms.

Letters: B blocks of all components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zippy_batch.errors import DamagedRow
from zippy_batch.jpeg import scan_decoder, scan_encoder
from zippy_batch.jpeg.faults import Fault, Malformed
from zippy_batch.jpeg.markers import Headers, Layout, ScanHeader, layout_of
from zippy_batch.jpeg.recipe import Oddities, Plan, PlannedScan
from zippy_batch.jpeg.tables import EMPTY_TABLE, Table, codes_of, pack

_FAULTS = {
    scan_decoder.TRUNCATED: ("its scan is truncated", Fault.TRUNCATED),
    scan_decoder.DAMAGED: ("its scan is damaged", Fault.CORRUPT),
}
_UNLIMITED = 1 << 62


class DecodedScan(NamedTuple):
    """What decoding a scan has found besides its coefficients."""

    end: int
    """Position in the file after its last coded byte."""
    plain: bool
    """Whether blocks outside the picture are all alike: they need not be kept then."""
    padding: int
    """The bit that fills up most bytes."""
    odd: Oddities
    filled: bool
    """Whether fill bytes stand before restart markers."""
    frequency: NDArray[np.int64]
    """(8, 256) how often each symbol of each table comes."""


def decode_scan(
    data: NDArray[np.uint8], at: int, headers: Headers, scan: ScanHeader, blocks: NDArray[np.int16]
) -> DecodedScan:
    """Decode the scan that begins at data[at] into blocks (B, 64) of whole MCUs; into none (0, 64), a sequential scan
    is only checked. Raises Malformed."""
    layout = layout_of(headers.shape(), scan.parts, padded=True)
    intervals = -(-len(layout.order) // (layout.unit * headers.restart)) if headers.restart else 1
    # behind each interval but the last is a marker of two bytes
    if 2 * (intervals - 1) > len(data) - at:
        raise Malformed("a restart marker is missing")
    packed = pack([headers.huffman.get(key, EMPTY_TABLE) for key in range(8)])
    (clean, stops, found, flags), lookup = scan_decoder.open_scan(data, at, intervals, packed)
    if found < intervals or flags & scan_decoder.DISORDERED:
        raise Malformed("a restart marker is missing")
    frequency = np.zeros((8, 256), np.int64)
    where = clean, stops, lookup, layout, layout.unit * headers.restart
    status, plain, ends, (zeros, stopped) = _decode(where, scan, blocks, frequency)
    if status:
        raise Malformed(*_FAULTS[status])
    filling, size = scan_decoder.close_scan(clean, stops, ends)
    padding, endings = _read_endings(clean, ends, filling)
    odd = _oddities(endings, zeros, stopped)
    filled = bool(flags & scan_decoder.FILLED)
    return DecodedScan(at + size + 2 * (intervals - 1), plain, padding, odd, filled, frequency)


_Where = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], Layout, int]
"""First arguments of the decoder's functions."""


def _decode(
    where: _Where, scan: ScanHeader, blocks: NDArray[np.int16], frequency: NDArray[np.int64]
) -> tuple[int, bool, NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Status, whether blocks outside are alike, where intervals end, and notes of zeros and of stops."""
    plain, notes, stopped = True, _NOTHING, _NOTHING
    if not scan.progressive:
        status, plain, ends, notes = scan_decoder.decode_sequential(*where, blocks, frequency)
    elif scan.first == 0:
        status, plain, ends = scan_decoder.decode_dc(*where, (scan.high, scan.low), blocks, frequency)
    else:
        decode = scan_decoder.refine_ac if scan.high else scan_decoder.decode_ac
        band = (scan.first, scan.last, scan.low)
        status, ends, notes, stopped = decode(*where, band, blocks, frequency)
    return status, plain, ends, (notes, stopped)


_NOTHING = np.zeros((1, 2), np.int64)


def _oddities(
    endings: Sequence[tuple[int, int, bytes]], zeros: NDArray[np.int64], stopped: NDArray[np.int64]
) -> Oddities:
    """Oddities in notes, whose first row counts the others."""
    unlimited = bool(stopped[0, 1])
    if not (zeros[0, 0] or stopped[0, 0] or unlimited):
        return Oddities(endings)
    rows = stopped[1 : stopped[0, 0] + 1].tolist()
    # those by libjpeg's limit are none where there is such a limit
    stops = [block for block, limit in rows if unlimited or not limit]
    return Oddities(endings, [(block, count) for block, count in zeros[1 : zeros[0, 0] + 1].tolist()], stops, unlimited)


def _read_endings(
    clean: NDArray[np.uint8], ends: NDArray[np.int64], filling: NDArray[np.int64]
) -> tuple[int, Sequence[tuple[int, int, bytes]]]:
    """The bit that pads most intervals, and the endings that are otherwise."""
    if len(filling) == 1:
        bits, free, _ = filling[0].tolist()
        padding = int(bits == (1 << free) - 1 or bits != 0)
        return padding, [(0, bits, b"")] if 0 < bits < (1 << free) - 1 else ()
    filled, free, extra = filling.T
    ones, zeros = filled == (1 << free) - 1, filled == 0
    padding = int(np.count_nonzero(ones) >= np.count_nonzero(zeros))
    odd = np.flatnonzero(~(ones if padding else zeros) | (extra != 0)).tolist()
    after = (ends + 7) >> 3
    return padding, [(i, int(filled[i]), clean[after[i] : after[i] + extra[i]].tobytes()) for i in odd]


# ---- encoding ----


def token_room(blocks: NDArray[np.int16], plan: Plan) -> NDArray[np.int64]:
    """Room for the tokens of any scan of these blocks."""
    most = (scan_encoder.BLOCK_TOKENS + 1) * plan.coded_blocks
    return np.empty(int(np.count_nonzero(blocks)) + most + 8, np.int64)


def tokenise(blocks: NDArray[np.int16], scan: PlannedScan, tokens: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Fill tokens with those of a scan; returns how many they are, and (8, 256) how often each symbol comes. Raises
    DamagedRow."""
    frequency = np.zeros((8, 256), np.int64)
    header = scan.header
    layout = layout_of(scan.shape, header.parts, scan.padded)
    where = blocks, layout, layout.unit * scan.restart
    if not header.progressive:
        count = scan_encoder.tokenise_sequential(*where, scan.zeros, tokens, frequency)
    elif header.first == 0:
        count = scan_encoder.tokenise_dc(*where, (header.high, header.low), tokens, frequency)
    else:
        band = (header.first, header.last, header.low)
        most = _UNLIMITED if scan.run.odd.unlimited else scan_decoder.MOST_CORRECTIONS
        encode = scan_encoder.refine_ac if header.high else scan_encoder.tokenise_ac
        count = encode(*where, band, (scan.zeros, scan.stops, most), tokens, frequency)
    if count < 0:
        raise DamagedRow("a coefficient is out of the range that JPEG codes")
    return count, frequency


def write_scan(tokens: NDArray[np.int64], scan: PlannedScan, tables: Mapping[int, Table]) -> bytes:
    """The bytes of a scan of these tokens, with tables by key. Raises DamagedRow."""
    codes = codes_of(pack([tables.get(key, EMPTY_TABLE) for key in range(8)]))
    out = scan_encoder.write_tokens(tokens, codes, scan.run.pad, scan.endings, scan.extra)
    if len(out) == 0:
        raise DamagedRow("a coefficient has no code in the file's Huffman tables")
    return out.tobytes()
