"""A column of images in Parquet files, as Hugging Face datasets have it, found again by row group and row.

    image       struct<bytes: binary, path: string>, or binary; the column `image`, or the only one of these types
    label       integer or string; with the names that a ClassLabel feature has in the file's metadata, those names
    others      nothing an archive has a place for: refused, or left out and said so

A file is named by its row's path; or by the row's number, counted from 0 in the Parquet file, where the row has none,
or one that a directory could not hold. A name that an earlier row has gets the number put into it. Parquet's grain is
the row group: a worker reads each that its shard needs once, and holds the shard's files in memory, at most 256 MiB or
one file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zippy_batch.archives.schema import LABEL, METADATA_KEY
from zippy_batch.errors import SourceError, UsageError
from zippy_batch.paths import display_path, name_problem
from zippy_batch.sources.containers import Members, Opened, Wanted, opened, without_dot
from zippy_batch.sources.directory import Container, SourceFile
from zippy_batch.sources.recordio import suffix_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_AT_A_TIME = 64
"""Decoded at once, whatever the size of row groups."""
_SNIFFED_BYTES = 16
_IMAGE = "image"
_HUGGING_FACE = b"huggingface"


@dataclass(frozen=True)
class _Columns:
    image: str
    is_struct: bool
    label: str | None
    names: tuple[str, ...] = ()
    """Of the label's integers."""

    def read(self) -> list[str]:
        return [self.image, *([self.label] if self.label else [])]


def find(file: Opened, members: Members, wanted: Wanted) -> None:
    """Raises UsageError for a table without a column of images, or with what an archive has no place for, and
    SourceError for what cannot be read as Parquet."""
    with _parquet(file) as parquet:
        columns = _choose(file, parquet.schema_arrow, members, wanted)
        rows = _Rows(file, members, columns, wanted.leave_out)
        for group, batch, _ in _batches(file, parquet, columns.read(), range(parquet.num_row_groups)):
            rows.take(group, batch)
        rows.tell()


class ParquetReader:
    """Reads files of one shard; the first read loads them all."""

    def __init__(self, containers: Sequence[Container], files: Sequence[SourceFile]) -> None:
        self._containers, self._files = containers, files
        self._lock, self._loaded = threading.Lock(), False
        self._content: dict[tuple[int, ...], bytes] = {}

    def read(self, file: SourceFile) -> bytes:
        """Raises SourceError."""
        with self._lock:
            if not self._loaded:
                self._load()
                self._loaded = True
        data = self._content.get(file.place)
        if data is None or len(data) != file.size_bytes:
            name = display_path(os.fsencode(self._containers[file.place[0]].path))
            raise SourceError(f"{display_path(file.path)} is not in {name} as it was; run again when it is at rest")
        return data

    def _load(self) -> None:
        places = {file.place for file in self._files}
        for number in sorted({place[0] for place in places}):
            with opened(self._containers[number]) as file, _parquet(file) as parquet:
                image, is_struct = _image_column(parquet.schema_arrow) or ("", False)
                groups = sorted({group for n, group, _ in places if n == number})
                for group, batch, start in _batches(file, parquet, [image], groups):
                    data = _bytes_of(batch.column(0), is_struct)
                    for i in range(batch.num_rows):
                        if (number, group, start + i) in places:
                            self._content[number, group, start + i] = data[i].as_py()


class _Rows:
    """The rows of one file, as they come."""

    def __init__(self, file: Opened, members: Members, columns: _Columns, leave_out: bool) -> None:
        self._file, self._members, self._columns, self._leave_out = file, members, columns, leave_out
        self._number = 0
        self._group, self._start = -1, 0
        self._taken: set[bytes] = set()
        self._renamed = self._empty = 0

    def take(self, group: int, batch: pa.RecordBatch) -> None:
        import pyarrow.compute as pc

        if group != self._group:
            self._group, self._start = group, self._number
        image = batch.column(0)
        # text that is not UTF-8 shows only here
        with _foreign(self._file):
            data = _bytes_of(image, self._columns.is_struct)
            sizes = pc.binary_length(data).to_pylist()
            paths = _paths_of(image) if self._columns.is_struct else [None] * batch.num_rows
            labels = self._labels(batch)
        for i, size_bytes in enumerate(sizes):
            at = (group, self._number - self._start)
            if size_bytes is None:
                self._without_image(paths[i])
            else:
                path = self._name(paths[i], data, i)
                self._members.add(path, size_bytes, self._file.container.mtime_s, at, labels[i])
            self._number += 1

    def tell(self) -> None:
        """What a person should know."""
        if self._renamed:
            self._members.notes.append(
                f"{self._renamed} rows of {self._file.name} have no path, none that can be a file's, or one that an "
                f"earlier row has: their names have the row's number"
            )
        if self._empty:
            self._members.notes.append(f"{self._empty} rows of {self._file.name} hold no image; they are left out")

    def _without_image(self, path: bytes | None) -> None:
        if self._leave_out:
            self._empty += 1
            return
        where = f", only the path {display_path(path)}" if path else ""
        self._members.refuse(
            b"%08d" % self._number, f"row {self._number} holds no image{where}; --leave-out leaves such rows out"
        )

    def _name(self, path: bytes | None, data: pa.Array, i: int) -> bytes:
        path = without_dot(path) if path else b""
        if name_problem(path):
            start = data[i].as_buffer()[:_SNIFFED_BYTES].to_pybytes()
            path = b"%08d.%s" % (self._number, suffix_of(start))
            self._renamed += self._columns.is_struct
        elif path in self._taken:
            folder, slash, name = path.rpartition(b"/")
            stem, dot, suffix = name.rpartition(b".") if b"." in name else (name, b"", b"")
            path = folder + slash + stem + b".%08d" % self._number + dot + suffix
            self._renamed += 1
        self._taken.add(path)
        return path

    def _labels(self, batch: pa.RecordBatch) -> list[str | None]:
        if not self._columns.label:
            return [None] * batch.num_rows
        names = self._columns.names
        values = batch.column(1).to_pylist()
        return [
            None if v is None else names[v] if isinstance(v, int) and 0 <= v < len(names) else str(v) for v in values
        ]


