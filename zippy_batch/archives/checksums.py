"""Row checksums of a whole row group at once, from the columns as Arrow holds them: `schema.row_crc`, compiled.

No row becomes an object, which is what reading rows takes its time for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import COLUMNS
from zippy_batch.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# every archive is read and written by way of this module, so no kernel is run without the compiler
if getattr(numba.config, "DISABLE_JIT", False):
    raise UsageError(
        "NUMBA_DISABLE_JIT is set, and the codecs are right only where numba compiles them: plain Python has other "
        "integers; unset it, and start again"
    )

_BYTES, _FLOAT, _INTEGER = range(3)
_KINDS = {"bytes": _BYTES, "text": _BYTES, "float32": _FLOAT}
_POLYNOMIAL = 0xEDB88320
"""The polynomial of zlib's CRC-32, reflected."""


def group_crcs(columns: Mapping[str, pa.ChunkedArray], rows: int) -> NDArray[np.uint32]:
    """(rows,) what the crc column has to hold; a column that is not there is null in every row. Raises ValueError, and
    what Arrow raises, for columns that a damaged file gives."""
    there = [column for column in COLUMNS if column.name in columns and column.name != "crc"]
    valid = np.zeros((len(there), rows), np.bool_)
    values = np.zeros((len(there), rows), np.int64)
    lengths = np.zeros((len(there), rows), np.int64)
    data: list[NDArray[np.uint8]] = []
    held = 0
    for c, column in enumerate(there):
        at = 0
        for chunk in columns[column.name].chunks:
            here = slice(at, at + len(chunk))
            valid[c, here] = chunk.is_valid().to_numpy(zero_copy_only=False)
            if column.name in _BYTES_COLUMNS:
                starts, lengths[c, here], buffer = _spans(chunk)
                values[c, here] = starts + held
                data.append(buffer)
                held += len(buffer)
            else:
                values[c, here] = _bits(chunk)
            at += len(chunk)
    kinds = np.array([_KINDS.get(column.kind, _INTEGER) for column in there], np.int64)
    numbers = np.array([column.number for column in there], np.int64)
    joined = np.concatenate(data) if data else np.zeros(0, np.uint8)
    crcs: NDArray[np.uint32] = _crcs(kinds, numbers, valid, values, lengths, joined, CRC_TABLES)
    return crcs


_BYTES_COLUMNS = {column.name for column in COLUMNS if column.kind in ("bytes", "text")}


def _spans(chunk: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Start and length of each value, and the buffer that they are in."""
    import pyarrow as pa

    if isinstance(chunk, pa.DictionaryArray):
        starts, lengths, buffer = _spans(chunk.dictionary)
        if not len(starts):
            return np.zeros(len(chunk), np.int64), np.zeros(len(chunk), np.int64), buffer
        which: NDArray[np.int64] = chunk.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        if not 0 <= which.min(initial=0) <= which.max(initial=0) < len(starts):
            raise ValueError("a dictionary has fewer values than are asked of it")
        return starts[which], lengths[which], buffer
    wide = pa.types.is_large_binary(chunk.type) or pa.types.is_large_string(chunk.type)
    _, offsets, content = chunk.buffers()
    edges = np.frombuffer(offsets, np.int64 if wide else np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    ends: NDArray[np.int64] = edges.astype(np.int64)
    buffer = np.zeros(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    return ends[:-1], np.diff(ends), buffer


def _bits(chunk: Any) -> NDArray[np.int64]:
    """Integers and truth values as they are, floats as their 32 bits."""
    import pyarrow as pa

    if isinstance(chunk, pa.DictionaryArray):
        chunk = chunk.dictionary_decode()
    filled = chunk.fill_null(False if pa.types.is_boolean(chunk.type) else 0).to_numpy(zero_copy_only=False)
    found: NDArray[np.int64] = (filled.view(np.uint32) if filled.dtype == np.float32 else filled).astype(np.int64)
    return found


def _make_tables() -> NDArray[np.uint32]:
    """(8, 256): what a byte makes of the remainder, and what it makes of it 1 to 7 bytes later."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (_POLYNOMIAL if remainder & 1 else 0)
        tables[0, byte] = remainder
    for later in range(1, 8):
        before = tables[later - 1]
        tables[later] = before >> 8 ^ tables[0][before & 255]
    return tables


CRC_TABLES = _make_tables()


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _crcs(
    kinds: NDArray[np.int64],
    numbers: NDArray[np.int64],
    valid: NDArray[np.bool_],
    values: NDArray[np.int64],
    lengths: NDArray[np.int64],
    data: NDArray[np.uint8],
    tables: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    columns, rows = values.shape
    out = np.empty(rows, np.uint32)
    for r in range(rows):
        crc = np.uint32(0xFFFFFFFF)
        for c in range(columns):
            if not valid[c, r]:
                continue
            crc = tables[0, (crc ^ np.uint32(numbers[c])) & np.uint32(255)] ^ (crc >> np.uint32(8))
            number = lengths[c, r] if kinds[c] == _BYTES else values[c, r]
            for i in range(4 if kinds[c] == _FLOAT else 8):
                byte = np.uint32((number >> (8 * i)) & 255)
                crc = tables[0, (crc ^ byte) & np.uint32(255)] ^ (crc >> np.uint32(8))
            if kinds[c] == _BYTES:
                crc = _over(crc, data, values[c, r], values[c, r] + lengths[c, r], tables)
        out[r] = crc ^ np.uint32(0xFFFFFFFF)
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _over(crc: np.uint32, data: NDArray[np.uint8], at: int, stop: int, tables: NDArray[np.uint32]) -> np.uint32:
    """The remainder after bytes `at` to `stop`, eight at a time (Kounavis and Berry 2005, "slicing-by-8")."""
    low = np.uint32(255)
    while stop - at >= 8:
        a = crc ^ (
            np.uint32(data[at])
            | np.uint32(data[at + 1]) << np.uint32(8)
            | np.uint32(data[at + 2]) << np.uint32(16)
            | np.uint32(data[at + 3]) << np.uint32(24)
        )
        crc = (
            tables[7, a & low]
            ^ tables[6, (a >> np.uint32(8)) & low]
            ^ tables[5, (a >> np.uint32(16)) & low]
            ^ tables[4, a >> np.uint32(24)]
            ^ tables[3, data[at + 4]]
            ^ tables[2, data[at + 5]]
            ^ tables[1, data[at + 6]]
            ^ tables[0, data[at + 7]]
        )
        at += 8
    while at < stop:
        crc = tables[0, (crc ^ np.uint32(data[at])) & low] ^ (crc >> np.uint32(8))
        at += 1
    return crc
