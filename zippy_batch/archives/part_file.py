"""One Parquet file of an archive: its description, its checked footer, and its columns.

What a hostile file could make a Parquet library do is bounded here: sizes, encodings and page headers are checked
against what a writer of archives writes before anything is decoded. What the library raises becomes an ArchiveError.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from zippy_batch.archives.parquet_layout import Chunk, RowGroup, check_pages, parse_footer
from zippy_batch.archives.schema import (
    BY_NAME,
    CODED,
    COLUMNS,
    FORMATS_READ,
    GROUP_BYTES,
    MAX_GROUPS,
    MAX_ROWS_PER_GROUP,
    MAX_STORED_BYTES,
    MAX_STORED_PATH_BYTES,
    METADATA_KEY,
    Value,
)
from zippy_batch.errors import ArchiveError
from zippy_batch.stores.object_path import TAIL_BYTES, ObjectFile, ObjectPath, Place, reading

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_MAX_FOOTER_BYTES = 1 << 24
_MAX_GROUP_BYTES = MAX_STORED_BYTES + 2 * GROUP_BYTES
_PAGE_BYTES = 1 << 16
_BATCH_BYTES = 1 << 26
"""Of paths decoded at a time, whatever a page claims: DELTA_BYTE_ARRAY can repeat a long prefix in every row."""
_DICTIONARY_BYTES = tuple(c.name for c in COLUMNS if c.encoding == "DICTIONARY" and c.kind in ("text", "bytes"))


# ---- description ----


OLD_MODEL_NAME = "model.safetensors"
"""In directories of format 1."""


def model_name(codec: str) -> str:
    """Of a model's file in a directory."""
    return f"model-{codec}.safetensors"


@dataclass(frozen=True)
class Head:
    """The JSON object of a file's metadata or of a manifest, checked."""

    version: int
    models: dict[str, str]
    """SHA-256 of the model that each codec's payloads need."""
    options: dict[str, Any]
    shards: tuple[int, ...]
    payload_bytes: tuple[int, ...]
    exact_bytes: tuple[int, ...]
    """Those of payload_bytes that are of exact rows."""
    all_null: tuple[str, ...]
    model_at: dict[str, tuple[int, int]]
    """By codec: offset and size of the models in a single file."""
    model_bytes: dict[str, int]
    """By codec: size of the models in a directory."""
    parts: tuple[Part, ...]
    labelled: bool

    def model_name(self, codec: str) -> str:
        """Of a model's file in a directory."""
        return OLD_MODEL_NAME if self.version == 1 else model_name(codec)


@dataclass(frozen=True)
class Part:
    name: str
    size_bytes: int
    sha256: str


def seal(head: Mapping[str, Any]) -> str:
    """JSON with a CRC-32 of itself as its last member."""
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode())}}}'


_SEALED = re.compile(rb'(.*),"crc":(\d{1,10})\}\s*', re.DOTALL)
_VERSION = re.compile(rb'"format":(\d{1,9})[,}]')


def check_version(text: bytes, path: Place) -> None:
    """Raises ArchiveError when a description somewhere in `text` is of another format."""
    version = _VERSION.search(text)
    if version and int(version[1]) not in FORMATS_READ:
        known = " and ".join(map(str, FORMATS_READ))
        raise ArchiveError(
            f"{path} is an archive of format {int(version[1])}, and this version of zippy-batch reads the formats "
            f"{known}; install a newer one"
        )


def parse_head(text: bytes, path: Place) -> Head:
    """Inverse of `seal`. Raises ArchiveError; ValueError, KeyError or TypeError for nonsense with a right checksum."""
    check_version(text, path)
    sealed = _SEALED.fullmatch(text)
    if sealed is None or zlib.crc32(sealed[1] + b"}") != int(sealed[2]):
        raise ArchiveError(f"{path}: the description of the archive is damaged (checksum)")
    head = json.loads(text)
    version = head["format"]
    if version not in FORMATS_READ:
        raise ValueError(f"format {version!r}")
    if version == 1:
        head = _as_format_2(head)
    shards, payload_bytes, exact_bytes = (_counts(head[name]) for name in ("shards", "payload_bytes", "exact_bytes"))
    if not len(shards) == len(payload_bytes) == len(exact_bytes):
        raise ValueError("shards, payload_bytes and exact_bytes differ in length")
    models = dict(head["models"])
    if not set(models) <= set(CODED) or any(not re.fullmatch("[0-9a-f]{64}", found) for found in models.values()):
        raise ValueError("models are not SHA-256 by codec")
    at, sizes = head.get("model_at", {}), head.get("model_bytes", {})
    if not {*at, *sizes} <= set(models):
        raise ValueError("a model of no codec")
    parts = [Part(part["name"], _counts([part["bytes"]])[0], part["sha256"]) for part in head.get("parts", ())]
    return Head(
        version=version,
        models=models,
        options=dict(head["options"]),
        shards=shards,
        payload_bytes=payload_bytes,
        exact_bytes=exact_bytes,
        all_null=tuple(str(name) for name in head.get("all_null", ())),
        model_at={codec: _pair(found) for codec, found in at.items()},
        model_bytes={codec: _counts([found])[0] for codec, found in sizes.items()},
        parts=tuple(parts),
        labelled=head.get("labelled", False) is True,
    )


