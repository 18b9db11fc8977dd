"""What is left of a damaged column of byte strings, page by page.

A Parquet library gives up a whole column of a row group for one flipped bit. Payloads and kept files are in pages of
some 64 KiB, and here those pages are decoded that still can be. What comes out is checked against its row's checksum
like everything else, so a page that decodes to nonsense does no harm.

Format: apache/parquet-format, Encodings.md: RLE levels, DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from zippy_batch.archives.parquet_layout import Chunk, Page, walk_pages
from zippy_batch.archives.schema import Column, Value
from zippy_batch.archives.thrift import ThriftReader
from zippy_batch.stores.object_path import Place


class Lost(Enum):
    """Stands for a value that cannot be read."""

    LOST = 0


LOST: Final = Lost.LOST


def salvage(path: Place, chunk: Chunk, column: Column, rows: int) -> list[Value | Lost]:
    """The values of a DELTA_LENGTH_BYTE_ARRAY column, LOST where damage is. Raises OSError."""
    found: list[Value | Lost] = []
    with path.open("rb") as file:
        try:
            for page in walk_pages(file, chunk, column, rows):
                file.seek(page.start)
                found += _page(file.read(page.stored_bytes), page, chunk.zstd, column.nullable)
        except (ValueError, IndexError):
            pass
    return found + [LOST] * (rows - len(found))


def _page(data: bytes, page: Page, zstd: bool, nullable: bool) -> list[Value | Lost]:
    import pyarrow as pa

    try:
        if zstd:
            data = pa.decompress(data, page.decompressed_bytes, "zstd", asbytes=True)
        reader = ThriftReader(data)
        present = _levels(reader, page.values) if nullable else [True] * page.values
        lengths = _packed(reader, sum(present))
        values = iter([reader.take(length) for length in lengths])
        return [next(values) if here else None for here in present]
    except (ValueError, IndexError, OSError):
        return [LOST] * page.values


def _levels(reader: ThriftReader, count: int) -> list[bool]:
    """Which of `count` values are not null: 4 bytes of length, then runs and bit-packed groups of 8."""
    size_bytes = int.from_bytes(reader.take(4), "little")
    stop = reader.at + size_bytes
    present: list[bool] = []
    while reader.at < stop and len(present) < count:
        head = reader.varint()
        if head & 1:
            bits = reader.take(head >> 1)
            present += [bool(byte >> i & 1) for byte in bits for i in range(8)]
        else:
            present += [bool(reader.byte())] * min(head >> 1, count)
    if reader.at != stop or len(present) < count:
        raise ValueError("levels do not add up")
    return present[:count]


def _packed(reader: ThriftReader, count: int) -> list[int]:
    """`count` integers as DELTA_BINARY_PACKED."""
    block_values, miniblocks, total, value = reader.varint(), reader.varint(), reader.varint(), reader.zigzag()
    if total != count or not 0 < miniblocks <= block_values <= 1 << 16 or block_values % (8 * miniblocks):
        raise ValueError("lengths do not add up")
    per_miniblock = block_values // miniblocks
    values = [value] if count else []
    while len(values) < count:
        least = reader.zigzag()
        widths = reader.take(miniblocks)
        for width in widths:
            if len(values) >= count:
                break
            packed = int.from_bytes(reader.take(per_miniblock * width // 8), "little")
            for i in range(min(per_miniblock, count - len(values))):
                value += least + (packed >> i * width & (1 << width) - 1)
                values.append(value)
    if any(not length >= 0 for length in values):
        raise ValueError("negative length")
    return values
