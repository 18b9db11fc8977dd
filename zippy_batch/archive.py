"""Archives: one Parquet file, or a directory of them with a manifest. `docs/format.md` is the specification.

    rows of a shard --write_part--> part --+--merge_parts-----> NAME.parquet
                                           +--write_manifest--> NAME/part-00000.parquet ..., manifest.json

    Archive.open --> info, shards --read_rows--> Row, or Damage in its place

Equal rows and equal info give equal bytes. A shard is one or more whole row groups, so that it is read without touching
another. Readers trust nothing: structure is checked before it is decoded (`container.py`), rows by their checksum, and
what is damaged is a value that names its place.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zippy_batch.conditions import Condition
from zippy_batch.container import (
    File,
    Head,
    OpenFile,
    Part,
    as_text,
    foreign,
    model_name,
    open_file,
    open_part,
    open_writer,
    parse_head,
    read_column,
    read_group,
    read_tables,
    require_one_shard,
    seal,
)
from zippy_batch.durable import replacing
from zippy_batch.errors import ArchiveError, UsageError
from zippy_batch.globs import compile_glob
from zippy_batch.layout import Chunk
from zippy_batch.salvage import LOST, Lost, salvage
from zippy_batch.schema import (
    BY_NAME,
    CODED,
    COLUMNS,
    FORMAT_VERSION,
    GROUP_BYTES,
    LABEL,
    MAX_GROUPS,
    MAX_ROWS_PER_GROUP,
    METADATA_KEY,
    Column,
    Row,
    Value,
    arrow_schema,
    fields_of,
    problem_of,
    row_crc,
    row_of,
)
from zippy_batch.storage import Place, exists, size_of, sizes_in

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MANIFEST_NAME",
    "Archive",
    "ArchiveInfo",
    "Damage",
    "Row",
    "merge_parts",
    "part_name",
    "write_manifest",
    "write_part",
]

MANIFEST_NAME = "manifest.json"

_MAX_MANIFEST_BYTES = 1 << 28
_COPY_BYTES = 1 << 23


@dataclass(frozen=True)
class ArchiveInfo:
    """What holds for all rows of an archive."""

    format_version: int
    models: Mapping[str, str]
    """Codec -> SHA-256 (hex) of the model file that its payloads need; only codecs that have rows, once it is written.
    """
    options: Mapping[str, Any]
    """The options the archive was made with; values are JSON's."""
    shards: tuple[int, ...]
    """Rows of each shard."""
    model_files: Mapping[str, bytes] = field(default_factory=dict)
    """Codec -> its model file, where it is not built in."""
    labelled: bool = False
    """Whether there is a column of labels."""


@dataclass(frozen=True)
class Damage:
    """A row that cannot be had back as it was written."""

    shard: int
    row: int
    """Counted from 0 in the shard."""
    path: bytes | None
    """None where the path is lost as well."""
    reason: str

    def __str__(self) -> str:
        name = "" if self.path is None else f" ({self.path.decode('utf-8', errors='backslashreplace')})"
        return f"shard {self.shard}, row {self.row}{name}: {self.reason}"


# ---- writing ----


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def write_part(path: Path, rows: Sequence[Row], info: ArchiveInfo) -> None:
    """Write one shard as a Parquet file with all columns, `label` only where `info.labelled`: a part of an archive, and
    an archive of one shard by itself.

    The file is written under a name of its own beside `path`, flushed to disk and renamed, so that `path` is whole
    whenever it exists. `info.shards` and `info.model_files` are not used. Raises ValueError for a row no reader would
    accept.
    """
    import pyarrow as pa

    for place, row in enumerate(rows):
        problem = problem_of(row)
        if problem:
            raise ValueError(f"row {place} ({row.path!r}) cannot be stored: {problem}")
        if row.label is not None and not info.labelled:
            raise ValueError(f"row {place} ({row.path!r}) has a label, and the archive no column for it")
    fields = [fields_of(row) for row in rows]
    for one in fields:
        one["crc"] = row_crc(one)
    schema = arrow_schema(tuple(column.name for column in COLUMNS if info.labelled or column.name != LABEL))
    filled = {name for name in schema.names if any(one[name] is not None for one in fields)}
    with _new_file(path) as sink, open_writer(sink, schema) as writer:
        for group in _cut_groups(fields):
            columns = [_array(group, name, schema.field(name).type) for name in schema.names]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(group))
        payload_bytes = {codec: sum(len(r.payload) for r in rows if r.codec == codec) for codec in CODED}
        here = replace(info, models={k: v for k, v in info.models.items() if any(r.codec == k for r in rows)})
        head = _head(here, (len(rows),), (sum(payload_bytes.values()),), (payload_bytes["exact"],))
        head["all_null"] = [name for name in schema.names if name not in filled]
        writer.add_key_value_metadata({METADATA_KEY: seal(head)})


