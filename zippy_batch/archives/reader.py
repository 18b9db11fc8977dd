"""Reads archives: structure is checked before it is decoded, rows by their checksum, and damage is a value."""

from __future__ import annotations

import hashlib
import json
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zippy_batch.archives.description import Head, PartEntry, StoredModel, parse_head
from zippy_batch.archives.globs import compile_glob
from zippy_batch.archives.info import (
    MANIFEST_NAME,
    SWAP_FILE,
    ArchiveInfo,
    Damage,
    damaged_name,
    model_name,
    staging_name,
)
from zippy_batch.archives.mending import mended
from zippy_batch.archives.parquet_layout import Chunk
from zippy_batch.archives.part_file import File, OpenFile, as_text, foreign, open_file, open_part, plain_values
from zippy_batch.archives.schema import (
    BY_NAME,
    CODED,
    COLUMNS,
    FORMAT_VERSION,
    GROUP_BYTES,
    MAX_STORED_BYTES,
    Row,
    Value,
    arrow_schema,
    fields_of,
    row_crc,
    row_of,
    stored_path,
)
from zippy_batch.archives.where import Condition
from zippy_batch.archives.writer import PartFacts, copy_part, part_name, sha256_of
from zippy_batch.errors import ArchiveError, DamagedRow, StorageError, UsageError
from zippy_batch.stores.object_path import ObjectPath, Place, exists, size_of, sizes_in

if TYPE_CHECKING:
    import pyarrow as pa

    Columns = dict[str, pa.ChunkedArray]

_MAX_MANIFEST_BYTES = 1 << 28
_OPEN_PARTS = 8
"""Whose footers are kept: some MB each, where they are large."""
_CHANGES = 10
"""How often an archive is looked at again that is replaced while it is opened."""
LISTED_ROWS = 1 << 16
_LISTED_PROBLEMS = 100
_KEPT_BYTES = 1 << 27
"""Of row groups whose columns but for the long ones are kept for reading row by row: some 0.4 MB each."""
_FEW, _FEW_OF = 12, 4
"""Rows of a row group from which on reading all of it is faster than page by page."""
_LONG = ("payload", "raw", "exif")
"""Columns of which one page is read where one row is wanted."""
_NAMES = tuple(column.name for column in COLUMNS)


