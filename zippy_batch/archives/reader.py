"""Reads archives: structure is checked before it is decoded, rows by their checksum, and damage is a value."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import TracebackType
from typing import Any

from zippy_batch.archives.globs import compile_glob
from zippy_batch.archives.info import MANIFEST_NAME, ArchiveInfo, Damage
from zippy_batch.archives.parquet_layout import Chunk
from zippy_batch.archives.part_file import (
    File,
    Head,
    OpenFile,
    Part,
    as_text,
    foreign,
    open_file,
    open_part,
    parse_head,
    read_column,
    read_group,
)
from zippy_batch.archives.salvage import LOST, Lost, salvage
from zippy_batch.archives.schema import (
    BY_NAME,
    COLUMNS,
    Column,
    Row,
    Value,
    fields_of,
    row_crc,
    row_of,
)
from zippy_batch.archives.where import Condition
from zippy_batch.archives.writer import part_name, sha256_of
from zippy_batch.errors import ArchiveError, StorageError, UsageError
from zippy_batch.stores.object_path import Place, exists, size_of, sizes_in

_MAX_MANIFEST_BYTES = 1 << 28


@dataclass(frozen=True)
class Archive:
    """An archive that can be read; made by `Archive.open`. Keeps no file open between calls."""

    path: Place
    info: ArchiveInfo
    size_bytes: int
    """Of all its files."""
    problems: tuple[str, ...]
    """What was found wrong when it was opened, apart from rows: parts missing, of another size, or too many."""
    _store: _SingleFile | _Directory

    @classmethod
    def open(cls, path: Place, allow_damage: bool = False) -> Archive:
        """Reads the footer or the manifest, and no row.

        Raises UsageError when there is nothing at `path`, and ArchiveError for what is not an archive, is truncated or
        is of an unknown version. Problems with single parts or with the embedded model raise ArchiveError too, unless
        `allow_damage` wants them as `problems`: rows of such a part are read as Damage, and a model that is damaged
        is not in `info.model_files`.
        """
        if not exists(path):
            raise UsageError(f"there is no archive {path}")
        store = _open_directory(path) if path.is_dir() else _SingleFile(open_file(path))
        problems = store.problems()
        models: dict[str, bytes] = {}
        for codec in store.models_inside():
            try:
                models[codec] = store.read_model(codec)
            except ArchiveError as error:
                problems += (str(error),)
        if problems and not allow_damage:
            raise ArchiveError(_listed(problems))
        head = store.head
        info = ArchiveInfo(head.version, head.models, head.options, head.shards, models, head.labelled)
        return cls(path, info, store.size_bytes, problems, store)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._store.forget()

    @property
    def row_count(self) -> int:
        return sum(self.info.shards)

    def shards(self) -> range:
        return range(len(self.info.shards))

    def row_groups(self, shard: int) -> tuple[int, ...]:
        """Rows of each row group of a shard. Raises ArchiveError when its part cannot be read."""
        file, groups = self._store.locate(shard)
        return tuple(file.groups[group].rows for group in groups)

    def shard_bytes(self, shard: int) -> int:
        """Bytes on disk that hold this shard alone: of its part, or of its row groups. Raises ArchiveError."""
        return self._store.shard_bytes(shard)

    def payload_bytes(self, shard: int) -> int:
        """Sum of the payloads of the rows that are coded; no row is read for it."""
        return self._store.head.payload_bytes[shard]

    def exact_bytes(self, shard: int) -> int:
        """As `payload_bytes`, of the rows whose codec is exact."""
        return self._store.head.exact_bytes[shard]

    def read_rows(self, shard: int, rows: Sequence[int] | None = None) -> list[Row | Damage]:
        """The rows of a shard at these positions (ascending, from 0; None for all), each checked against its checksum.

        Reads the row groups that hold them. Raises nothing for damage: it comes in the damaged row's place.
        """
        count = self.info.shards[shard]
        wanted = range(count) if rows is None else rows
        if any(not 0 <= row < count for row in wanted):
            raise IndexError(f"shard {shard} has {count} rows")
        try:
            file, groups = self._store.locate(shard)
        except ArchiveError as error:
            return [Damage(shard, row, None, str(error)) for row in wanted]
        starts = [0, *accumulate(file.groups[group].rows for group in groups)]
        by_group: dict[int, list[int]] = {}
        for row in wanted:
            by_group.setdefault(bisect_right(starts, row) - 1, []).append(row)
        found: list[Row | Damage] = []
        for i, some in by_group.items():
            try:
                found += _read_rows(file, groups[i], shard, starts[i], some)
            except ArchiveError as error:
                found += [Damage(shard, row, None, str(error)) for row in some]
        return found

    def whole_sizes(self, shard: int) -> tuple[int, int] | None:
        """Sums of the source_bytes and of the payloads of a shard whose every row has the checksum that it was written
        with; None where one may not have.

        Faster than `read_rows` by an order of magnitude: no row becomes an object.
        """
        import numpy as np
        import pyarrow.compute as pc

        from zippy_batch.archives.checksums import group_crcs

        source_bytes = stored_bytes = 0
        try:
            file, groups = self._store.locate(shard)
            for group in groups:
                columns = read_group(file, group)
                with foreign(str(file.path)):
                    if not np.array_equal(group_crcs(columns, file.groups[group].rows), columns["crc"].to_numpy()):
                        return None
                    source_bytes += pc.sum(columns["source_bytes"]).as_py()
                    payloads = (columns[name] for name in ("payload", "raw") if name in columns)
                    stored_bytes += sum(pc.sum(pc.binary_length(one)).as_py() or 0 for one in payloads)
        except ArchiveError:
            return None
        return source_bytes, stored_bytes

    def read_columns(self, shard: int, names: Iterable[str]) -> dict[str, list[Any]]:
        """Column name -> the shard's values, text as str; a column that the archive leaves out is all None.

        Touches no other column. Checksums are not checked. Raises ArchiveError, naming the column.
        """
        file, groups = self._store.locate(shard)
        found: dict[str, list[Any]] = {name: [] for name in names}
        with foreign(f"{file.path}"), file.opened() as opened:
            opened.fetch(_chunks(file, groups, found))
            for group in groups:
                for name, values in found.items():
                    values += as_text(read_column(file, opened, group, name), name)
        return found

    def paths(self, shard: int) -> list[bytes | None]:
        """Of each row, None where damage hides it. Reads no other column as long as these are whole.

        Checksums are not checked, but every row that `read_rows` can bring back has its path here.
        """
        try:
            file, groups = self._store.locate(shard)
            with foreign(str(file.path)), file.opened() as opened:
                opened.fetch(_chunks(file, groups, ("path", "path_bytes")))
                starts = accumulate((file.groups[group].rows for group in groups), initial=0)
                found = [
                    _read_paths(file, opened, group, shard, start) for group, start in zip(groups, starts, strict=False)
                ]
        except ArchiveError:
            return [None] * self.info.shards[shard]
        return [path for some in found for path in some]

    def select(self, pattern: str) -> dict[int, list[int]]:
        """Shard -> positions of the rows whose path matches a glob; shards without one are left out.

        `*`, `?` and `[...]` match within one name, `**` any number of folders; a pattern without `/` is matched against
        the file name alone. Rows whose path cannot be read are taken in: nothing is passed over in silence.
        """
        matches = compile_glob(pattern)
        found = {}
        for shard in self.shards():
            rows = [row for row, path in enumerate(self.paths(shard)) if path is None or matches(path)]
            if rows:
                found[shard] = rows
        return found

    def where(self, condition: Condition) -> dict[int, list[int]]:
        """As `select`, of the rows that a condition on their columns holds for; reads those columns alone.

        Where one of them is damaged, rows are read whole, and those that cannot be read are taken in.
        """
        found = {}
        for shard in self.shards():
            try:
                rows = condition.rows(self.read_columns(shard, condition.columns))
            except ArchiveError:
                rows = [
                    place
                    for place, row in enumerate(self.read_rows(shard))
                    if isinstance(row, Damage) or condition.holds(as_columns(row))
                ]
            if rows:
                found[shard] = rows
        return found

    def check_files(self) -> list[str]:
        """Problems of the files as a whole: those found on opening, and parts whose SHA-256 is not the manifest's."""
        return [*self.problems, *self._store.check_hashes()]