def merge_parts(parts: Sequence[Path], output: Path, info: ArchiveInfo) -> None:
    """Join parts, in order, into a single file without the columns that hold nothing.

    Holds one row group in memory at a time. `output` appears whole or not at all. Raises ArchiveError for a part that
    is missing, damaged, or not what `info` says, and UsageError for more row groups than a file may have.
    """
    heads, groups = [], 0
    for part, rows in zip(parts, info.shards, strict=True):
        # opened again below: all footers at once are large
        file = open_part(part, rows)
        heads.append(file.head)
        groups += len(file.groups)
    if groups > MAX_GROUPS:
        raise UsageError(
            f"{output} would have {groups} row groups, and a single file holds at most {MAX_GROUPS}; "
            f"choose larger shards, or write a directory (an output that does not end in .parquet)"
        )
    empty = set.intersection(*(set(head.all_null) for head in heads)) if heads else set()
    empty |= set() if info.labelled else {LABEL}
    names = tuple(c.name for c in COLUMNS if not (c.nullable and c.name in empty))
    payload_bytes, exact_bytes = _sums(heads)
    with _new_file(output) as sink, open_writer(sink, arrow_schema(names)) as writer:
        for part, rows in zip(parts, info.shards, strict=True):
            for table in read_tables(open_part(part, rows), names):
                writer.write_table(table, row_group_size=MAX_ROWS_PER_GROUP)
        head = _head(info, info.shards, payload_bytes, exact_bytes)
        # between the last row group and the footer, where no reader of Parquet looks
        for codec, model in sorted(info.model_files.items()):
            head.setdefault("model_at", {})[codec] = [sink.tell(), len(model)]
            sink.write(model)
        writer.add_key_value_metadata({METADATA_KEY: seal(head)})


def write_manifest(directory: Path, info: ArchiveInfo) -> None:
    """Complete a directory that holds the parts 0 to n-1 under their `part_name`: the models, then the manifest.

    Raises ArchiveError when a part is missing or not what `info` says.
    """
    facts = [part_facts(directory / part_name(shard)) for shard in range(len(info.shards))]
    text = manifest_text(info, facts)
    for codec, model in sorted(info.model_files.items()):
        with _new_file(directory / model_name(codec)) as sink:
            sink.write(model)
    with _new_file(directory / MANIFEST_NAME) as sink:
        sink.write(text)


@dataclass(frozen=True)
class PartFacts:
    """What a manifest says of a part."""

    name: str
    head: Head
    size_bytes: int
    sha256: str


def part_facts(path: Path) -> PartFacts:
    """Raises ArchiveError for what is no part."""
    if not path.is_file():
        raise ArchiveError(f"{path} is missing")
    file = open_file(path)
    return PartFacts(path.name, file.head, file.size_bytes, _sha256(path))


def manifest_text(info: ArchiveInfo, parts: Sequence[PartFacts]) -> bytes:
    """Raises ArchiveError when a part is not what `info` says."""
    for part, rows in zip(parts, info.shards, strict=True):
        require_one_shard(part.name, part.head, rows)
    head = _head(info, info.shards, *_sums([part.head for part in parts]))
    head["parts"] = [{"name": part.name, "bytes": part.size_bytes, "sha256": part.sha256} for part in parts]
    if info.model_files:
        head["model_bytes"] = {codec: len(model) for codec, model in sorted(info.model_files.items())}
    return seal(head).encode() + b"\n"


def _sums(heads: Sequence[Head]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """payload_bytes and exact_bytes of all shards."""
    return (
        tuple(size for head in heads for size in head.payload_bytes),
        tuple(size for head in heads for size in head.exact_bytes),
    )


def _head(
    info: ArchiveInfo, shards: tuple[int, ...], payload_bytes: tuple[int, ...], exact_bytes: tuple[int, ...]
) -> dict[str, Any]:
    head = {
        "format": FORMAT_VERSION,
        "models": dict(info.models),
        "options": dict(info.options),
        "shards": list(shards),
        "payload_bytes": list(payload_bytes),
        "exact_bytes": list(exact_bytes),
    }
    return head | ({"labelled": True} if info.labelled else {})


@contextmanager
def _new_file(path: Path) -> Iterator[pa.NativeFile]:
    """A file that becomes `path`, whole and on disk, when the body is done."""
    import pyarrow as pa

    with replacing(path) as new, pa.OSFile(str(new), "wb") as sink:
        yield sink


def _cut_groups(fields: Sequence[dict[str, Value]]) -> Iterator[Sequence[dict[str, Value]]]:
    """Row groups: as many rows as fit MAX_ROWS_PER_GROUP and GROUP_BYTES."""
    start = held_bytes = 0
    for place, one in enumerate(fields):
        size_bytes = sum(len(value) for value in one.values() if isinstance(value, bytes))
        full = place - start == MAX_ROWS_PER_GROUP or held_bytes + size_bytes > GROUP_BYTES
        if full and place > start:
            yield fields[start:place]
            start, held_bytes = place, 0
        held_bytes += size_bytes
    if start < len(fields):
        yield fields[start:]


def _array(fields: Sequence[dict[str, Value]], name: str, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    values = [one[name] for one in fields]
    if BY_NAME[name].kind == "text":
        return pa.array(values, pa.binary()).cast(kind)
    return pa.array(values, kind)


def _sha256(path: Place) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ---- reading ----


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

        from zippy_batch.checksums import group_crcs

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
        return [f"{self.path / p.name} is damaged (SHA-256)" for p in whole if _sha256(self.path / p.name) != p.sha256]

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