@dataclass(frozen=True)
class ArchiveReader:
    """An archive that can be read; made by `ArchiveReader.open`. Keeps no file open between calls."""

    path: Place
    info: ArchiveInfo
    size_bytes: int
    """Bytes of all its files."""
    problems: tuple[str, ...]
    """What was found wrong when it was opened, apart from rows: parts missing, of another size, or too many, and
    `repairs`."""
    repairs: tuple[str, ...]
    """What was damaged of it, apart from rows, and is put right: in memory, the files stay as they are."""
    _store: _SingleFile | _Directory
    max_row_bytes: int = MAX_STORED_BYTES
    """Most bytes of a payload or of pixels; rows of more are Damage, and are not read."""
    _kept: dict[tuple[int, int], tuple[Columns, int]] = field(default_factory=dict, repr=False, compare=False)
    """Columns but the long ones, and their bytes, by shard and row group; what was used last comes last."""

    @classmethod
    def open(cls, path: Place, allow_damage: bool = False, max_row_bytes: int = MAX_STORED_BYTES) -> ArchiveReader:
        """Reads the footer or the manifest, and no row.

        Raises UsageError when there is nothing at `path`, and ArchiveError for what is not an archive, is truncated or
        is of an unknown version. Problems with single parts or with the embedded model raise ArchiveError too, unless
        `allow_damage` wants them as `problems`: rows of such a part are read as Damage, and a model that is damaged
        is not in `info.model_files`.
        """
        if not exists(path):
            raise UsageError(f"there is no archive {path}")
        store, problems = _open_store(path)
        repairs = store.repairs
        models: dict[str, bytes] = {}
        for codec in store.head.stored_models:
            try:
                models[codec], repair = store.read_model(codec)
                repairs += repair
            except ArchiveError as error:
                problems += (str(error),)
        problems += repairs
        if problems and not allow_damage:
            raise ArchiveError(listed(problems))
        head = store.head
        info = ArchiveInfo(FORMAT_VERSION, head.models, head.options, head.shards, models)
        return cls(path, info, store.size_bytes, problems, repairs, store, max_row_bytes)

    def __enter__(self) -> ArchiveReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._store.forget()
        self._kept.clear()

    @property
    def row_count(self) -> int:
        return sum(self.info.shards)

    def shards(self) -> range:
        return range(len(self.info.shards))

    def row_groups(self, shard: int) -> tuple[int, ...]:
        """Rows of each row group of a shard. Raises ArchiveError when its part cannot be read."""
        file, groups = self._store.locate(shard)
        return tuple(file.groups[group].rows for group in groups)

    def group_bytes(self, shard: int) -> tuple[int, ...]:
        """Bytes in memory of each row group of a shard, decompressed. Raises ArchiveError as `row_groups` does."""
        file, groups = self._store.locate(shard)
        return tuple(file.groups[group].decompressed_bytes for group in groups)

    def shard_bytes(self, shard: int) -> int:
        """Bytes on disk that hold this shard alone: of its part, or of its row groups. Raises ArchiveError."""
        return self._store.shard_bytes(shard)

    def payload_bytes(self, shard: int) -> int:
        """Sum of the payloads of the rows that are coded; no row is read for it."""
        return self._store.head.payload_bytes[shard]

    def exact_bytes(self, shard: int) -> int:
        """Sum of the payloads of the rows whose codec is exact."""
        return self._store.head.exact_bytes[shard]

    def lost(self, shard: int) -> str | None:
        """What is wrong with a part that cannot be read and claims more than LISTED_ROWS rows, which nobody can check:
        its rows are not listed one by one, but left out by `read_rows`, `paths`, `select` and `where`."""
        if self.info.shards[shard] <= LISTED_ROWS:
            return None
        try:
            self._store.locate(shard)
        except ArchiveError as error:
            return f"{error} (it should have {self.info.shards[shard]} rows)"
        return None

    def read_rows(self, shard: int, rows: Sequence[int] | None = None) -> list[Row | Damage]:
        """The rows of a shard at these positions (ascending, from 0; None for all), each checked against its checksum.

        Reads the row groups that hold them. Raises nothing for damage: it comes in the damaged row's place.
        """
        count = self.info.shards[shard]
        wanted = range(count) if rows is None else rows
        if rows is not None and any(not 0 <= row < count for row in rows):
            raise IndexError(f"shard {shard} has {count} rows")
        try:
            file, groups = self._store.locate(shard)
        except ArchiveError as error:
            return [] if rows is None and self.lost(shard) else [Damage(shard, row, None, str(error)) for row in wanted]
        starts = [0, *accumulate(file.groups[group].rows for group in groups)]
        found: list[Row | Damage] = []
        for i, some in _by_group(starts, wanted).items():
            try:
                self._refuse_large(file, groups[i])
            except ArchiveError as error:
                found += _named(file, groups[i], shard, {row: row - starts[i] for row in some}, str(error))
                continue
            try:
                for row, one in zip(some, _read_rows(file, groups[i], shard, starts[i], some), strict=True):
                    whole = one if isinstance(one, Row) else one.rest
                    excess = None if whole is None else self._excess(whole)
                    found.append(one if excess is None or whole is None else Damage(shard, row, whole.path, excess))
            except ArchiveError as error:
                found += [Damage(shard, row, None, str(error)) for row in some]
        if file.path != self.path and file.repairs and found and isinstance(found[0], Row):
            found[0] = Damage(shard, wanted[0], found[0].path, "; ".join(file.repairs), found[0])
        return found

    def _refuse_large(self, file: File, group: int, names: Iterable[str] = _NAMES) -> None:
        """Raises ArchiveError for columns of a row group that no rows of up to `max_row_bytes` take so much for."""
        chunks = file.groups[group].chunks
        size_bytes = sum(chunks[name].decompressed_bytes for name in names)
        if size_bytes > self.max_row_bytes + 2 * GROUP_BYTES:
            raise ArchiveError(
                f"row group {group} of {file.path} would take {size_bytes} bytes of memory, which rows of at most "
                f"{self.max_row_bytes} do not; raise max_row_bytes to read it"
            )

    def _excess(self, row: Row) -> str | None:
        """What of a row is too large."""
        pixels_bytes = 0 if row.codec == "raw" else 3 * (row.width or 0) * (row.height or 0)
        for size_bytes, what in ((len(row.payload), "it is stored in"), (pixels_bytes, "its pixels have")):
            if size_bytes > self.max_row_bytes:
                return (
                    f"{what} {size_bytes} bytes, and max_row_bytes is {self.max_row_bytes}; raise it to take this file"
                )
        return None

    def copy_shard(self, shard: int, path: Path, info: ArchiveInfo) -> None:
        """Write a shard as a part of another archive, without decoding it: its row groups as they are.

        Raises DamagedRow, naming the row, where a page is not what was written, and ArchiveError where it is no row.
        """
        file, groups = self._store.locate(shard)
        head = Head(
            models={
                codec: info.models[codec]
                for codec in sorted({*self.read_columns(shard, ("codec",))["codec"]})
                if codec in CODED
            },
            options={},
            shards=(self.info.shards[shard],),
            payload_bytes=(self.payload_bytes(shard),),
            exact_bytes=(self.exact_bytes(shard),),
            stored_models={},
            parts=(),
        )
        try:
            copy_part(path, file, groups, head, info)
        except ArchiveError:
            self.sound_rows(shard)
            raise

    def part_facts(self, shard: int) -> PartFacts:
        """What the manifest of a directory says of a part, which is not read. Raises ArchiveError for a single file."""
        head = self._store.head
        if not head.parts:
            raise ArchiveError(f"{self.path} is a single file and has no parts")
        part = head.parts[shard]
        bounds = None if part.least is None or part.most is None else (part.least, part.most)
        alone = replace(
            head,
            shards=(head.shards[shard],),
            payload_bytes=(head.payload_bytes[shard],),
            exact_bytes=(head.exact_bytes[shard],),
        )
        return PartFacts(part.name, alone, part.size_bytes, part.sha256, bounds)

    def sound_rows(self, shard: int, rows: Sequence[int] | None = None) -> list[Row]:
        """Does what `read_rows` does, and raises DamagedRow for the first that is not what was written, or was put
        right."""
        found = self.read_rows(shard, rows)
        for row in found:
            if not isinstance(row, Row):
                raise DamagedRow(f"{self.path}: {row}")
        return [row for row in found if isinstance(row, Row)]

    def read_few(self, shard: int, rows: Sequence[int]) -> list[Row | Damage]:
        """Does what `read_rows` does, for rows here and there: reads the pages of payloads that they are in, and keeps
        what of their row groups is small for the next call. Threads may call it side by side."""
        found: dict[int, Row | Damage] = {}
        try:
            file, groups = self._store.locate(shard)
            starts = [0, *accumulate(file.groups[group].rows for group in groups)]
            with foreign(str(file.path)), file.opened() as opened:
                for i, some in _by_group(starts, rows).items():
                    if len(some) < max(_FEW, file.groups[groups[i]].rows // _FEW_OF):
                        try:
                            found |= self._whole_rows(shard, opened, groups[i], starts[i], some)
                        except (ArchiveError, ValueError):
                            continue
        except ArchiveError:
            pass
        rest = [row for row in rows if row not in found]
        found |= dict(zip(rest, self.read_rows(shard, rest), strict=True))
        return [found[row] for row in rows]

    def _whole_rows(
        self, shard: int, opened: OpenFile, group: int, start: int, rows: Sequence[int]
    ) -> dict[int, Row | Damage]:
        """Those of a row group's rows that are what was written. Raises ArchiveError, and ValueError for fields that
        contradict each other."""
        self._refuse_large(opened.file, group)
        chunks = opened.file.groups[group].chunks
        long = [name for name in _LONG if chunks[name].index is not None]
        small = self._small_columns(shard, opened, group, long)
        places = [row - start for row in rows]
        fields = {name: _values_at(values, places) for name, values in small.items()}
        fields |= _long_values(opened, group, long, places)
        found: dict[int, Row | Damage] = {}
        for i, row in enumerate(rows):
            one = {name: fields[name][i] for name in _NAMES}
            if one.pop("crc") == row_crc(one) and not self._excess(whole := row_of(one)):
                found[row] = whole
        return found

    def _small_columns(self, shard: int, opened: OpenFile, group: int, long: Sequence[str]) -> Columns:
        """Columns of a row group but for the long ones. Raises ArchiveError."""
        held = self._kept.pop((shard, group), None)
        if held is None:
            chunks = opened.file.groups[group].chunks
            opened.fetch(chunk for name, chunk in chunks.items() if name not in long)
            columns = opened.columns(group, [name for name in _NAMES if name not in long])
            held = columns, sum(column.get_total_buffer_size() for column in columns.values())
            room = _KEPT_BYTES - held[1]
            for other, (_, size_bytes) in reversed(list(self._kept.items())):
                room -= size_bytes
                if room < 0:
                    self._kept.pop(other, None)
        self._kept[shard, group] = held
        return held[0]

    def find(self, path: bytes) -> tuple[int, int] | None:
        """Shard and row of a path; None where there is no such row, or damage hides it. Reads the paths of the row
        groups whose bounds it lies in."""
        import pyarrow.compute as pc

        shown, exact = stored_path(path)
        for shard in self.shards():
            if not self._store.may_hold(shard, shown):
                continue
            file, groups = self._store.locate(shard)
            start = 0
            for group in groups:
                chunk, rows = file.groups[group].chunks["path"], file.groups[group].rows
                if chunk.least is None or chunk.most is None or chunk.least <= shown <= chunk.most:
                    with foreign(str(file.path)), file.opened() as opened:
                        columns = opened.columns(group, ("path", "path_bytes"))
                        wanted = _text_scalar(shown)
                        at = pc.index(columns["path"], wanted).as_py()
                        # text may be shown alike that is not the same
                        while at >= 0 and columns["path_bytes"][at].as_py() != exact:
                            found = pc.index(columns["path"].slice(at + 1), wanted).as_py()
                            at = at + 1 + found if found >= 0 else -1
                    if at >= 0:
                        return shard, start + at
                start += rows
        return None

    def whole_sizes(self, shard: int) -> tuple[int, int] | None:
        """Sums of the source_bytes and of the payloads of a shard whose every row has the checksum that it was written
        with; None where one may not have, or may be larger than the reader takes.

        Faster than `read_rows` by an order of magnitude: no row becomes an object.
        """
        import numpy as np
        import pyarrow.compute as pc

        from zippy_batch.archives.checksums import group_crcs

        source_bytes = stored_bytes = 0
        if self.max_row_bytes < MAX_STORED_BYTES:
            return None  # each row is to be looked at
        try:
            file, groups = self._store.locate(shard)
            with foreign(str(file.path)), file.opened() as opened:
                for group in groups:
                    opened.fetch(file.groups[group].chunks.values())
                    columns = opened.columns(group, _NAMES)
                    if not np.array_equal(group_crcs(columns, file.groups[group].rows), columns["crc"].to_numpy()):
                        return None
                    source_bytes += pc.sum(columns["source_bytes"]).as_py()
                    payloads = (columns[name] for name in ("payload", "raw"))
                    stored_bytes += sum(pc.sum(pc.binary_length(one)).as_py() or 0 for one in payloads)
        except ArchiveError:
            return None
        return source_bytes, stored_bytes

    def read_columns(self, shard: int, names: Iterable[str]) -> dict[str, list[Any]]:
        """Column name -> the shard's values, text as str.

        Touches no other column. Each page is checked against its checksum. Raises ArchiveError, naming the column.
        """
        file, groups = self._store.locate(shard)
        found: dict[str, list[Any]] = {name: [] for name in names}
        with foreign(f"{file.path}"), file.opened() as opened:
            opened.fetch(_chunks(file, groups, found))
            for group in groups:
                self._refuse_large(file, group, found)
                for name, values in opened.columns(group, list(found)).items():
                    found[name] += as_text(plain_values(values), name)
        return found

    def known_columns(self, shard: int, names: Iterable[str]) -> tuple[dict[str, list[Any]], list[str]]:
        """Reads what `read_columns` does, with None where damage hides a value, and says what is damaged.

        Raises ArchiveError for a part that cannot be read and whose rows are not listed one by one (`lost`).
        """
        found: dict[str, list[Any]] = {}
        damage: dict[str, None] = {}
        for name in names:
            try:
                found |= self.read_columns(shard, (name,))
            except ArchiveError as error:
                if lost := self.lost(shard):
                    raise ArchiveError(lost) from error
                damage[str(error)] = None
                found[name] = [_known(row, name) for row in self.read_rows(shard)]
        return found, list(damage)

    def group_table(self, shard: int, group: int, names: Sequence[str]) -> pa.Table:
        """Columns of a row group of a shard, counted from 0. Raises ArchiveError, naming the column."""
        import pyarrow as pa

        file, groups = self._store.locate(shard)
        schema = arrow_schema()
        self._refuse_large(file, groups[group], names)
        with foreign(str(file.path)), file.opened() as opened:
            opened.fetch(_chunks(file, (groups[group],), names))
            columns = opened.columns(groups[group], names) if names else {}
            return pa.table({name: columns[name].cast(schema.field(name).type) for name in names})

    def paths(self, shard: int) -> list[bytes | None]:
        """The path of each row, None where damage hides it. Reads no other column as long as these are whole."""
        try:
            file, groups = self._store.locate(shard)
            with foreign(str(file.path)), file.opened() as opened:
                opened.fetch(_chunks(file, groups, ("path", "path_bytes")))
                starts = accumulate((file.groups[group].rows for group in groups), initial=0)
                found = [
                    _read_paths(file, opened, group, shard, start) for group, start in zip(groups, starts, strict=False)
                ]
        except ArchiveError:
            return [] if self.lost(shard) else [None] * self.info.shards[shard]
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
        """Finds, as `select` does, the rows that a condition on their columns holds for; reads those columns alone.

        Where one of them is damaged, rows are read whole, and those that cannot be read are taken in.
        """
        found = {}
        for shard in self.shards():
            try:
                rows = condition.rows(self.read_columns(shard, condition.columns))
            except ArchiveError:
                rows = [place for place, row in enumerate(self.read_rows(shard)) if _may_hold(condition, row)]
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

    @property
    def repairs(self) -> tuple[str, ...]:
        return self.file.repairs

    def problems(self) -> tuple[str, ...]:
        return ()

    def check_hashes(self) -> list[str]:
        return []

    def locate(self, shard: int) -> tuple[File, range]:
        return self.file, self.file.shard_groups[shard]

    def may_hold(self, shard: int, shown: bytes) -> bool:
        """Whether a path may be in a shard."""
        return True

    def shard_bytes(self, shard: int) -> int:
        return sum(self.file.groups[group].stored_bytes for group in self.file.shard_groups[shard])

    def read_model(self, codec: str) -> tuple[bytes, tuple[str, ...]]:
        stored = self.head.stored_models[codec]
        if stored.offset + stored.size_bytes > self.file.indexes_at:
            raise ArchiveError(f"{self.file.path}: the embedded model lies outside the file")
        return _read_model(self.file.path, stored, self.head.models[codec])

    def forget(self) -> None:
        pass


@dataclass(frozen=True)
class _Directory:
    path: Place
    head: Head
    manifest: bytes = field(repr=False)
    repairs: tuple[str, ...] = ()
    """What was damaged of the manifest, and is put right."""
    _last: dict[int, File] = field(default_factory=dict)
    """The parts read last."""

    @property
    def size_bytes(self) -> int:
        models = map(model_name, self.head.stored_models)
        sizes = self._sizes()
        return sum(sizes.get(name, 0) for name in (MANIFEST_NAME, *models, *(part.name for part in self.head.parts)))

    def _sizes(self) -> dict[str, int]:
        """Bytes of each file, by name: of parts on their way to their place as well."""
        sizes = sizes_in(self.path)
        if (folder := self._moving_from()) is not None:
            staged = sizes_in(folder)
            for shard in self.head.moving.shards if self.head.moving else ():
                part = self.head.parts[shard]
                if staged.get(part.name) == part.size_bytes:
                    sizes[part.name] = part.size_bytes
        return sizes

    def _moving_from(self) -> Place | None:
        """Folder of parts that are on their way to their place."""
        if self.head.moving is None or not isinstance(self.path, ObjectPath):
            return None
        return self.path.parent / staging_name(self.path.name) / self.head.moving.folder

    def _place_of(self, shard: int) -> Place:
        """Place of a part."""
        part, folder = self.head.parts[shard], self._moving_from()
        if self.head.moving and folder is not None and shard in self.head.moving.shards:
            staged = folder / part.name
            if size_of(staged) == part.size_bytes:
                return staged
        return self.path / part.name

    def _is_changing(self) -> bool:
        """Whether parts that the manifest does not have are those of its state before, or of its next one."""
        if self.head.moving is not None or not isinstance(self.path, ObjectPath):
            return self._moving_from() is not None
        try:
            swap = json.loads((self.path.parent / staging_name(self.path.name) / SWAP_FILE).read_bytes())
            return hashlib.sha256(self.manifest).hexdigest() == swap["manifests"][0]
        except (FileNotFoundError, ValueError, TypeError, LookupError):
            return False

    def problems(self) -> tuple[str, ...]:
        expected, sizes = {part.name for part in self.head.parts}, self._sizes()
        extra = sorted(name for name in sizes if name.endswith(".parquet") and name not in expected)
        if extra and self._is_changing():
            extra = []
        found = [self._problem(part, sizes.get(part.name)) for part in self.head.parts]
        found += [f"{self.path / name} is not in the manifest; take it out" for name in extra]
        problems = [problem for problem in found if problem]
        more = len(problems) - _LISTED_PROBLEMS
        return (*problems[:_LISTED_PROBLEMS], *([f"and {more} more problems of parts"] if more > 0 else []))

    def _problem(self, part: PartEntry, size_bytes: int | None) -> str | None:
        path = self.path / part.name
        if size_bytes is None:
            return f"{path} is missing; bring it back, or restore the rest with --keep-going"
        return None if size_bytes == part.size_bytes else f"{path} has {size_bytes} bytes instead of {part.size_bytes}"

    def check_hashes(self) -> list[str]:
        sizes = self._sizes()
        whole = [(i, part) for i, part in enumerate(self.head.parts) if not self._problem(part, sizes.get(part.name))]
        places = {part.name: (self._place_of(i), part.sha256) for i, part in whole}
        return [f"{place} is damaged (SHA-256)" for place, sha256 in places.values() if sha256_of(place) != sha256]

    def locate(self, shard: int) -> tuple[File, range]:
        """Raises ArchiveError when the part cannot be read."""
        file = self._last.get(shard)
        if file is None:
            part, path = self.head.parts[shard], self._place_of(shard)
            problem = self._problem(part, size_of(path))
            if problem:
                changed = f"{self.path} was changed after it was opened, and part {shard} is another one; open it again"
                raise ArchiveError(problem if self.is_current() else changed)
            file = open_part(path, self.head.shards[shard])
            foreign_models = {k: v for k, v in file.head.models.items() if self.head.models.get(k) != v}
            if foreign_models:
                raise ArchiveError(f"{file.path} is a part of another archive: its models are {foreign_models}")
            for other in list(self._last)[: -_OPEN_PARTS + 1]:
                self._last.pop(other, None)
            # one that is on its way will be elsewhere
            if path.parent == self.path:
                self._last[shard] = file
        return file, range(len(file.groups))

    def is_current(self) -> bool:
        """Whether its manifest is still the one that was read."""
        try:
            return (self.path / MANIFEST_NAME).read_bytes() == self.manifest
        except FileNotFoundError:
            return False

    def may_hold(self, shard: int, shown: bytes) -> bool:
        """Whether a path may be in a shard."""
        part = self.head.parts[shard]
        return part.least is None or part.most is None or part.least <= shown <= part.most

    def shard_bytes(self, shard: int) -> int:
        return self.head.parts[shard].size_bytes

    def read_model(self, codec: str) -> tuple[bytes, tuple[str, ...]]:
        path, stored = self.path / model_name(codec), self.head.stored_models[codec]
        if (folder := self._moving_from()) is not None and size_of(folder / path.name) == stored.size_bytes:
            path = folder / path.name
        found = size_of(path)
        if found != stored.size_bytes:
            there = "is missing" if found is None else f"has {found} bytes instead of {stored.size_bytes}"
            raise ArchiveError(f"the model {path} {there}")
        return _read_model(path, stored, self.head.models[codec])

    def forget(self) -> None:
        self._last.clear()


def _read_model(path: Place, stored: StoredModel, model_id: str) -> tuple[bytes, tuple[str, ...]]:
    """The model, and what of it was put right. Raises ArchiveError."""
    try:
        with path.open("rb") as file:
            file.seek(stored.offset)
            data = file.read(stored.size_bytes)
    except StorageError:
        raise
    except OSError as error:
        raise ArchiveError(f"the model {path} cannot be read: {error}") from error
    for candidate in [data, *mended(data, stored.crc)]:
        if hashlib.sha256(candidate).hexdigest() == model_id:
            repair = f"one byte of the model in {path} was damaged, and is put right; copy it again"
            return candidate, () if candidate == data else (repair,)
    raise ArchiveError(f"the model in {path} is damaged: its SHA-256 is not {model_id}")


def _open_store(path: Place) -> tuple[_SingleFile | _Directory, tuple[str, ...]]:
    """What holds an archive, and what is wrong with it; looked at again where it was replaced meanwhile."""
    for _ in range(_CHANGES):
        if not path.is_dir():
            return _SingleFile(open_file(path)), ()
        directory = _open_directory(path)
        problems = directory.problems()
        if not problems or directory.is_current():
            break
    return directory, problems


def _open_directory(path: Place) -> _Directory:
    manifest = path / MANIFEST_NAME
    if not manifest.is_file():
        raise ArchiveError(
            f"{path} has no {MANIFEST_NAME}: it is not an archive of format {FORMAT_VERSION}, or not a finished one"
        )
    with foreign(f"{manifest} cannot be read"):
        size_bytes = size_of(manifest) or 0
        if size_bytes > _MAX_MANIFEST_BYTES:
            raise ArchiveError(f"{manifest} has {size_bytes} bytes, which no manifest has")
        text = manifest.read_bytes()
        head, repaired = parse_head(text, manifest)
    if [part.name for part in head.parts] != [part_name(shard) for shard in range(len(head.shards))]:
        raise ArchiveError(f"{manifest} lists {len(head.parts)} parts for {len(head.shards)} shards, or by wrong names")
    repair = f"one byte of {manifest} was damaged, and is put right; copy it again"
    return _Directory(path, head, text, (repair,) if repaired else ())


def _by_group(starts: Sequence[int], rows: Iterable[int]) -> dict[int, list[int]]:
    """Rows of a shard by row group, of which these are the first rows."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(bisect_right(starts, row) - 1, []).append(row)
    return found


def _chunks(file: File, groups: Iterable[int], names: Iterable[str]) -> list[Chunk]:
    chunks = [file.groups[group].chunks for group in groups]
    return [some[name] for some in chunks for name in names]


def _read_paths(file: File, opened: OpenFile, group: int, shard: int, start: int) -> list[bytes | None]:
    """Paths of a row group, whose first row has position `start` in the shard."""
    try:
        columns = opened.columns(group, ("path", "path_bytes"))
    except ArchiveError:
        rows = _read_rows(file, group, shard, start, range(start, start + file.groups[group].rows))
        return [row.path for row in rows]
    shown, exact = (plain_values(columns[name]) for name in ("path", "path_bytes"))
    return [_path(a if b is None else b) for a, b in zip(shown, exact, strict=True)]


@dataclass(frozen=True)
class _GroupRows:
    """Columns of a row group, and what is wrong with them."""

    columns: Mapping[str, Sequence[Value]]
    damage: Mapping[str, str]
    """Damaged column -> what is wrong."""
    lost: Mapping[str, frozenset[int]]
    doubtful: Mapping[str, frozenset[int]]
    """By damaged column, the rows whose value is lost, or of a page with a wrong checksum."""
    repairs: Sequence[tuple[int, str]]
    """What was put right, and the first row that it concerns."""


def _named(file: File, group: int, shard: int, rows: Mapping[int, int], reason: str) -> list[Row | Damage]:
    """Damage in place of rows of a row group (position in the shard -> in the group), of which no more is read than
    their paths."""
    paths: list[bytes | None] = [None] * file.groups[group].rows
    try:
        with foreign(str(file.path)), file.opened() as opened:
            columns = opened.columns(group, ("path", "path_bytes"))
        shown, exact = (plain_values(columns[name]) for name in ("path", "path_bytes"))
        paths = [_path(a if b is None else b) for a, b in zip(shown, exact, strict=True)]
    except ArchiveError:
        pass
    return [Damage(shard, row, paths[at], reason) for row, at in rows.items()]


def _read_rows(file: File, group: int, shard: int, start: int, rows: Sequence[int]) -> list[Row | Damage]:
    """Rows (positions in the shard) of one row group, whose first has position `start`."""
    with foreign(str(file.path)), file.opened() as opened:
        opened.fetch(file.groups[group].chunks.values())
        read = _read_group(opened, group)
    pending = sorted(read.repairs)
    found: list[Row | Damage] = []
    for row in rows:
        one = _checked_row(read, row - start, shard, row)
        # a repair is said once, in the first row that is read of those that it concerns
        if pending and pending[0][0] <= row - start and isinstance(one, Row):
            one = Damage(shard, row, one.path, pending.pop(0)[1], rest=one)
        found.append(one)
    return found


def _values_at(column: pa.ChunkedArray, places: Sequence[int]) -> list[Value]:
    """Text as UTF-8."""
    # for one value, a slice costs half as much
    return plain_values(column.slice(places[0], 1) if len(places) == 1 else column.take(places))


def _long_values(opened: OpenFile, group: int, names: Sequence[str], rows: Sequence[int]) -> dict[str, list[Value]]:
    """Values at positions in a row group (ascending), of columns that have pages to be read alone."""
    pages: dict[str, tuple[pa.ChunkedArray, int]] = {}
    inside: dict[str, list[int]] = {name: [] for name in names}
    found: dict[str, list[Value]] = {name: [] for name in names}
    for at in rows:
        next_page = [name for name in names if name not in pages or at - pages[name][1] >= len(pages[name][0])]
        for name in next_page:
            if name in pages:
                found[name] += _values_at(pages[name][0], inside[name])
                inside[name] = []
        if next_page:
            pages |= {k: (some, at - place) for k, (some, place) in opened.columns_at(group, next_page, at).items()}
        for name in names:
            inside[name].append(at - pages[name][1])
    for name, (page, _) in pages.items():
        found[name] += _values_at(page, inside[name])
    return found


def _read_group(opened: OpenFile, group: int) -> _GroupRows:
    try:
        columns = opened.columns(group, _NAMES)
        return _GroupRows({name: plain_values(values) for name, values in columns.items()}, {}, {}, {}, ())
    except ArchiveError:
        pass
    # one at a time, so that damage to one is known from damage to another
    values: dict[str, Sequence[Value]] = {}
    damage: dict[str, str] = {}
    lost: dict[str, frozenset[int]] = {}
    doubtful: dict[str, frozenset[int]] = {}
    repairs: list[tuple[int, str]] = []
    for name in _NAMES:
        try:
            values[name] = plain_values(opened.columns(group, (name,))[name])
        except ArchiveError as error:
            left = opened.mend(group, name)
            values[name], damage[name] = left.values, str(error)
            lost[name], doubtful[name] = left.lost, left.doubtful
            repairs += left.repairs
    return _GroupRows(values, damage, lost, doubtful, repairs)


def _checked_row(read: _GroupRows, at: int, shard: int, row: int) -> Row | Damage:
    fields = {name: values[at] for name, values in read.columns.items()}
    lost = [name for name, rows in read.lost.items() if at in rows]
    path = None if "path" in lost else _path(fields["path"] if fields["path_bytes"] is None else fields["path_bytes"])
    crc = fields.pop("crc")
    # a row whose checksum is right without a lost field had none there
    if all(BY_NAME[name].nullable for name in lost) and crc == row_crc(fields):
        try:
            return row_of(fields)
        except ValueError as error:
            return Damage(shard, row, path, f"its fields contradict each other: {error}")
    gone = lost + [name for name, rows in read.doubtful.items() if at in rows]
    if not gone:
        return Damage(shard, row, path, "its bytes are not what was written (checksum)")
    return _damaged_row(fields, gone, read.damage[gone[0]], shard, row)


_NEEDED = {
    "latent": ("payload", "width", "height", "grey", "quality", "mode", "jpeg_tables", "source_format"),
    "exact": ("payload", "width", "height", "grey", "jpeg_header", "source_bytes"),
    "raw": ("raw", "source_bytes"),
}
"""By codec: columns without which a row's file does not come back; "a file without its EXIF data" is not among them."""


def _damaged_row(fields: dict[str, Value], gone: Sequence[str], reason: str, shard: int, row: int) -> Damage:
    """A row of which some fields are gone. The others are vouched for by the checksums of their pages."""
    known = {name: None if name in gone else value for name, value in fields.items()}
    no_path = "path" in gone or "path_bytes" in gone
    path = None if no_path else _path(known["path"] if known["path_bytes"] is None else known["path_bytes"])
    codec = known["codec"].decode() if isinstance(known["codec"], bytes) else None
    if codec not in _NEEDED or set(_NEEDED[codec]) & set(gone):
        return Damage(shard, row, path, reason)
    if no_path:
        source_format = known["source_format"]
        shown = source_format.decode() if isinstance(source_format, bytes) else None
        known |= {"path": damaged_name(shard, row, shown), "path_bytes": None}
    if codec == "raw" and known["raw_reason"] is None:
        known["raw_reason"] = b"its reason is lost"
    for name in ("source_bytes", "mtime_s"):
        known[name] = 0 if known[name] is None else known[name]
    try:
        return Damage(shard, row, path, reason, row_of(known), tuple(gone))
    except ValueError as error:
        return Damage(shard, row, path, f"its fields contradict each other: {error}")


def _may_hold(condition: Condition, row: Row | Damage) -> bool:
    """Whether a condition holds for a row, or may do so where that is lost."""
    if isinstance(row, Row):
        return condition.holds(as_columns(row))
    if row.rest is None or set(condition.columns) & set(row.lost):
        return True
    return condition.holds(as_columns(row.rest))


_AS_STORED = frozenset(
    ("codec", "label", "width", "height", "mode", "grey", "quality", "source_bytes", "source_format")
)
"""Columns that a row has under their names, as `as_columns` gives them."""


def _known(row: Row | Damage, name: str) -> Any:
    """Value of a column; None where it is lost."""
    if isinstance(row, Row):
        return as_column(row, name)
    return None if row.rest is None or name in row.lost else as_column(row.rest, name)


def as_column(row: Row, name: str) -> Any:
    """One value of `as_columns`."""
    if name in _AS_STORED:
        return getattr(row, name)
    return as_columns(row)[name]


def as_columns(row: Row) -> dict[str, Any]:
    """What `ArchiveReader.read_columns` gives of a row, one value per column."""
    return {name: as_text([value], name)[0] for name, value in fields_of(row).items()}


def _text_scalar(text: bytes) -> pa.StringScalar:
    """Makes what `pa.scalar` makes, which would import pandas where that is installed: most of a second."""
    import pyarrow as pa

    offsets = struct.pack("<ii", 0, len(text))
    return pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(text)])[0]


def _path(value: Value) -> bytes | None:
    return value if isinstance(value, bytes) else None


def listed(problems: Sequence[str]) -> str:
    """The first few, on one line."""
    more = f" (and {len(problems) - 5} more problems)" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
