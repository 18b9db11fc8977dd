"""One Parquet file of an archive: how it is written, its checked footer, and its columns.

    PAR1 | row groups | models | page index | guard | footer | size of the footer | PAR1

Every byte of it is under a checksum: pages under their own, which is in their header, models and page index and footer
under those in the guard and in the description. One damaged byte in any of them is put right from its checksum
(`mending.py`), and said. What a hostile file could make a Parquet library do is bounded here: sizes, encodings and page
headers are checked before anything is decoded. What the library raises becomes an ArchiveError.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from zippy_batch.archives.description import Head, check_version, parse_head
from zippy_batch.archives.mending import mended
from zippy_batch.archives.parquet_layout import (
    MAGIC,
    CheckedPage,
    Chunk,
    Footer,
    Page,
    PageHeader,
    RowGroup,
    check_page,
    mended_page,
    pages_of,
    parse_footer,
    parse_page,
    small_file,
    split_pages,
    write_footer,
    write_page_index,
)
from zippy_batch.archives.schema import (
    BY_NAME,
    COLUMNS,
    GROUP_BYTES,
    MAX_GROUPS,
    MAX_ROWS_PER_GROUP,
    MAX_STORED_BYTES,
    MAX_STORED_PATH_BYTES,
    METADATA_KEY,
    Column,
    Value,
)
from zippy_batch.errors import ArchiveError, StorageError
from zippy_batch.stores.atomic_file import ONLY_WRITING
from zippy_batch.stores.object_path import TAIL_BYTES, ObjectFile, ObjectPath, Place, reading

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_GUARD = struct.Struct("<4sIII")
_GUARD_MAGIC = b"ZBG3"
_GUARD_BYTES = _GUARD.size + 4
_MAX_FOOTER_BYTES = 1 << 24
_MAX_GROUP_BYTES = MAX_STORED_BYTES + 2 * GROUP_BYTES
_PAGE_BYTES = 1 << 16
_BOUND_BYTES = 128
"""Most bytes of the least and the greatest path of a row group; longer ones are not noted."""
_BATCH_BYTES = 1 << 26
"""Bytes of paths decoded at a time, whatever a page claims: DELTA_BYTE_ARRAY can repeat a long prefix in every row."""
_DICTIONARY_BYTES = [c.name for c in COLUMNS if c.encoding == "DICTIONARY" and c.kind in ("text", "bytes")]
_MAX_MENDED = 64
"""Pages of a file that are searched for a damaged byte: more are not one byte's damage."""


# ---- writing ----


class Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> Any: ...
    def tell(self) -> int: ...


