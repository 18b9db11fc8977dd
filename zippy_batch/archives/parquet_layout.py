"""The footer, the page index and the page headers of a Parquet file, as archives have them.

A Parquet library believes what it is given: a page header of a few bytes can claim gigabytes, delta and dictionary
encodings can make gigabytes out of a small page, and some nonsense in a footer stops the process. Here all of it is
read first, and refused unless it is of the one form that a writer of archives gives it. The library is then handed
small files that are made here (`small_file`), of pages that were checked.

Format: apache/parquet-format, parquet.thrift; field numbers are those of its structures.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zippy_batch.archives.mending import MAX_MENDED_BYTES, mended
from zippy_batch.archives.schema import BY_NAME, COLUMNS, METADATA_KEY, Column, Kind
from zippy_batch.archives.thrift import (
    BINARY,
    BOOL,
    BYTE,
    I32,
    I64,
    Struct,
    list_of,
    parse_struct,
    struct_of,
    write_struct,
)

MAGIC = b"PAR1"

_EMPTY = struct_of({})
_LOGICAL_TYPE = struct_of({1: _EMPTY, 10: struct_of({1: BYTE, 2: BOOL})})
_SCHEMA_ELEMENT = struct_of({1: I32, 3: I32, 4: BINARY, 5: I32, 6: I32, 10: _LOGICAL_TYPE})
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
        12: struct_of({5: BINARY, 6: BINARY}),
    }
)
_CHUNK = struct_of({2: I64, 3: _CHUNK_METADATA, 4: I64, 5: I32})
_ROW_GROUP = struct_of({1: list_of(_CHUNK), 2: I64, 3: I64})
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
_PAGE_INDEX = struct_of({1: list_of(struct_of({1: I64, 2: I32, 3: I64}))})
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
_MAX_I32 = (1 << 31) - 1
PAGE_HEADER_BYTES = 64
"""More than a page header has."""

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
class Page:
    """A page, which starts with its header: bytes `start` to `stop` of the file, and the rows it is of."""

    start: int
    stop: int
    first_row: int
    """Number of its first row in the row group."""
    rows: int
    """0 for a dictionary."""


@dataclass(frozen=True)
class Chunk:
    """A column of a row group: bytes `start` to `stop` of the file."""

    start: int
    data_at: int
    """Position of the first data page; a dictionary comes before it."""
    stop: int
    decompressed_bytes: int
    """Bytes of its pages, decompressed, headers included."""
    index: tuple[int, int] | None = None
    """Offset and size of its page index; None where it has one data page."""
    least: bytes | None = None
    most: bytes | None = None
    """Bounds of its values, of paths only, and only where they are short."""


@dataclass(frozen=True)
class RowGroup:
    rows: int
    chunks: Mapping[str, Chunk]
    """Chunks by column, in the order of COLUMNS, one after another in the file."""

    @property
    def start(self) -> int:
        return next(iter(self.chunks.values())).start

    @property
    def stop(self) -> int:
        return self.start + self.stored_bytes

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


# ---- footer ----


def parse_footer(data: bytes, footer_at: int) -> Footer:
    """The footer, which starts at offset `footer_at` of its file. Raises ValueError."""
    try:
        footer, size_bytes = parse_struct(data, _FOOTER)
        if size_bytes != len(data):
            raise ValueError("bytes after the end of the footer")
        if footer[2] != _schema(COLUMNS):
            raise ValueError("its columns are not those of an archive")
        at, groups = len(MAGIC), []
        for found in footer[4]:
            groups.append(_row_group(found, at, footer_at))
            at = groups[-1].stop
        if footer[3] != sum(group.rows for group in groups):
            raise ValueError("row groups do not add up")
        [pair] = footer[5]
        if pair[1] != METADATA_KEY.encode():
            raise ValueError(f"no metadata of the name {METADATA_KEY}")
        return Footer(tuple(groups), pair[2])
    except KeyError as error:
        raise ValueError(f"field {error} of the footer is missing") from error


def write_footer(groups: Sequence[RowGroup], description: bytes, created_by: bytes) -> bytes:
    """Inverse of `parse_footer`."""
    return _footer(COLUMNS, groups, {5: [{1: METADATA_KEY.encode(), 2: description}], 6: created_by})


def _footer(columns: Sequence[Column], groups: Sequence[RowGroup], more: Struct) -> bytes:
    return write_struct(
        {
            1: 2,
            2: _schema(columns),
            3: sum(group.rows for group in groups),
            4: [_group_struct(group) for group in groups],
            7: [{1: {}} for _ in columns],
            **more,
        },
        _FOOTER,
    )


def _schema(columns: Sequence[Column]) -> list[Struct]:
    return [{3: _REQUIRED, 4: b"schema", 5: len(columns)}, *(_schema_element(column) for column in columns)]


def _schema_element(column: Column) -> Struct:
    repetition = _OPTIONAL if column.nullable else _REQUIRED
    return {**_SCHEMA_TYPES[column.kind], 3: repetition, 4: column.name.encode()}


def _group_struct(group: RowGroup) -> Struct:
    chunks = [_chunk_struct(BY_NAME[name], chunk, group.rows) for name, chunk in group.chunks.items()]
    return {1: chunks, 2: group.decompressed_bytes, 3: group.rows}


def _chunk_struct(column: Column, chunk: Chunk, rows: int) -> Struct:
    """A chunk is all that a reader may not know beforehand."""
    encodings = [_PLAIN, _RLE, _ENCODINGS["DICTIONARY"]] if column.encoding == "DICTIONARY" else []
    metadata: Struct = {
        1: _SCHEMA_TYPES[column.kind][1],
        2: encodings or [_RLE, _ENCODINGS[column.encoding]],
        3: [column.name.encode()],
        4: _UNCOMPRESSED if column.zstd_level is None else _ZSTD,
        5: rows,
        6: chunk.decompressed_bytes,
        7: chunk.stop - chunk.start,
        9: chunk.data_at,
    }
    if chunk.data_at > chunk.start:
        metadata[11] = chunk.start
    if chunk.least is not None and chunk.most is not None:
        metadata[12] = {5: chunk.most, 6: chunk.least}
    index = {} if chunk.index is None else {4: chunk.index[0], 5: chunk.index[1]}
    return {2: 0, 3: metadata, **index}


def _row_group(group: Struct, at: int, footer_at: int) -> RowGroup:
    """Raises ValueError unless its chunks follow one another from `at` on, as a writer of archives puts them."""
    rows, found = group[3], group[1]
    if len(found) != len(COLUMNS):
        raise ValueError("row group with another number of columns")
    chunks = {}
    for column, struct in zip(COLUMNS, found, strict=True):
        metadata = struct[3]
        start = metadata.get(11, metadata[9])
        bounds = metadata.get(12, {})
        index = (struct[4], struct[5]) if 4 in struct else None
        chunk = Chunk(start, metadata[9], start + metadata[7], metadata[6], index, bounds.get(6), bounds.get(5))
        if struct != _chunk_struct(column, chunk, rows) or (12 in metadata and column.name != "path"):
            raise ValueError(f"column {column.name} is not what an archive has")
        if not at == chunk.start <= chunk.data_at <= chunk.stop <= footer_at or chunk.decompressed_bytes < 0:
            raise ValueError(f"column {column.name} lies outside the file, or where another is")
        if (chunk.data_at > chunk.start) != (column.encoding == "DICTIONARY"):
            raise ValueError(f"column {column.name} has a dictionary that it should not have, or none")
        chunks[column.name] = chunk
        at = chunk.stop
    built = RowGroup(rows, chunks)
    if group[2] != built.decompressed_bytes:
        raise ValueError("sizes of a row group do not add up")
    return built


# ---- page index ----


def write_page_index(pages: Sequence[Page]) -> bytes:
    """The page index of the data pages of a chunk."""
    return write_struct({1: [{1: p.start, 2: p.stop - p.start, 3: p.first_row} for p in pages]}, _PAGE_INDEX)


def pages_of(chunk: Chunk, rows: int, index: bytes | None) -> list[Page]:
    """The dictionary, where there is one, and the data pages. Raises ValueError for an index that is not of this
    chunk."""
    dictionary = [Page(chunk.start, chunk.data_at, 0, 0)] if chunk.data_at > chunk.start else []
    if index is None:
        return [*dictionary, Page(chunk.data_at, chunk.stop, 0, rows)]
    found, size_bytes = parse_struct(index, _PAGE_INDEX)
    places = found.get(1, [])
    if size_bytes != len(index) or any(len(place) != 3 for place in places):
        raise ValueError("page index of another form")
    ends = [place[3] for place in places[1:]] + [rows]
    pages = [Page(p[1], p[1] + p[2], p[3], end - p[3]) for p, end in zip(places, ends, strict=True)]
    edges = [chunk.data_at, *(page.stop for page in pages)]
    if [page.start for page in pages] + [chunk.stop] != edges or not pages or pages[0].first_row:
        raise ValueError("page index of another column")
    if any(page.rows < 1 or page.stop <= page.start for page in pages):
        raise ValueError("page index with a page of nothing")
    return [*dictionary, *pages]


# ---- page headers ----


@dataclass(frozen=True)
class PageHeader:
    size_bytes: int
    """Bytes of the header itself."""
    decompressed_bytes: int
    """Bytes of what follows, decompressed."""
    crc: int
    dictionary_values: int | None
    """None for a data page."""


def check_page(data: bytes, column: Column, page: Page) -> PageHeader:
    """Header of a page, all of whose bytes these are. Raises ValueError, or IndexError at their end, where it is
    another page's or of another form, or where the page's checksum is wrong."""
    header = _parse_header(data[:PAGE_HEADER_BYTES], len(data), column, page)
    if zlib.crc32(memoryview(data)[header.size_bytes :]) != header.crc:
        raise ValueError("page with a wrong checksum")
    if _content_bytes(data, len(data), header, column) != header.decompressed_bytes:
        raise ValueError("page that claims another size than it has")
    return header


def parse_page(data: bytes, column: Column, page: Page) -> PageHeader:
    """Does what `check_page` does, but for the checksum."""
    return _parse_header(data[:PAGE_HEADER_BYTES], len(data), column, page)


def mended_page(data: bytes, column: Column, page: Page) -> bytes | None:
    """The page as it was written, where one byte of it is damaged; itself where none is, None where more is."""
    try:
        header = _parse_header(data[:PAGE_HEADER_BYTES], len(data), column, page)
    except (ValueError, IndexError):
        return _with_mended_header(data, column, page)
    for body in mended(data[header.size_bytes :], header.crc):
        found = _content_bytes(data[: header.size_bytes] + body[:18], len(data), header, column)
        if (found, _dictionary_values(body, column, page)) == _said(header):
            return data[: header.size_bytes] + body
    return _with_mended_header(data, column, page)


def _with_mended_header(data: bytes, column: Column, page: Page) -> bytes | None:
    """Mend a page as `mended_page` does, for damage in the header: what follows it tells what it was."""
    forms: list[Struct] = [{}, {5: {5: {}}}] if page.rows else [{}]
    for size_bytes in range(1, min(PAGE_HEADER_BYTES, len(data)) + 1):
        for free in forms:
            header = _header_before(data, size_bytes, _header_struct(free, column, page), column, page)
            if len(header) == size_bytes and sum(map(operator.ne, header, data)) == 1:
                return header + data[size_bytes:]
    return None


def _header_before(data: bytes, size_bytes: int, header: Struct, column: Column, page: Page) -> bytes:
    """The header with the sizes and the checksum of what follows so many bytes of a page; empty where it has another
    size."""
    body = memoryview(data)[size_bytes:]
    content_bytes = len(body) if column.zstd_level is None else zstd_content_bytes(bytes(body[:18]))
    if content_bytes is None or content_bytes > _MAX_I32:
        return b""
    header |= {2: content_bytes, 3: len(body), 4: 0}
    # a checksum and a number of values take one to five bytes
    if not 0 <= size_bytes - len(write_struct(header, _PAGE_HEADER)) <= 8:
        return b""
    crc = zlib.crc32(body)
    header[4] = crc - (crc >> 31 << 32)
    if not page.rows:
        values = _dictionary_values(bytes(body), column, page)
        if values is None:
            return b""
        header[7][1] = values
    return write_struct(header, _PAGE_HEADER)


def _said(header: PageHeader) -> tuple[int, int | None]:
    return header.decompressed_bytes, header.dictionary_values


def _parse_header(data: bytes, size_bytes: int, column: Column, page: Page) -> PageHeader:
    """Read the header of a page of this size that begins with these bytes."""
    header, header_bytes = parse_struct(data, _PAGE_HEADER)
    if header != _header_struct(header, column, page) or header[3] != size_bytes - header_bytes or header[2] < 0:
        raise ValueError("page of another kind or size")
    values = None if page.rows else int(header[7][1])
    return PageHeader(header_bytes, header[2], header[4] & 0xFFFFFFFF, values)


def _content_bytes(data: bytes, size_bytes: int, header: PageHeader, column: Column) -> int | None:
    """Size of the content, decompressed, of a page of this size that begins so; None where there is no telling."""
    at = header.size_bytes
    return size_bytes - at if column.zstd_level is None else zstd_content_bytes(data[at : at + 18])


def _dictionary_values(body: bytes, column: Column, page: Page) -> int | None:
    """Number of values in a dictionary page, as its content tells it; None for a data page, and where it is nonsense.

    A checksum does not cover it, and a library that believes a wrong number finds out when it decodes.
    """
    if page.rows:
        return None
    if column.kind not in ("text", "bytes"):
        return len(body) // _WIDTHS[column.kind]
    try:
        if column.zstd_level is not None:
            body = _decompressed(body)
        at = values = 0
        while at < len(body):
            at += 4 + int.from_bytes(body[at : at + 4], "little")
            values += 1
        return values if at == len(body) else None
    except (ValueError, OSError):
        return None


_WIDTHS: Mapping[Kind, int] = {"int32": 4, "int64": 8, "float32": 4, "uint32": 4}


def _decompressed(data: bytes) -> bytes:
    """A zstd frame of at most MAX_MENDED_BYTES. Raises ValueError, and OSError as pyarrow does."""
    import pyarrow as pa

    size_bytes = zstd_content_bytes(data[:18])
    if size_bytes is None or size_bytes > MAX_MENDED_BYTES:
        raise ValueError("a page that says no size, or too large a one")
    return bytes(pa.decompress(data, size_bytes, "zstd", asbytes=True))


def _header_struct(header: Struct, column: Column, page: Page) -> Struct:
    """What the header must be, whatever its sizes and checksum."""
    free = {2: header.get(2, -1), 3: header.get(3, -1), 4: header.get(4, 0)}
    if not page.rows:
        values = header.get(7, {}).get(1, -1)
        return {1: _DICTIONARY_PAGE, **free, 7: {1: max(0, values), 2: _PLAIN, 3: False}}
    unread: Struct = {5: {}} if 5 in header.get(5, {}) else {}
    return {1: _DATA_PAGE, **free, 5: {1: page.rows, 2: _ENCODINGS[column.encoding], 3: _RLE, 4: _RLE, **unread}}


def split_pages(data: bytes, start: int, column: Column, rows: int) -> list[Page]:
    """The pages of a chunk that a library has just written to offset `start`; no page index is needed."""
    pages, at, row = [], 0, 0
    while at < len(data):
        header, size_bytes = parse_struct(data[at : at + PAGE_HEADER_BYTES], _PAGE_HEADER)
        stop = at + size_bytes + header[3]
        values = header[5][1] if 5 in header else 0
        page = Page(start + at, start + stop, row, values)
        check_page(data[at:stop], column, page)
        pages.append(page)
        at, row = stop, row + values
    if row != rows:
        raise ValueError(f"{row} values of column {column.name} instead of {rows}")
    return pages


def zstd_content_bytes(start: bytes) -> int | None:
    """What a zstd frame that begins so says that it holds (RFC 8878, 3.1.1.1); None where it does not."""
    if start[:4] != b"\x28\xb5\x2f\xfd" or len(start) < 6:
        return None
    descriptor = start[4]
    single, wide = descriptor >> 5 & 1, descriptor >> 6
    size_bytes = (single, 2, 4, 8)[wide]
    at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    if not size_bytes or len(start) < at + size_bytes:
        return None
    return int.from_bytes(start[at : at + size_bytes], "little") + (256 if wide == 1 else 0)


# ---- small files ----


CheckedPage = tuple[bytes, PageHeader]


def small_file(columns: Mapping[str, Sequence[CheckedPage]], rows: int) -> bytes:
    """A Parquet file of one row group of some columns, for a Parquet library to decode: by column, its dictionary page
    where it has one, and data pages of so many rows."""
    at, pieces, chunks = len(MAGIC), [MAGIC], {}
    for name, pages in columns.items():
        pieces += [data for data, _ in pages]
        stop = at + sum(len(data) for data, _ in pages)
        data_at = at + (len(pages[0][0]) if BY_NAME[name].encoding == "DICTIONARY" else 0)
        chunks[name] = Chunk(at, data_at, stop, sum(h.size_bytes + h.decompressed_bytes for _, h in pages))
        at = stop
    footer = _footer([BY_NAME[name] for name in columns], [RowGroup(rows, chunks)], {})
    return b"".join([*pieces, footer, len(footer).to_bytes(4, "little"), MAGIC])