# ---- stores: one file, or a directory of parts ----


@dataclass(frozen=True)
class _SingleFile:
    file: File

    @property
    def head(self) -> Head:
        return self.file.head

    @property
    def size_bytes(self) -> int:
        return self.file.size_bytes

    def problems(self) -> tuple[str, ...]:
        return ()

    def check_hashes(self) -> list[str]:
        return []

    def locate(self, shard: int) -> tuple[File, range]:
        return self.file, self.file.shard_groups[shard]

    def shard_bytes(self, shard: int) -> int:
        return sum(self.file.groups[group].stored_bytes for group in self.file.shard_groups[shard])

    def models_inside(self) -> Iterable[str]:
        """Codecs whose model is not built in."""
        return self.head.model_at

    def read_model(self, codec: str) -> bytes:
        offset, size_bytes = self.head.model_at[codec]
        if not 0 <= offset <= offset + size_bytes <= self.file.footer_at:
            raise ArchiveError(f"{self.file.path}: the embedded model lies outside the file")
        return _read_model(self.file.path, offset, size_bytes, self.head.models[codec])

    def forget(self) -> None:
        pass


@dataclass(frozen=True)
class _Directory:
    path: Place
    head: Head
    _last: dict[int, File] = field(default_factory=dict)
    """The part read last."""

    @property
    def size_bytes(self) -> int:
        models = map(self.head.model_name, self.head.model_bytes)
        sizes = sizes_in(self.path)
        return sum(sizes.get(name, 0) for name in (MANIFEST_NAME, *models, *(part.name for part in self.head.parts)))

    def problems(self) -> tuple[str, ...]:
        expected, sizes = {part.name for part in self.head.parts}, sizes_in(self.path)
        extra = sorted(name for name in sizes if name.endswith(".parquet") and name not in expected)
        found = [self._problem(part, sizes.get(part.name)) for part in self.head.parts]
        found += [f"{self.path / name} is not in the manifest; take it out" for name in extra]
        return tuple(problem for problem in found if problem)

    def _problem(self, part: Part, size_bytes: int | None) -> str | None:
        path = self.path / part.name
        if size_bytes is None:
            return f"{path} is missing; bring it back, or restore the rest with --keep-going"
        return None if size_bytes == part.size_bytes else f"{path} has {size_bytes} bytes instead of {part.size_bytes}"

    def check_hashes(self) -> list[str]:
        sizes = sizes_in(self.path)
        whole = (part for part in self.head.parts if not self._problem(part, sizes.get(part.name)))
        return [
            f"{self.path / p.name} is damaged (SHA-256)" for p in whole if sha256_of(self.path / p.name) != p.sha256
        ]

    def locate(self, shard: int) -> tuple[File, range]:
        """Raises ArchiveError when the part cannot be read."""
        if shard not in self._last:
            part = self.head.parts[shard]
            problem = self._problem(part, size_of(self.path / part.name))
            if problem:
                raise ArchiveError(problem)
            file = open_part(self.path / part.name, self.head.shards[shard])
            foreign_models = {k: v for k, v in file.head.models.items() if self.head.models.get(k) != v}
            if foreign_models:
                raise ArchiveError(f"{file.path} is a part of another archive: its models are {foreign_models}")
            self._last.clear()
            self._last[shard] = file
        file = self._last[shard]
        return file, range(len(file.groups))

    def shard_bytes(self, shard: int) -> int:
        return self.head.parts[shard].size_bytes

    def models_inside(self) -> Iterable[str]:
        """Codecs whose model is not built in."""
        return self.head.model_bytes

    def read_model(self, codec: str) -> bytes:
        path = self.path / self.head.model_name(codec)
        return _read_model(path, 0, self.head.model_bytes[codec], self.head.models[codec])

    def forget(self) -> None:
        self._last.clear()