def _as_format_2(head: dict[str, Any]) -> dict[str, Any]:
    """A description of format 1, which knew one codec that needs a model, in the words of format 2."""
    out = {name: value for name, value in head.items() if name not in ("model", "model_at", "model_bytes")}
    out["models"] = {} if head["model"] is None else {"latent": head["model"]}
    out |= {name: {"latent": head[name]} for name in ("model_at", "model_bytes") if head.get(name) is not None}
    return out | {"exact_bytes": [0] * len(head["shards"])}


def _counts(values: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int or value < 0 for value in values):
        raise ValueError("not a list of counts")
    return tuple(values)


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    first, second = _counts(values)
    return first, second


# ---- footer ----


@dataclass(frozen=True)
class File:
    """A Parquet file whose footer has been checked; holds no open file."""

    path: Place
    size_bytes: int
    footer_at: int
    """Offset of the footer: row groups end before it."""
    head: Head
    groups: tuple[RowGroup, ...]
    shard_groups: tuple[range, ...]
    """Row groups of each shard."""
    tail: bytes = field(default=b"", repr=False)
    """The last bytes of an object, so that they are asked for once."""

    @contextmanager
    def opened(self) -> Iterator[OpenFile]:
        import pyarrow.parquet as pq

        present = self.groups[0].chunks if self.groups else {}
        dictionaries = [name for name in _DICTIONARY_BYTES if name in present]
        with reading(self.path, self.size_bytes, self.tail) as stream:
            source = stream if isinstance(self.path, ObjectPath) else self.path
            with pq.ParquetFile(source, read_dictionary=dictionaries, pre_buffer=False) as parquet:
                yield OpenFile(parquet, stream)


@dataclass(frozen=True)
class OpenFile:
    parquet: pq.ParquetFile
    stream: BinaryIO

    def fetch(self, chunks: Iterable[Chunk]) -> None:
        """Says what is read next; of an object it is asked for now, in few requests."""
        if isinstance(self.stream, ObjectFile):
            self.stream.fetch((chunk.start, chunk.stop) for chunk in chunks)


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
        raise ArchiveError(f"{path} holds shards of {list(head.shards)} rows instead of one of {rows}")


def open_file(path: Place) -> File:
    """Reads and checks the footer. Raises ArchiveError."""
    with foreign(f"{path} cannot be read as an archive"):
        data, footer_at, tail = _read_footer(path)
        if METADATA_KEY.encode() not in data:
            raise ArchiveError(f"{path} is a Parquet file, but not an archive of zippy-batch")
        check_version(data, path)
        footer = parse_footer(data, footer_at)
        if len(footer.groups) > MAX_GROUPS:
            raise ArchiveError(f"{path} has {len(footer.groups)} row groups instead of at most {MAX_GROUPS}")
        if any(not 0 < group.rows <= MAX_ROWS_PER_GROUP for group in footer.groups):
            raise ArchiveError(f"{path} has a row group that is empty or of more than {MAX_ROWS_PER_GROUP} rows")
        if any(group.decompressed_bytes > _MAX_GROUP_BYTES for group in footer.groups):
            raise ArchiveError(f"{path} has a row group of more than {_MAX_GROUP_BYTES} bytes")
        head = parse_head(footer.description, path)
        shard_groups = tuple(_shard_groups([group.rows for group in footer.groups], head.shards, path))
    return File(path, footer_at + len(data) + 8, footer_at, head, footer.groups, shard_groups, tail)


def _read_footer(path: Place) -> tuple[bytes, int, bytes]:
    """The footer, its offset and, of an object, its last bytes."""
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(4)
        file.seek(max(0, size_bytes - 8))
        end = file.read(8)
        footer_bytes = int.from_bytes(end[:4], "little")
        if size_bytes < 12 or start != _MAGIC:
            raise ArchiveError(f"{path} is not an archive: it does not start as a Parquet file")
        if end[4:] != _MAGIC or footer_bytes > size_bytes - 12:
            raise ArchiveError(
                f"{path} is truncated or damaged: it starts as a Parquet file, but does not end as one. "
                f"Its index was at the end, so no row can be restored from it; copy it again from where it is whole"
            )
        if footer_bytes > _MAX_FOOTER_BYTES:
            raise ArchiveError(f"{path} has a footer of {footer_bytes} bytes, which no archive has")
        footer_at = size_bytes - 8 - footer_bytes
        # what a Parquet library will read of it too
        kept_at = max(0, min(footer_at, size_bytes - TAIL_BYTES)) if isinstance(path, ObjectPath) else footer_at
        file.seek(kept_at)
        tail = file.read(size_bytes - kept_at)
        return tail[footer_at - kept_at : -8], footer_at, tail if isinstance(path, ObjectPath) else b""


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


