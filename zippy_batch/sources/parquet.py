"""A column of images in Parquet files, found again by row group and row.

    image       binary, or struct<bytes: binary, path: string>; of any Arrow type of binary and text: large, views,
                dictionaries, fixed sizes
    name        text, the struct's path or a column of its own; integers where they are asked for
    label       integer, text, float or boolean; with the names that a ClassLabel feature has in the file's metadata,
                those names
    others      nothing an archive has a place for: refused, or left out and said so

    known by themselves    Hugging Face (image, label), Ray (bytes, path), Spark (path, content, length,
                           modificationTime), img2dataset (key, jpg)

A file is named by its row; or by the row's number, counted from 0 in the Parquet file, where the row has no name, or
one that a directory could not hold. A name that an earlier row has gets the number put into it. Absolute paths and URIs
become relative to their root. Parquet's grain is the row group: a worker reads each that its shard needs once, and
holds the shard's files in memory, at most 256 MiB or one file.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zippy_batch.archives.schema import LABEL, METADATA_KEY
from zippy_batch.errors import SourceError, UsageError
from zippy_batch.paths import display_path, name_problem
from zippy_batch.sources.containers import (
    Members,
    Opened,
    UniqueNames,
    Wanted,
    counted,
    folder_and_name,
    opened,
    without_dot,
    without_root,
)
from zippy_batch.sources.directory import Container, SourceFile
from zippy_batch.sources.recordio import suffix_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_AT_A_TIME = 64
"""Decoded at once, whatever the size of row groups."""
_SNIFFED_BYTES = 16
_IMAGES = ("image", "bytes", "content", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
"""Names of the column of images, in the order in which they are looked for where several have a fitting type."""
_NAMES = ("path", "file_name", "filename", "image_path", "key", "__key__")
_LENGTH, _TIME = "length", "modificationTime"
"""What Spark has beside `content`."""
_PANDAS_INDEX = re.compile(r"__index_level_[0-9]+__")
"""What pandas writes of a table that it has cut or sorted: numbers of rows, mostly. Left out, and said so."""
_HUGGING_FACE = b"huggingface"
_KINDS = {
    "--name-column": "text, integers, or binary that holds text",
    "--label-column": "text, integers, other numbers, booleans, or binary that holds text",
}
"""What a column that an option names may hold."""


@dataclass(frozen=True)
class _Columns:
    image: str
    is_struct: bool
    name: str | None
    """Column of names; None where they are in the struct, or nowhere."""
    label: str | None
    time: str | None
    class_names: tuple[str, ...] = ()
    """Names of the label's integers."""

    def read(self) -> list[str]:
        # one column may be both name and label
        return list(dict.fromkeys(name for name in (self.image, self.name, self.label, self.time) if name))


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

    def __init__(self, containers: Sequence[Container], files: Sequence[SourceFile], image: str | None) -> None:
        """`image` is the column that was asked for; None for the one that is known."""
        self._containers, self._files, self._image = containers, files, image
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
                image, is_struct = _image_column(parquet.schema_arrow, self._image) or ("", False)
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
        self._names = UniqueNames()
        self._empty = 0

    def take(self, group: int, batch: pa.RecordBatch) -> None:
        import pyarrow.compute as pc

        if group != self._group:
            self._group, self._start = group, self._number
        # text that is not UTF-8 shows only here
        with _foreign(self._file):
            data = _bytes_of(batch.column(0), self._columns.is_struct)
            sizes = pc.binary_length(data).to_pylist()
            names = self._names_of(batch)
            labels = self._labels(batch)
            times = self._times(batch)
        for i, size_bytes in enumerate(sizes):
            at = (group, self._number - self._start)
            if size_bytes is None:
                self._without_image(names[i])
            else:
                path = self._name(names[i], data, i)
                self._members.add(path, size_bytes, times[i], at, labels[i])
            self._number += 1

    def tell(self) -> None:
        """What a person should know."""
        if self._names.numbered and self._has_names:
            self._members.notes.append(
                f"named by number: {counted(self._names.numbered, 'row')} of {self._file.name} without a path that a "
                f"file can have, or with one that an earlier row has"
            )
        if self._empty:
            self._members.notes.append(f"left out: {counted(self._empty, 'row')} of {self._file.name} without an image")

    def _without_image(self, path: bytes | None) -> None:
        if self._leave_out:
            self._empty += 1
            return
        where = f", only the path {display_path(path)}" if path else ""
        self._members.refuse(
            b"%08d" % self._number, f"row {self._number} holds no image{where}; --leave-out leaves such rows out"
        )

    @property
    def _has_names(self) -> bool:
        return self._columns.is_struct or self._columns.name is not None

    def _name(self, given: bytes | None, data: pa.Array, i: int) -> bytes:
        suffix = suffix_of(data[i].as_buffer()[:_SNIFFED_BYTES].to_pybytes())
        name = without_dot(without_root(given or b""))
        # a key, as those of img2dataset
        if name and self._columns.name and not name_problem(name) and b"." not in folder_and_name(name)[1]:
            name += b"." + suffix
        return self._names.name(name, self._number, suffix)

    def _names_of(self, batch: pa.RecordBatch) -> list[bytes | None]:
        if self._columns.name is None:
            return _paths_of(batch.column(0)) if self._columns.is_struct else [None] * batch.num_rows
        values = _plain(batch.column(self._columns.name))
        if _is_text(values.type) or _is_binary(values.type):
            return list(values.cast(_large_binary()).to_pylist())
        return [None if value is None else b"%08d" % value for value in values.to_pylist()]

    def _labels(self, batch: pa.RecordBatch) -> list[str | None]:
        import numpy as np
        import pyarrow as pa

        if not self._columns.label:
            return [None] * batch.num_rows
        values = _plain(batch.column(self._columns.label))
        if _is_binary(values.type):
            values = values.cast(_large_binary()).cast(pa.large_string())
        # a double would show digits that a float32 has not
        narrow = {pa.float32(): np.float32, pa.float16(): np.float16}.get(values.type)
        texts = (v if narrow is None or v is None else narrow(v) for v in values.to_pylist())
        return [_label_text(value, self._columns.class_names) for value in texts]

    def _times(self, batch: pa.RecordBatch) -> list[int]:
        """Seconds since 1970 of each file."""
        import pyarrow as pa

        mtime_s = self._file.container.mtime_s
        if self._columns.time is None:
            return [mtime_s] * batch.num_rows
        column = batch.column(self._columns.time)
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
        return [mtime_s if value is None else value // per_second for value in column.cast(pa.int64()).to_pylist()]


def _label_text(value: Any, class_names: Sequence[str]) -> str | None:
    """Floats are integers that had to hold a null, more often than not; others have the shortest digits that give the
    same number again."""
    import numpy as np

    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        if not np.isfinite(value) or value != int(value):
            return np.format_float_positional(value, trim="-")
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return str(value)


def archive_as_source(name: str) -> str:
    """Why an archive is no source, and what the way around it costs."""
    return (
        f"{name} is an archive of zippy-batch already: archive the originals, if they are still there. To restore it "
        "and archive what comes back codes every lossy image a second time: about 1 dB more is lost, and the psnr "
        "column of the new archive is measured against the restored files, so it does not show what the first one "
        "lost. With --exact nothing more is lost, and images take what restored JPEG files take"
    )


# ---- columns ----


def _choose(file: Opened, schema: pa.Schema, members: Members, wanted: Wanted) -> _Columns:
    if METADATA_KEY.encode() in (schema.metadata or {}):
        raise UsageError(archive_as_source(file.name))
    there = ", ".join(f"{field.name}: {field.type}" for field in schema)
    found = _image_column(schema, wanted.image_column)
    if found is None:
        what = "image, nor one column alone," if wanted.image_column is None else wanted.image_column
        raise UsageError(
            f"{file.name} has no column {what} of the type binary or struct<bytes: binary, path: string>; "
            f"--image-column names it. It has {there}"
        )
    image, is_struct = found
    asked = _Asked(file, schema, image, there)
    of_table = wanted.labels_kind == "table"
    in_struct = is_struct and _has_path(schema.field(image).type)
    name = asked.column("--name-column", None if of_table else wanted.name_column, _is_name)
    if name is None and not in_struct:
        name = next((one for one in _NAMES if one != image and _has(schema, one, _is_text)), None)
    label = asked.column("--label-column", None if of_table else wanted.label_column, _is_asked_label)
    if label is None and image != LABEL and name != LABEL and _has(schema, LABEL, _is_label):
        label = LABEL
    is_spark = image == "content" and name == "path"
    time = _TIME if is_spark and _has(schema, _TIME, _is_time) else None
    # the length of content says nothing of its own
    used = {image, name, label, time, *([_LENGTH] if is_spark else [])}
    others = [one for one in schema.names if one not in used]
    if is_struct:
        others += [f"{image}.{one.name}" for one in schema.field(image).type if one.name not in ("bytes", "path")]
    if any(not _PANDAS_INDEX.fullmatch(one) for one in others) and not wanted.leave_out:
        raise UsageError(
            f"{file.name} has columns that an archive has no place for: {', '.join(others)}; --leave-out archives the "
            f"images without them, and --name-column and --label-column say which hold names and labels"
        )
    if label is not None and wanted.labels_kind != "auto":
        others.append(label)
        label = None
    if others:
        members.notes.append(f"columns of {file.name} that are left out: {', '.join(others)}")
    return _Columns(image, is_struct, name, label, time, _class_names(schema, label) if label else ())


@dataclass(frozen=True)
class _Asked:
    file: Opened
    schema: pa.Schema
    image: str
    """Name of the column of images."""
    there: str
    """Its columns, for people."""

    def column(self, option: str, name: str | None, fits: Callable[[pa.DataType], bool]) -> str | None:
        """Raises UsageError for a column that is not there, or of another type."""
        if name is not None and self.schema.names.count(name) == 1 and not fits(self.schema.field(name).type):
            kind = self.schema.field(name).type
            raise UsageError(f"{self.file.name}: the column {name} of {option} is {kind}, expected {_KINDS[option]}")
        if name is not None and not _has(self.schema, name, fits):
            raise UsageError(f"{self.file.name} has no column for {option} {name}; it has {self.there}")
        if name is not None and name == self.image:
            raise UsageError(f"{self.file.name}: {option} names the column of images, {name}; it has {self.there}")
        return name


def _has(schema: pa.Schema, name: str, fits: Callable[[pa.DataType], bool]) -> bool:
    return schema.names.count(name) == 1 and fits(schema.field(name).type)


def _image_column(schema: pa.Schema, asked: str | None) -> tuple[str, bool] | None:
    """Name of the column of images, and whether it is a struct; None where there is none, or a choice."""
    fits = [one.name for one in schema if _has(schema, one.name, _is_image)]
    known = [asked] if asked is not None else [*_IMAGES, *(fits if len(fits) == 1 else [])]
    name = next((one for one in known if one in fits), None)
    return None if name is None else (name, _is_image_struct(schema.field(name).type))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    kind = _plain_type(kind)
    tests = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    kind = _plain_type(kind)
    return any(test(kind) for test in (kinds.is_string, kinds.is_large_string, kinds.is_string_view))


def _is_image_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and any(f.name == "bytes" and _is_binary(f.type) for f in kind)


def _is_image(kind: pa.DataType) -> bool:
    return _is_binary(kind) or _is_image_struct(kind)


def _has_path(kind: pa.DataType) -> bool:
    return any(field.name == "path" and _is_text(field.type) for field in kind)


def _is_name(kind: pa.DataType) -> bool:
    import pyarrow as pa

    # Hive and Impala write text as binary
    return _is_text(kind) or _is_binary(kind) or bool(pa.types.is_integer(_plain_type(kind)))


def _is_label(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    kind = _plain_type(kind)
    # a column without any label may have the type null
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null, _is_text)
    return any(test(kind) for test in tests)


def _is_asked_label(kind: pa.DataType) -> bool:
    return _is_label(kind) or _is_binary(kind)


def _is_time(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names of the integers of a ClassLabel feature; none where the metadata has none."""
    try:
        names = json.loads(schema.metadata[_HUGGING_FACE])["info"]["features"][label]["names"]
        # JSON can hold half of a surrogate pair, UTF-8 cannot
        "".join(names).encode()
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) else ()


def _bytes_of(image: Any, is_struct: bool) -> pa.Array:
    import pyarrow.compute as pc

    return _plain(pc.struct_field(image, "bytes") if is_struct else image).cast(_large_binary())


def _paths_of(image: Any) -> list[bytes | None]:
    import pyarrow.compute as pc

    if not _has_path(image.type):
        return [None] * len(image)
    return list(_plain(pc.struct_field(image, "path")).cast(_large_binary()).to_pylist())


def _plain(values: pa.Array) -> pa.Array:
    """The column without a dictionary."""
    import pyarrow as pa

    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _large_binary() -> pa.DataType:
    import pyarrow as pa

    return pa.large_binary()


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
    except SourceError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{file.name}: cannot be read as Parquet: {detail}") from error