def _read_model(path: Place, offset: int, size_bytes: int, model_id: str) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size_bytes)
    except StorageError:
        raise
    except OSError as error:
        raise ArchiveError(f"the model {path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != model_id:
        raise ArchiveError(f"the model in {path} is damaged: its SHA-256 is not {model_id}")
    return data


def _open_directory(path: Place) -> _Directory:
    manifest = path / MANIFEST_NAME
    if not manifest.is_file():
        raise ArchiveError(f"{path} has no {MANIFEST_NAME}: it is not an archive, or not a finished one")
    with foreign(f"{manifest} cannot be read"):
        size_bytes = size_of(manifest) or 0
        if size_bytes > _MAX_MANIFEST_BYTES:
            raise ArchiveError(f"{manifest} has {size_bytes} bytes, which no manifest has")
        head = parse_head(manifest.read_bytes(), manifest)
    if [part.name for part in head.parts] != [part_name(shard) for shard in range(len(head.shards))]:
        raise ArchiveError(f"{manifest} lists {len(head.parts)} parts for {len(head.shards)} shards, or by wrong names")
    return _Directory(path, head)


def _chunks(file: File, groups: Iterable[int], names: Iterable[str]) -> list[Chunk]:
    chunks = [file.groups[group].chunks for group in groups]
    return [some[name] for some in chunks for name in names if name in some]


def _read_rows(file: File, group: int, shard: int, start: int, rows: Sequence[int]) -> list[Row | Damage]:
    """Rows (positions in the shard) of one row group, whose first has position `start`."""
    columns: dict[str, list[Value | Lost]] = {}
    damage: dict[str, str] = {}
    with foreign(str(file.path)), file.opened() as opened:
        opened.fetch(file.groups[group].chunks.values())
        for column in COLUMNS:
            # one at a time, so that damage to one is known from damage to another
            try:
                columns[column.name] = [*read_column(file, opened, group, column.name)]
            except ArchiveError as error:
                damage[column.name] = str(error)
                columns[column.name] = _salvaged(file, group, column)
    found: list[Row | Damage] = []
    for row in rows:
        fields = {name: values[row - start] for name, values in columns.items()}
        found.append(_checked_row(fields, damage, shard, row))
    return found


def _read_paths(file: File, opened: OpenFile, group: int, shard: int, start: int) -> list[bytes | None]:
    """Of a row group, whose first row has position `start` in the shard."""
    try:
        shown, exact = (read_column(file, opened, group, name) for name in ("path", "path_bytes"))
    except ArchiveError:
        rows = _read_rows(file, group, shard, start, range(start, start + file.groups[group].rows))
        return [row.path if isinstance(row, Row) else None for row in rows]
    return [_path(a if b is None else b) for a, b in zip(shown, exact, strict=True)]


def _salvaged(file: File, group: int, column: Column) -> list[Value | Lost]:
    rows, chunk = file.groups[group].rows, file.groups[group].chunks[column.name]
    if column.encoding == "DELTA_LENGTH_BYTE_ARRAY":
        return salvage(file.path, chunk, column, rows)
    return [LOST] * rows


def _checked_row(fields: dict[str, Value | Lost], damage: Mapping[str, str], shard: int, row: int) -> Row | Damage:
    # a row whose checksum is right without a lost field had none there
    known = {name: None if value is LOST else value for name, value in fields.items()}
    lost = [name for name, value in fields.items() if value is LOST]
    path = _path(known["path"] if known["path_bytes"] is None else known["path_bytes"])
    crc = known.pop("crc")
    if any(not BY_NAME[name].nullable for name in lost) or crc != row_crc(known):
        return Damage(shard, row, path, damage[lost[0]] if lost else "its bytes are not what was written (checksum)")
    try:
        return row_of(known)
    except ValueError as error:
        return Damage(shard, row, path, f"its fields contradict each other: {error}")


def as_columns(row: Row) -> dict[str, Any]:
    """What `Archive.read_columns` gives of a row, one value per column."""
    return {name: as_text([value], name)[0] for name, value in fields_of(row).items()}


def _path(value: Value) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _listed(problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 5} more problems)" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