@contextmanager
def open_writer(sink: pa.NativeFile, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    import pyarrow.parquet as pq

    columns = [BY_NAME[name] for name in schema.names]
    with pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        use_dictionary=[c.name for c in columns if c.encoding == "DICTIONARY"],
        column_encoding={c.name: c.encoding for c in columns if c.encoding != "DICTIONARY"},
        compression={c.name: "NONE" if c.zstd_level is None else "ZSTD" for c in columns},
        compression_level={c.name: c.zstd_level for c in columns if c.zstd_level is not None},
        # small pages are what can be saved of a damaged column, and cost 0.2 B/row; their size is looked at per batch
        data_page_size=_PAGE_BYTES,
        write_batch_size=1,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        yield writer


def read_tables(file: File, names: Sequence[str]) -> Iterator[pa.Table]:
    """Row groups one by one, with these columns."""
    import pyarrow.parquet as pq

    with (
        foreign(f"{file.path} cannot be read"),
        pq.ParquetFile(file.path, pre_buffer=False) as parquet,
    ):
        for group in range(len(file.groups)):
            yield parquet.read_row_group(group, columns=list(names), use_threads=False)


def read_column(file: File, opened: OpenFile, group: int, name: str) -> list[Value]:
    """A column of a row group; text as UTF-8. Raises ArchiveError, naming the column."""
    rows, chunk = file.groups[group].rows, file.groups[group].chunks.get(name)
    if chunk is None:
        return [None] * rows
    with foreign(f"column {name} of row group {group} of {file.path} is damaged"):
        check_pages(opened.stream, chunk, BY_NAME[name], rows)
        parquet = opened.parquet
        if name == "path" and chunk.decompressed_bytes * rows > _BATCH_BYTES:
            values = _read_paths(parquet, group, max(1, _BATCH_BYTES // chunk.decompressed_bytes))
        else:
            values = _values(parquet.read_row_group(group, columns=[name], use_threads=False).column(0))
        if len(values) != rows:
            raise ValueError(f"{len(values)} values for {rows} rows")
    return values


def read_group(file: File, group: int) -> dict[str, pa.ChunkedArray]:
    """All columns of a row group, as Arrow holds them. Raises ArchiveError where one is damaged."""
    rows, chunks = file.groups[group].rows, file.groups[group].chunks
    with foreign(f"row group {group} of {file.path} is damaged"), file.opened() as opened:
        opened.fetch(chunks.values())
        for name, chunk in chunks.items():
            check_pages(opened.stream, chunk, BY_NAME[name], rows)
        table = opened.parquet.read_row_group(group, columns=list(chunks), use_threads=False)
    if table.num_rows != rows:
        raise ArchiveError(f"row group {group} of {file.path} has {table.num_rows} rows instead of {rows}")
    return dict(zip(table.column_names, table.columns, strict=True))


def _read_paths(parquet: pq.ParquetFile, group: int, batch_rows: int) -> list[Value]:
    values: list[Value] = []
    for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=["path"], use_threads=False):
        some = _values(batch.column(0))
        if any(len(_bytes(path)) > MAX_STORED_PATH_BYTES for path in some):
            raise ValueError(f"a path of more than {MAX_STORED_PATH_BYTES} bytes")
        values += some
    return values


def _values(column: pa.Array | pa.ChunkedArray) -> list[Value]:
    import pyarrow as pa

    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    values: list[Value] = []
    for chunk in chunks:
        if isinstance(chunk, pa.DictionaryArray):
            # equal values become one Python object, however many rows have them
            entries = chunk.dictionary.cast(pa.binary()).to_pylist()
            values += [None if i is None else entries[i] for i in chunk.indices.to_pylist()]
        else:
            text = pa.types.is_string(chunk.type)
            values += (chunk.cast(pa.binary()) if text else chunk).to_pylist()
    return values


def as_text(values: list[Value], name: str) -> list[Any]:
    if BY_NAME[name].kind != "text":
        return values
    return [None if value is None else _bytes(value).decode() for value in values]


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turns whatever a Parquet library or hostile bytes raise into an ArchiveError."""
    import pyarrow as pa

    expected = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, RecursionError)
    try:
        yield
    except ArchiveError:
        raise
    except (pa.ArrowException, *expected) as error:
        detail = " ".join(str(error).split())
        raise ArchiveError(f"{what}: {detail or type(error).__name__}") from error


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""