# ---- columns ----


def _choose(file: Opened, schema: pa.Schema, members: Members, wanted: Wanted) -> _Columns:
    if METADATA_KEY.encode() in (schema.metadata or {}):
        raise UsageError(f"{file.name} is an archive of zippy-batch already; restore it, and archive the directory")
    found = _image_column(schema)
    if found is None:
        raise UsageError(
            f"{file.name} has no column {_IMAGE}, nor one column alone, of the type binary or struct<bytes: binary, "
            f"path: string>; it has {', '.join(f'{field.name}: {field.type}' for field in schema)}"
        )
    image, is_struct = found
    has_label = LABEL in schema.names and image != LABEL and _is_label(schema.field(LABEL).type)
    others = [name for name in schema.names if name != image and not (has_label and name == LABEL)]
    if is_struct:
        others += [f"{image}.{field.name}" for field in schema.field(image).type if field.name not in ("bytes", "path")]
    if others and not wanted.leave_out:
        raise UsageError(
            f"{file.name} has columns that an archive has no place for: {', '.join(others)}; --leave-out archives the "
            f"images without them"
        )
    if has_label and wanted.labels != "auto":
        others.append(LABEL)
    if others:
        members.notes.append(f"columns of {file.name} that are left out: {', '.join(others)}")
    label = LABEL if has_label and wanted.labels == "auto" else None
    return _Columns(image, is_struct, label, _class_names(schema) if label else ())


def _image_column(schema: pa.Schema) -> tuple[str, bool] | None:
    """Name of the column of images, and whether it is a struct; None where there is none, or a choice."""
    fits = [(field.name, _is_image_struct(field.type)) for field in schema if _is_image(field.type)]
    named = [found for found in fits if found[0] == _IMAGE]
    return named[0] if named else fits[0] if len(fits) == 1 else None


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and any(f.name == "bytes" and _is_binary(f.type) for f in kind)


def _is_image(kind: pa.DataType) -> bool:
    return _is_binary(kind) or _is_image_struct(kind)


def _is_label(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Names of the integers of a ClassLabel feature; none where the metadata has none."""
    try:
        names = json.loads(schema.metadata[_HUGGING_FACE])["info"]["features"][LABEL]["names"]
        # JSON can hold half of a surrogate pair, UTF-8 cannot
        "".join(names).encode()
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) else ()


def _bytes_of(image: Any, is_struct: bool) -> pa.Array:
    import pyarrow.compute as pc

    return pc.struct_field(image, "bytes") if is_struct else image


def _paths_of(image: Any) -> list[bytes | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if "path" not in [field.name for field in image.type]:
        return [None] * len(image)
    return list(pc.struct_field(image, "path").cast(pa.binary()).to_pylist())


# ---- Parquet ----


def _batches(
    file: Opened, parquet: pq.ParquetFile, columns: list[str], groups: Sequence[int]
) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """Row group, some of its rows, and the number of the first of them in the group."""
    for group in groups:
        start = 0
        with _foreign(file):
            batches = parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns, use_threads=False)
        while True:
            with _foreign(file):
                batch = next(batches, None)
                batch = None if batch is None else batch.select(columns)
            if batch is None:
                break
            yield group, batch, start
            start += batch.num_rows


@contextmanager
def _parquet(file: Opened) -> Iterator[pq.ParquetFile]:
    """Raises SourceError."""
    import pyarrow.parquet as pq

    with os.fdopen(os.dup(file.descriptor), "rb") as stream:
        with _foreign(file):
            parquet = pq.ParquetFile(stream, pre_buffer=False)
        with parquet:
            yield parquet


@contextmanager
def _foreign(file: Opened) -> Iterator[None]:
    """Whatever the library raises becomes a SourceError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{file.name}: cannot be read as Parquet: {detail}") from error