class PartWriter:
    """Writes row groups to a file, which is a Parquet file once it is finished."""

    def __init__(self, sink: Sink) -> None:
        import pyarrow as pa

        self._sink = sink
        self._groups: list[RowGroup] = []
        self._pages: list[dict[str, list[Page]]] = []
        self._created_by = f"parquet-cpp-arrow version {pa.cpp_version}".encode()
        sink.write(MAGIC)

    def add_table(self, table: pa.Table) -> None:
        """A row group of all columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        with pq.ParquetWriter(
            buffer,
            table.schema,
            version="2.6",
            data_page_version="1.0",
            use_dictionary=[c.name for c in COLUMNS if c.encoding == "DICTIONARY"],
            column_encoding={c.name: c.encoding for c in COLUMNS if c.encoding != "DICTIONARY"},
            compression={c.name: "NONE" if c.zstd_level is None else "ZSTD" for c in COLUMNS},
            compression_level={c.name: c.zstd_level for c in COLUMNS if c.zstd_level is not None},
            # values of a column with a dictionary are always in it: a page header has no choice that a bit could flip
            dictionary_pagesize_limit=_MAX_GROUP_BYTES,
            # small pages are what is read of one row and lost with one, and cost 0.2 B/row; the size is looked at
            # after each batch
            data_page_size=_PAGE_BYTES,
            write_batch_size=1,
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
        ) as writer:
            writer.write_table(table, row_group_size=table.num_rows)
        data = buffer.getvalue()
        found = pq.read_metadata(pa.BufferReader(data)).row_group(0)
        paths = table["path"].to_pylist()
        bounds = min(paths).encode(), max(paths).encode()
        chunks = {}
        for i, column in enumerate(COLUMNS):
            one = found.column(i)
            start = one.dictionary_page_offset or one.data_page_offset
            chunks[column.name] = Chunk(
                start, one.data_page_offset, start + one.total_compressed_size, one.total_uncompressed_size
            )
        if max(map(len, bounds)) <= _BOUND_BYTES:
            chunks["path"] = replace(chunks["path"], least=bounds[0], most=bounds[1])
        group = RowGroup(table.num_rows, chunks)
        self.add_group(group, memoryview(data)[group.start : group.stop])

    def add_group(self, group: RowGroup, data: memoryview) -> None:
        """A row group whose bytes, as they are in another file, are these. Raises ValueError where they are damaged."""
        shift = self._sink.tell() - group.start
        chunks, pages = {}, {}
        for name, chunk in group.chunks.items():
            some = bytes(data[chunk.start - group.start : chunk.stop - group.start])
            pages[name] = split_pages(some, chunk.start + shift, BY_NAME[name], group.rows)
            chunks[name] = replace(
                chunk, start=chunk.start + shift, data_at=chunk.data_at + shift, stop=chunk.stop + shift, index=None
            )
        self._sink.write(data)
        self._groups.append(RowGroup(group.rows, chunks))
        self._pages.append(pages)

    def add_model(self, model: bytes) -> int:
        """Write a model after the last row group, and return its offset."""
        at = self._sink.tell()
        self._sink.write(model)
        return at

    def finish(self, description: str) -> None:
        at, indexes = self._sink.tell(), bytearray()
        groups = []
        for group, pages in zip(self._groups, self._pages, strict=True):
            chunks = dict(group.chunks)
            for name, found in pages.items():
                data_pages = [page for page in found if page.rows]
                if len(data_pages) > 1:
                    index = write_page_index(data_pages)
                    chunks[name] = replace(chunks[name], index=(at + len(indexes), len(index)))
                    indexes += index
            groups.append(RowGroup(group.rows, chunks))
        footer = write_footer(groups, description.encode(), self._created_by)
        guard = _GUARD.pack(_GUARD_MAGIC, len(indexes), len(footer), zlib.crc32(footer, zlib.crc32(indexes)))
        end = len(footer).to_bytes(4, "little") + MAGIC
        self._sink.write(b"".join([indexes, guard, zlib.crc32(guard).to_bytes(4, "little"), footer, end]))


# ---- footer ----


@dataclass
class _Budget:
    left: int = _MAX_MENDED


@dataclass(frozen=True)
class File:
    """A Parquet file whose footer has been checked; holds no open file."""

    path: Place
    size_bytes: int
    head: Head
    groups: tuple[RowGroup, ...]
    shard_groups: tuple[range, ...]
    """Row groups of each shard."""
    indexes_at: int
    """Offset of the page index: row groups and models end before it."""
    indexes: bytes = field(repr=False)
    """The page index of all chunks."""
    repairs: tuple[str, ...] = ()
    """What was damaged of footer and page index, and is put right."""
    tail: bytes = field(default=b"", repr=False)
    """The last bytes of an object, so that they are asked for once."""
    budget: _Budget = field(default_factory=_Budget, compare=False, repr=False)

    def bounds(self) -> tuple[bytes, bytes] | None:
        """Bounds of its paths, as the column `path` has them; None where that is not known, or there is no row."""
        chunks = [group.chunks["path"] for group in self.groups]
        least = [chunk.least for chunk in chunks if chunk.least is not None]
        most = [chunk.most for chunk in chunks if chunk.most is not None]
        return (min(least), max(most)) if chunks and len(least) == len(most) == len(chunks) else None

    @contextmanager
    def opened(self) -> Iterator[OpenFile]:
        with reading(self.path, self.size_bytes, self.tail) as stream:
            yield OpenFile(self, stream)


def open_part(path: Place, rows: int) -> File:
    """Raises ArchiveError also when the file is not a single shard of this many rows."""
    if not path.is_file():
        raise ArchiveError(f"{path} is missing")
    file = open_file(path)
    require_one_shard(path, file.head, rows)
    return file


def require_one_shard(path: Place | str, head: Head, rows: int) -> None:
    """Raises ArchiveError unless this is the description of a single shard of so many rows."""
    if head.shards != (rows,):
        raise ArchiveError(f"{path} holds shards of {list(head.shards[:5])} rows instead of one of {rows}")


def open_file(path: Place) -> File:
    """Reads and checks the footer. Raises ArchiveError."""
    with foreign(f"{path} cannot be read as an archive"):
        found = _read_end(path)
        footer = found.footer
        if len(footer.groups) > MAX_GROUPS:
            raise ArchiveError(f"{path} has {len(footer.groups)} row groups instead of at most {MAX_GROUPS}")
        if any(not 0 < group.rows <= MAX_ROWS_PER_GROUP for group in footer.groups):
            raise ArchiveError(f"{path} has a row group that is empty or of more than {MAX_ROWS_PER_GROUP} rows")
        if any(group.decompressed_bytes > _MAX_GROUP_BYTES for group in footer.groups):
            raise ArchiveError(f"{path} has a row group of more than {_MAX_GROUP_BYTES} bytes")
        head, _ = parse_head(footer.description, path)
        shard_groups = tuple(_shard_groups([group.rows for group in footer.groups], head.shards, path))
    return File(
        path=path,
        size_bytes=found.size_bytes,
        head=head,
        groups=footer.groups,
        shard_groups=shard_groups,
        indexes_at=found.indexes_at,
        indexes=found.indexes,
        repairs=tuple(f"{path}: {repair}" for repair in found.repairs),
        tail=found.tail if isinstance(path, ObjectPath) else b"",
    )


@dataclass(frozen=True)
class _End:
    """The end of a file, from the page index on."""

    size_bytes: int
    indexes_at: int
    indexes: bytes
    footer: Footer
    repairs: tuple[str, ...]
    tail: bytes


def _read_end(path: Place) -> _End:
    """Raises ArchiveError, and ValueError for what is not of the form of an archive."""
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(4)
        kept = min(size_bytes, TAIL_BYTES)
        file.seek(size_bytes - kept)
        tail = file.read(kept)
        guard = _find_guard(tail, size_bytes)
        if guard is None or not _covers(tail, guard):
            # a large footer, or a damaged end
            kept = min(size_bytes, 2 * _MAX_FOOTER_BYTES)
            file.seek(size_bytes - kept)
            tail = file.read(kept)
            guard = _find_guard(tail, size_bytes)
    if guard is None:
        raise _not_an_archive(path, start, tail, size_bytes)
    covered, repairs = _covered(tail, guard, path)
    if start != MAGIC:
        repairs += ("its first bytes were damaged, and are put right",)
    footer_at = size_bytes - 8 - guard.footer_bytes
    indexes_at = footer_at - _GUARD_BYTES - guard.index_bytes
    indexes, footer = covered[: guard.index_bytes], covered[guard.index_bytes :]
    return _End(size_bytes, indexes_at, indexes, parse_footer(footer, indexes_at), repairs, tail[-TAIL_BYTES:])


@dataclass(frozen=True)
class _Guard:
    """What stands before the footer and says what it must be."""

    index_bytes: int
    footer_bytes: int
    crc: int
    whole: bool
    """Whether it and what follows the footer are as they were written."""


def _find_guard(tail: bytes, size_bytes: int) -> _Guard | None:
    """The guard of a file that ends so. Looks where the end says it is, then, as either may be damaged, for what looks
    like one."""
    footer_bytes = int.from_bytes(tail[-8:-4], "little")
    at = len(tail) - 8 - footer_bytes - _GUARD_BYTES
    if at >= 0 and tail[-4:] == MAGIC:
        guard = _parse_guard(tail[at : at + _GUARD_BYTES])
        if guard is not None and guard.footer_bytes == footer_bytes:
            return guard
    at = tail.rfind(_GUARD_MAGIC)
    while at >= 0:
        guard = _parse_guard(tail[at : at + _GUARD_BYTES])
        if guard is not None and at + _GUARD_BYTES + guard.footer_bytes + 8 == len(tail):
            return replace(guard, whole=False)
        at = tail.rfind(_GUARD_MAGIC, 0, at)
    return None


def _parse_guard(data: bytes) -> _Guard | None:
    if len(data) < _GUARD_BYTES:
        return None
    body, crc = data[: _GUARD.size], int.from_bytes(data[_GUARD.size :], "little")
    for found in [*mended(body, crc), body]:
        magic, index_bytes, footer_bytes, covered_crc = _GUARD.unpack(found)
        if magic == _GUARD_MAGIC and max(index_bytes, footer_bytes) <= _MAX_FOOTER_BYTES:
            return _Guard(index_bytes, footer_bytes, covered_crc, whole=found == body and zlib.crc32(body) == crc)
    return None


def _covers(tail: bytes, guard: _Guard) -> bool:
    return guard.index_bytes + _GUARD_BYTES + guard.footer_bytes + 8 <= len(tail)


def _covered(tail: bytes, guard: _Guard, path: Place) -> tuple[bytes, tuple[str, ...]]:
    """Page index and footer as they were written, and what had to be put right for that. Raises ArchiveError."""
    footer_at = len(tail) - 8 - guard.footer_bytes
    indexes_at = footer_at - _GUARD_BYTES - guard.index_bytes
    if indexes_at < 0:
        raise ArchiveError(f"{path} is damaged: its index would begin before the file does")
    found = tail[indexes_at : indexes_at + guard.index_bytes] + tail[footer_at:-8]
    repairs = () if guard.whole else ("one byte of its end was damaged, and is put right",)
    for candidate in mended(found, guard.crc):
        if candidate == found:
            return found, repairs
        if _is_footer(candidate[guard.index_bytes :]):
            return candidate, (*repairs, "one byte of its footer was damaged, and is put right")
    check_version(found, path)
    raise ArchiveError(f"{path}: its footer is damaged in more than one byte; copy it again from where it is whole")


def _is_footer(data: bytes) -> bool:
    try:
        parse_footer(data, 1 << 62)
    except (ValueError, IndexError):
        return False
    return True


def _not_an_archive(path: Place, start: bytes, tail: bytes, size_bytes: int) -> ArchiveError:
    if start != MAGIC or size_bytes < 12:
        return ArchiveError(f"{path} is not an archive: it does not start as a Parquet file")
    if tail[-4:] != MAGIC:
        return ArchiveError(
            f"{path} is truncated or damaged: it starts as a Parquet file, but does not end as one. "
            f"Its index was at the end, so no row can be restored from it; copy it again from where it is whole"
        )
    if METADATA_KEY.encode() not in tail:
        return ArchiveError(f"{path} is a Parquet file, but not an archive of zippy-batch")
    try:
        check_version(tail[-int.from_bytes(tail[-8:-4], "little") - 8 :], path)
    except ArchiveError as error:
        return error
    return ArchiveError(f"{path} cannot be read as an archive: another tool wrote it, or its footer is damaged")


def _shard_groups(rows: Sequence[int], shards: Sequence[int], path: Place) -> Iterator[range]:
    """Row groups of each shard. Raises ArchiveError where one spans shards, or they do not add up."""
    group = 0
    for shard, count in enumerate(shards):
        first, left = group, count
        while left > 0 and group < len(rows):
            left -= rows[group]
            group += 1
        if left:
            raise ArchiveError(f"{path}: the row groups of shard {shard} do not hold its {count} rows")
        yield range(first, group)
    if group != len(rows):
        raise ArchiveError(f"{path} has row groups of no shard")


# ---- columns ----


@dataclass(frozen=True)
class Mended:
    """What is left of a column of a row group that is damaged."""

    values: list[Value]
    """The value of each row; None for those in `lost`."""
    lost: frozenset[int]
    """Rows whose value cannot be read."""
    doubtful: frozenset[int]
    """Rows whose value is of a page with a wrong checksum."""
    repairs: Sequence[tuple[int, str]]
    """What was put right, and the first row that it concerns."""


@dataclass(frozen=True)
class OpenFile:
    """Reads columns of row groups; used by one thread at a time. Every page that is read is checked."""

    file: File
    stream: BinaryIO

    def fetch(self, chunks: Iterable[Chunk]) -> None:
        """Says what is read next; of an object it is asked for now, in few requests."""
        if isinstance(self.stream, ObjectFile):
            self.stream.fetch((chunk.start, chunk.stop) for chunk in chunks)

    def columns(self, group: int, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """Columns of a row group. Raises ArchiveError, naming the column."""
        rows = self.file.groups[group].rows
        return self._decoded(group, {name: self._pages_of_all_rows(group, name) for name in names}, rows)

    def columns_at(self, group: int, names: Sequence[str], row: int) -> dict[str, tuple[pa.ChunkedArray, int]]:
        """Values by column of a row group, of which one is that of a row, and its place among them; of columns of many
        pages the one page is read. Raises ArchiveError, naming the column."""
        by_rows: dict[tuple[int, int], dict[str, list[CheckedPage]]] = {}
        for name in names:
            first_row, rows, pages = self._pages_of_one_row(group, name, row)
            by_rows.setdefault((first_row, rows), {})[name] = pages
        return {
            name: (values, row - first_row)
            for (first_row, rows), some in by_rows.items()
            for name, values in self._decoded(group, some, rows).items()
        }

    def mend(self, group: int, name: str) -> Mended:
        """What is left of a damaged column. Raises OSError."""
        rows, column = self.file.groups[group].rows, BY_NAME[name]
        repairs: list[tuple[int, str]] = []
        doubted: set[int] = set()
        pages: list[tuple[Page, CheckedPage | None]] = []
        for page in self._pages(group, name):
            data = self._read(page.start, page.stop)
            fixed = self._mended_page(data, column, page)
            if fixed is None:
                doubted.add(page.start)
            elif fixed != data:
                repairs.append((page.first_row, self._repair(name, page, rows, _first_difference(data, fixed))))
            pages.append((page, _readable(data if fixed is None else fixed, column, page)))
        dictionary = [one for page, one in pages if not page.rows]
        values: list[Value] = [None] * rows
        lost, doubtful = set[int](), set[int]()
        for page, one in pages[len(dictionary) :]:
            here = range(page.first_row, page.first_row + page.rows)
            wanted = [*dictionary, one]
            try:
                with foreign(name):
                    if None in wanted:
                        raise ValueError("a page that is not one")
                    decoded = _decode({name: [one for one in wanted if one is not None]}, page.rows)
                    values[here.start : here.stop] = plain_values(decoded[name])
            except ArchiveError:
                lost.update(here)
            if page.start in doubted or (dictionary and pages[0][0].start in doubted):
                doubtful.update(here)
        return Mended(values, frozenset(lost), frozenset(doubtful - lost), repairs)

    def _pages(self, group: int, name: str) -> list[Page]:
        chunk, index = self.file.groups[group].chunks[name], None
        if chunk.index is not None:
            at = chunk.index[0] - self.file.indexes_at
            if not 0 <= at <= at + chunk.index[1] <= len(self.file.indexes):
                raise ValueError("its page index lies elsewhere")
            index = self.file.indexes[at : at + chunk.index[1]]
        return pages_of(chunk, self.file.groups[group].rows, index)

    def _read(self, start: int, stop: int) -> bytes:
        self.stream.seek(start)
        data = self.stream.read(stop - start)
        if len(data) != stop - start:
            raise OSError(f"{self.file.path} has become shorter")
        return data

    def _pages_of_all_rows(self, group: int, name: str) -> list[CheckedPage]:
        chunk, column = self.file.groups[group].chunks[name], BY_NAME[name]
        with foreign(self._named(group, name)):
            data, places = self._read(chunk.start, chunk.stop), self._pages(group, name)
            pages = [data[page.start - chunk.start : page.stop - chunk.start] for page in places]
            checked = [(one, check_page(one, column, page)) for one, page in zip(pages, places, strict=True)]
            if sum(header.size_bytes + header.decompressed_bytes for _, header in checked) != chunk.decompressed_bytes:
                raise ValueError("its pages hold another amount than the footer says")
        return checked

    def _pages_of_one_row(self, group: int, name: str, row: int) -> tuple[int, int, list[CheckedPage]]:
        """First row and number of rows of the data page that a row is in, and that page, with its dictionary."""
        with foreign(self._named(group, name)):
            places = [p for p in self._pages(group, name) if not p.rows or 0 <= row - p.first_row < p.rows]
            pages = [(page, self._read(page.start, page.stop)) for page in places]
            checked = [(data, check_page(data, BY_NAME[name], page)) for page, data in pages]
            claimed = sum(header.size_bytes + header.decompressed_bytes for _, header in checked)
            if claimed > self.file.groups[group].chunks[name].decompressed_bytes:
                raise ValueError("a page holds more than the footer says of all")
        return places[-1].first_row, places[-1].rows, checked

    def _decoded(
        self, group: int, columns: Mapping[str, Sequence[CheckedPage]], rows: int
    ) -> dict[str, pa.ChunkedArray]:
        try:
            with foreign("it does not decode"):
                return _decode(columns, rows)
        except ArchiveError as error:
            if len(columns) == 1:
                raise ArchiveError(f"{self._named(group, next(iter(columns)))}: {error}") from error
        # one at a time, so that damage to one is known from damage to another
        alone: dict[str, pa.ChunkedArray] = {}
        for name, pages in columns.items():
            alone |= self._decoded(group, {name: pages}, rows)
        return alone

    def _mended_page(self, data: bytes, column: Column, page: Page) -> bytes | None:
        """The page as it was written, where at most one byte of it is damaged; None where more is."""
        if page.rows and _is_sound(data, column, page):
            return data
        if self.file.budget.left <= 0:
            return None
        self.file.budget.left -= 1
        return mended_page(data, column, page)

    def _repair(self, name: str, page: Page, rows: int, at: int) -> str:
        first, stop = page.first_row, page.first_row + (page.rows or rows)
        return (
            f"one byte of column {name} was damaged (offset {page.start + at} of {self.file.path}; it concerns rows "
            f"{first} to {stop - 1} of their row group) and is put right; copy the archive again from where it is whole"
        )

    def _named(self, group: int, name: str) -> str:
        return f"column {name} of row group {group} of {self.file.path} is damaged"


def _is_sound(data: bytes, column: Column, page: Page) -> bool:
    return _readable(data, column, page, check_page) is not None


def _readable(
    data: bytes, column: Column, page: Page, parse: Callable[[bytes, Column, Page], PageHeader] = parse_page
) -> CheckedPage | None:
    try:
        return data, parse(data, column, page)
    except (ValueError, IndexError):
        return None


def _first_difference(a: bytes, b: bytes) -> int:
    return next(at for at, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)


def _decode(columns: Mapping[str, Sequence[CheckedPage]], rows: int) -> dict[str, pa.ChunkedArray]:
    """What a Parquet library makes of pages of so many rows. Raises ValueError, and what the library raises."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.BufferReader(small_file(columns, rows))
    dictionaries = [name for name in _DICTIONARY_BYTES if name in columns]
    found: dict[str, pa.ChunkedArray] = {}
    with pq.ParquetFile(data, read_dictionary=dictionaries, pre_buffer=False) as parquet:
        claimed = sum(header.decompressed_bytes for _, header in columns.get("path", ())) * rows
        if claimed > _BATCH_BYTES:
            found["path"] = _read_paths(parquet, max(1, _BATCH_BYTES * rows // claimed))
        table = parquet.read_row_group(0, columns=[name for name in columns if name not in found], use_threads=False)
    found.update(zip(table.column_names, table.columns, strict=True))
    for column in found.values():
        if len(column) != rows:
            raise ValueError(f"{len(column)} values for {rows} rows")
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                _check_dictionary(chunk)
    return found


def _read_paths(parquet: pq.ParquetFile, batch_rows: int) -> pa.ChunkedArray:
    """Raises ValueError where paths become longer than they may be, which a few bytes can make them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    batches = []
    for batch in parquet.iter_batches(batch_rows, columns=["path"], use_threads=False):
        if (pc.max(pc.binary_length(batch.column(0))).as_py() or 0) > MAX_STORED_PATH_BYTES:
            raise ValueError(f"a path of more than {MAX_STORED_PATH_BYTES} bytes")
        batches.append(batch.column(0))
    return pa.chunked_array(batches, pa.string())


def _check_dictionary(chunk: pa.DictionaryArray) -> None:
    import pyarrow.compute as pc

    bounds = pc.min_max(chunk.indices).as_py()
    if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(chunk.dictionary):
        raise ValueError("a dictionary has fewer values than are asked of it")


def plain_values(column: pa.ChunkedArray) -> list[Value]:
    """Values as Python has them, text as UTF-8."""
    import pyarrow as pa

    values: list[Value] = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            # equal values become one Python object, however many rows have them
            entries = chunk.dictionary.cast(pa.binary()).to_pylist()
            values += [None if i is None else entries[i] for i in chunk.indices.to_pylist()]
        else:
            text = pa.types.is_string(chunk.type)
            values += (chunk.cast(pa.binary()) if text else chunk).to_pylist()
    return values


def as_text(values: Sequence[Value], name: str) -> list[Any]:
    """Raises ValueError for text that is not UTF-8."""
    if BY_NAME[name].kind != "text":
        return [*values]
    return [None if value is None else bytes(value).decode() for value in values]  # type: ignore[arg-type]


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turns whatever a Parquet library or hostile bytes raise into an ArchiveError, but not that there is no room to
    write, or that a store does not answer."""
    import pyarrow as pa

    expected = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, RecursionError)
    try:
        yield
    except (ArchiveError, StorageError):
        raise
    except (pa.ArrowException, *expected) as error:
        if isinstance(error, OSError) and error.errno in ONLY_WRITING:
            raise
        detail = " ".join(str(error).split())
        raise ArchiveError(f"{what}: {detail or type(error).__name__}") from error
