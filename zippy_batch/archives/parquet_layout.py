"""The footer and the page headers of a Parquet file, as archives have them.

A Parquet library believes what it is given: a page header of a few bytes can claim gigabytes, delta and dictionary
encodings can make gigabytes out of a small page, and some nonsense in a footer stops the process. Here both are read
first, and refused unless they are of the one form that a writer of archives gives them.

Format: apache/parquet-format, parquet.thrift; field numbers are those of its structures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from zippy_batch.archives.schema import BY_NAME, COLUMNS, METADATA_KEY, Column, Kind
from zippy_batch.archives.thrift import BINARY, BOOL, BYTE, I16, I32, I64, Struct, list_of, parse_struct, struct_of

_EMPTY = struct_of({})
_LOGICAL_TYPE = struct_of({1: _EMPTY, 10: struct_of({1: BYTE, 2: BOOL})})
_SCHEMA_ELEMENT = struct_of({1: I32, 3: I32, 4: BINARY, 5: I32, 6: I32, 10: _LOGICAL_TYPE})
_ENCODING_STATS = struct_of({1: I32, 2: I32, 3: I32})
_SIZE_STATISTICS = struct_of({1: I64, 2: list_of(I64), 3: list_of(I64)})
_CHUNK_METADATA = struct_of(
    {
        1: I32,
        2: list_of(I32),
        3: list_of(BINARY),
        4: I32,
        5: I64,
        6: I64,
        7: I64,
        9: I64,
        11: I64,
        13: list_of(_ENCODING_STATS),
        16: _SIZE_STATISTICS,
    }
)
_CHUNK = struct_of({2: I64, 3: _CHUNK_METADATA})
_ROW_GROUP = struct_of({1: list_of(_CHUNK), 2: I64, 3: I64, 5: I64, 6: I64, 7: I16})
_FOOTER = struct_of(
    {
        1: I32,
        2: list_of(_SCHEMA_ELEMENT),
        3: I64,
        4: list_of(_ROW_GROUP),
        5: list_of(struct_of({1: BINARY, 2: BINARY})),
        6: BINARY,
        7: list_of(struct_of({1: _EMPTY})),
    }
)
_PAGE_HEADER = struct_of(
    {
        1: I32,
        2: I32,
        3: I32,
        4: I32,
        5: struct_of({1: I32, 2: I32, 3: I32, 4: I32, 5: _EMPTY}),
        7: struct_of({1: I32, 2: I32, 3: BOOL}),
    }
)
_PAGE_HEADER_BYTES = 128

_REQUIRED, _OPTIONAL = 0, 1
_SCHEMA_TYPES: Mapping[Kind, Struct] = {
    "bool": {1: 0},
    "int32": {1: 1},
    "uint32": {1: 1, 6: 13, 10: {10: {1: 32, 2: False}}},
    "int64": {1: 2},
    "float32": {1: 4},
    "bytes": {1: 6},
    "text": {1: 6, 6: 0, 10: {1: {}}},
}
_ENCODINGS = {
    "PLAIN": 0,
    "DELTA_BINARY_PACKED": 5,
    "DELTA_LENGTH_BYTE_ARRAY": 6,
    "DELTA_BYTE_ARRAY": 7,
    "DICTIONARY": 8,
    "BYTE_STREAM_SPLIT": 9,
}
_PLAIN, _RLE = 0, 3
_UNCOMPRESSED, _ZSTD = 0, 6
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2


@dataclass(frozen=True)
class Chunk:
    """A column of a row group: bytes `start` to `stop` of the file."""

    start: int
    stop: int
    decompressed_bytes: int
    zstd: bool


@dataclass(frozen=True)
class RowGroup:
    rows: int
    chunks: Mapping[str, Chunk]
    """Column name -> chunk."""

    @property
    def stored_bytes(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.chunks.values())

    @property
    def decompressed_bytes(self) -> int:
        return sum(chunk.decompressed_bytes for chunk in self.chunks.values())


@dataclass(frozen=True)
class Footer:
    groups: tuple[RowGroup, ...]
    description: bytes
    """Value of METADATA_KEY."""


def parse_footer(data: bytes, footer_at: int) -> Footer:
    """The footer, which starts at offset `footer_at` of its file. Raises ValueError."""
    try:
        footer, size_bytes = parse_struct(data, _FOOTER)
        if size_bytes != len(data):
            raise ValueError("bytes after the end of the footer")
        names = _column_names(footer[2])
        groups = tuple(_row_group(group, names, footer_at) for group in footer[4])
        if footer[3] != sum(group.rows for group in groups):
            raise ValueError("row groups do not add up")
        [pair] = footer[5]
        if pair[1] != METADATA_KEY.encode():
            raise ValueError(f"no metadata of the name {METADATA_KEY}")
        return Footer(groups, pair[2])
    except KeyError as error:
        raise ValueError(f"field {error} of the footer is missing") from error


def _column_names(schema: Sequence[Struct]) -> list[str]:
    """Raises ValueError unless the columns are those of this format, in its order, and all that are required."""
    if not schema or schema[0].get(5) != len(schema) - 1 or 1 in schema[0] or schema[0].get(3, 0) != 0:
        raise ValueError("its columns are nested")
    found = {bytes(element.get(4, b"")): element for element in schema[1:]}
    names = [column.name for column in COLUMNS if column.name.encode() in found]
    unknown = found.keys() - {name.encode() for name in names}
    if unknown:
        raise ValueError(f"unknown column {min(unknown)!r}")
    missing = [column.name for column in COLUMNS if not column.nullable and column.name not in names]
    if missing:
        raise ValueError(f"column {missing[0]} is missing")
    if [_schema_element(BY_NAME[name]) for name in names] != list(schema[1:]):
        raise ValueError("columns of another type or in another order")
    return names


def _schema_element(column: Column) -> Struct:
    repetition = _OPTIONAL if column.nullable else _REQUIRED
    return {**_SCHEMA_TYPES[column.kind], 3: repetition, 4: column.name.encode()}


def _row_group(group: Struct, names: Sequence[str], footer_at: int) -> RowGroup:
    rows, chunks = group[3], group[1]
    if len(chunks) != len(names):
        raise ValueError("row group with another number of columns")
    return RowGroup(rows, {n: _chunk(c[3], BY_NAME[n], rows, footer_at) for n, c in zip(names, chunks, strict=True)})


def _chunk(chunk: Struct, column: Column, rows: int, footer_at: int) -> Chunk:
    dictionary_at, data_at = chunk.get(11), chunk[9]
    start = data_at if dictionary_at is None else dictionary_at
    stop = start + chunk[7]
    if not 4 <= start <= data_at <= stop <= footer_at:
        raise ValueError(f"column {column.name} lies outside the file")
    if chunk[3] != [column.name.encode()] or chunk[5] != rows or chunk[6] < 0:
        raise ValueError(f"column {column.name} is not what the schema says")
    if chunk[1] != _SCHEMA_TYPES[column.kind][1] or chunk[4] not in (_UNCOMPRESSED, _ZSTD):
        raise ValueError(f"column {column.name} has another type or compression")
    levels = chunk.get(16, {})
    if levels.get(2) or len(levels.get(3, [])) not in ((0, 2) if column.nullable else (0,)):
        raise ValueError(f"column {column.name} has levels that a flat column has not")
    return Chunk(start, stop, chunk[6], zstd=chunk[4] == _ZSTD)


@dataclass(frozen=True)
class Page:
    start: int
    """Offset in the file of what follows the header."""
    stored_bytes: int
    decompressed_bytes: int
    values: int
    """0 for a dictionary."""


def check_pages(file: BinaryIO, chunk: Chunk, column: Column, rows: int) -> None:
    """Raises ValueError where page headers contradict the footer, or where an encoding could make more of a page than
    its decompressed size."""
    for _ in walk_pages(file, chunk, column, rows):
        pass


def walk_pages(file: BinaryIO, chunk: Chunk, column: Column, rows: int) -> Iterator[Page]:
    """The pages of a chunk. Raises ValueError as `check_pages` does, after the last page that is right."""
    at, values, decompressed_bytes = chunk.start, 0, 0
    while at < chunk.stop:
        file.seek(at)
        header, header_bytes = parse_struct(file.read(_PAGE_HEADER_BYTES), _PAGE_HEADER)
        if min(header.get(2, -1), header.get(3, -1)) < 0:
            raise ValueError("page of no size")
        page = Page(at + header_bytes, header[3], header[2], _values(header, column, first=at == chunk.start))
        at = page.start + page.stored_bytes
        values += page.values
        decompressed_bytes += header_bytes + page.decompressed_bytes
        if values > rows or at > chunk.stop or decompressed_bytes > chunk.decompressed_bytes:
            raise ValueError("its pages hold more than the footer says")
        yield page
    if values != rows:
        raise ValueError("its pages do not add up")


def _values(header: Struct, column: Column, first: bool) -> int:
    """Values of a data page, 0 for a dictionary."""
    # a dictionary that grows too large is given up, and the values go on as they are
    allowed = {_ENCODINGS[column.encoding]} | ({_PLAIN} if column.encoding == "DICTIONARY" else set())
    if header.get(1) == _DICTIONARY_PAGE and 7 in header and 5 not in header:
        if not first or column.encoding != "DICTIONARY" or header[7].get(2) != _PLAIN:
            raise ValueError("dictionary where there is none")
        return 0
    if header.get(1) != _DATA_PAGE or 5 not in header or 7 in header:
        raise ValueError("page of another kind")
    data = header[5]
    if data.get(2) not in allowed or data.get(3) != _RLE or data.get(4) != _RLE or data.get(1, 0) < 1:
        raise ValueError("page of another encoding")
    return int(data[1])
