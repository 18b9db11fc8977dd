"""An archive as a data set: files by path, by number and by condition, decoded in batches.

    open(path) -> Archive --[path] or [number]--> ArchivedFile --> .pixels, .bytes(), .label, .psnr, ...
                     |----[numbers], rows(...)--> ArchivedFiles --> .pixels, .files(), .paths, .labels, .batches(n)

Nothing is read before it is asked for, and no more than it takes: one file is one page of payloads and the small
columns of its row group, which are kept for the next one. Every row is checked against its checksum.
"""

from __future__ import annotations

import functools
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.info import ArchiveInfo, Damage, damaged_name
from zippy_batch.archives.reader import ArchiveReader, as_column, as_columns
from zippy_batch.archives.schema import BY_NAME, MAX_ROWS_PER_GROUP, Row, arrow_schema
from zippy_batch.archives.where import parse_condition
from zippy_batch.config import DEVICES, MAX_ROW_BYTES
from zippy_batch.errors import ArchiveError, DamagedRow, OptionError, UsageError
from zippy_batch.paths import decoded_path, encoded_path
from zippy_batch.stores.object_path import Place, place

if TYPE_CHECKING:
    import pyarrow as pa

    from zippy_batch.run.row_decoder import RowDecoder

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB or (H, W) grey."""

_log = logging.getLogger(__name__)

_READ_AHEAD = MAX_ROWS_PER_GROUP
"""Rows read at a time where batches follow one another."""


def open(
    path: str | Path | Place, device: str = "auto", keep_going: bool = False, max_row_bytes: int = MAX_ROW_BYTES
) -> Archive:
    """Open an archive: a file, a directory of parts, or the URI of either in an object store.

    Reads the footer or the manifest, and no row. `device` is where the networks run: auto, cpu or cuda. Files of more
    than `max_row_bytes`, and pictures whose pixels have more at 3 bytes each, count as damaged; for what the row groups
    of larger ones would take no memory is taken.

    Raises UsageError where there is nothing and for another device, and ArchiveError for what is not an archive. Raises
    it for an archive with a missing part, a damaged footer or a damaged model too, unless `keep_going`: then what is
    whole can be read, a column has None where damage hides a value, and a path that is lost is that of a file in
    damaged-names/.
    """
    if device not in DEVICES:
        raise OptionError(f"{{device}} must be one of {', '.join(DEVICES)}, not {device!r}", "device")
    if max_row_bytes < 1:
        raise OptionError(f"{{max_row_bytes}} must be 1 or more, not {max_row_bytes}", "max_row_bytes")
    archive = Archive(place(path), device, keep_going, max_row_bytes)
    archive.info  # noqa: B018 - what is no archive is said here
    return archive


class Archive:
    """An archive that can be read; made by `open`. Threads may share it; pickled, it opens again where it is unpickled.

    A mapping from paths to files, and a sequence of them by number, in the order of their paths.
    """

    def __init__(
        self, path: Place, device: str = "auto", keep_going: bool = False, max_row_bytes: int = MAX_ROW_BYTES
    ) -> None:
        self._path, self._device, self._keep_going = path.absolute(), device, keep_going
        self._max_row_bytes = max_row_bytes
        self._start()

    def _start(self) -> None:
        self._lock = Lock()
        self._reader: ArchiveReader | None = None
        self._starts: list[int] = []
        self._damage: dict[str, None] = {}
        self._decodes: RowDecoder | None = None

    def __getstate__(self) -> tuple[Place, str, bool, int]:
        return self._path, self._device, self._keep_going, self._max_row_bytes

    def __setstate__(self, state: tuple[Place, str, bool, int]) -> None:
        self._path, self._device, self._keep_going, self._max_row_bytes = state
        self._start()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Forget what is held in memory. The archive opens again when it is next used."""
        self._start()

    def __repr__(self) -> str:
        return f"<zippy_batch.Archive {self._path}: {len(self)} files, {self._opened().size_bytes} bytes>"

    # ---- what is in it ----

    @property
    def path(self) -> Place:
        """Place of the archive, absolute."""
        return self._path

    @property
    def info(self) -> ArchiveInfo:
        """Format version, models, the options it was made with, rows of each shard."""
        return self._opened().info

    @property
    def schema(self) -> pa.Schema:
        """Schema of the Parquet table: the same for every archive."""
        return arrow_schema()

    @property
    def damage(self) -> list[str]:
        """What was found damaged, with `keep_going`: when it was opened, and since then in what was read."""
        return list(dict.fromkeys((*self._opened().problems, *self._damage)))

    @property
    def paths(self) -> list[str]:
        """Paths of all files, in order; bytes that are not UTF-8 as surrogate escapes, as `os.fsdecode` gives them."""
        return self.rows().paths

    def __len__(self) -> int:
        return self._opened().row_count

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._opened().find(encoded_path(path)) is not None

    def __iter__(self) -> Iterator[ArchivedFile]:
        return iter(self.rows())

    @overload
    def __getitem__(self, which: str | int) -> ArchivedFile: ...
    @overload
    def __getitem__(self, which: Sequence[int] | slice) -> ArchivedFiles: ...
    def __getitem__(self, which: str | int | Sequence[int] | slice) -> ArchivedFile | ArchivedFiles:
        """One file by path or number, or several by numbers. Raises KeyError and IndexError where there is none, and
        DamagedRow where what is stored of it is not what was written."""
        if isinstance(which, str):
            found = self._opened().find(encoded_path(which))
            if found is None:
                raise KeyError(which)
            return self._file(self._starts[found[0]] + found[1])
        if isinstance(which, slice):
            return ArchivedFiles(self, range(len(self))[which])
        if isinstance(which, int | np.integer):
            return self._file(self._number(int(which)))
        return ArchivedFiles(self, [self._number(int(number)) for number in which])

    def rows(self, where: str | None = None, select: str | None = None) -> ArchivedFiles:
        """The files that a condition on their columns holds for ("psnr < 30", see docs/usage.md), and whose path
        matches a glob; all of them without either. Raises UsageError for a condition or glob that is not understood."""
        reader = self._opened()
        found: list[Mapping[int, Sequence[int]]] = []
        if select is not None:
            found.append(reader.select(select))
        if where is not None:
            found.append(reader.where(parse_condition(where)))
        if not found:
            return ArchivedFiles(self, range(len(self)))
        wanted = [{self._starts[shard] + row for shard, rows in some.items() for row in rows} for some in found]
        return ArchivedFiles(self, sorted(set.intersection(*wanted)))

    def batches(self, size: int, where: str | None = None, select: str | None = None) -> Iterator[ArchivedFiles]:
        """The files that `rows` chooses, in batches of `size` files, the last one maybe smaller."""
        return self.rows(where, select).batches(size)

    # ---- reading ----

    def _opened(self) -> ArchiveReader:
        with self._lock:
            if self._reader is None:
                reader = ArchiveReader.open(self._path, self._keep_going, self._max_row_bytes)
                self._starts = [0, *accumulate(reader.info.shards)]
                self._reader = reader
            return self._reader

    def _number(self, number: int) -> int:
        count = len(self)
        if not -count <= number < count:
            raise IndexError(f"there is no file {number} in {self._path}, which has {count}")
        return number % count

    def _file(self, number: int) -> ArchivedFile:
        return ArchivedFile(self, number, self._read([number])[0])

    def _by_shard(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """Rows by shard, ascending."""
        self._opened()
        found: dict[int, list[int]] = {}
        for number in sorted(set(numbers)):
            shard = bisect_right(self._starts, number) - 1
            found.setdefault(shard, []).append(number - self._starts[shard])
        return found

    def _read(self, numbers: Sequence[int]) -> list[Row]:
        """Raises DamagedRow."""
        reader, found = self._opened(), dict[int, Row]()
        for shard, rows in self._by_shard(numbers).items():
            for row, one in zip(rows, reader.read_few(shard, rows), strict=True):
                found[self._starts[shard] + row] = self._sound(one)
        return [found[number] for number in numbers]

    def _sound(self, row: Row | Damage) -> Row:
        if isinstance(row, Row):
            return row
        if self._keep_going:
            # of a part that is missing, its rows are not each said to be
            if row.reason not in self._opened().problems:
                self._damage[str(row)] = None
        elif row.rest is not None and not row.lost:
            _log.warning("%s: %s", self._path, row)
        if row.rest is not None and (self._keep_going or not row.lost):
            return row.rest
        raise DamagedRow(f"{self._path}: {row}")

    def _row_groups(self) -> list[tuple[int, int]]:
        """First file and bytes in memory of each row group, which are what is read at a time. Opens every part."""
        reader, found = self._opened(), list[tuple[int, int]]()
        for shard in reader.shards():
            start = self._starts[shard]
            for rows, size_bytes in zip(reader.row_groups(shard), reader.group_bytes(shard), strict=True):
                found.append((start, size_bytes))
                start += rows
        return found

    def _group_tables(self) -> Iterator[tuple[range, Callable[[Sequence[str]], pa.Table]]]:
        """Files of each row group, and what reads columns of them."""
        reader = self._opened()
        for shard in reader.shards():
            start = self._starts[shard]
            try:
                groups = reader.row_groups(shard)
            except ArchiveError as error:
                if not self._keep_going:
                    raise
                self._damage[str(error)] = None
                continue
            for group, rows in enumerate(groups):
                yield range(start, start + rows), functools.partial(reader.group_table, shard, group)
                start += rows

    def _columns(self, numbers: Sequence[int], name: str) -> list[Any]:
        """Values of a column. Raises ArchiveError where it is damaged."""
        if isinstance(numbers, range) and numbers == range(len(self)):
            return [value for shard in self._opened().shards() for value in self._values(shard, name)]
        found = dict[int, Any]()
        for shard, rows in self._by_shard(numbers).items():
            values = self._values(shard, name)
            found.update((self._starts[shard] + row, values[row]) for row in rows)
        return [found[number] for number in numbers]

    def _values(self, shard: int, name: str) -> Sequence[Any]:
        """Values of all rows of a shard. Raises ArchiveError where a column is damaged, unless it is to keep going."""
        reader = self._opened()
        if name == "path":
            paths = reader.paths(shard)
            if not self._keep_going:
                return paths
            if None in paths and not self._opened().problems:
                self._damage[f"shard {shard}: paths are damaged, {paths.count(None)} of {len(paths)}"] = None
            return [damaged_name(shard, row, None) if path is None else path for row, path in enumerate(paths)]
        if not self._keep_going:
            return reader.read_columns(shard, (name,))[name]
        columns, damage = reader.known_columns(shard, (name,))
        self._damage |= dict.fromkeys(damage)
        return columns[name]

    # ---- decoding ----

    @property
    def _decoder(self) -> RowDecoder:
        from zippy_batch.codecs.model_file import Model, builtin_model_by_id
        from zippy_batch.run.row_decoder import RowDecoder
        from zippy_batch.run.rows import model_of

        def model_for(codec: str) -> Model:
            return model_of(self._opened(), codec, builtin_model_by_id)

        with self._lock:
            if self._decodes is None:
                self._decodes = RowDecoder(str(self._path), model_for, self._device)
            return self._decodes


@dataclass(frozen=True, repr=False)
class ArchivedFile:
    """One file of an archive. Its columns are attributes: see docs/format.md."""

    archive: Archive
    number: int
    """Position in the archive, from 0."""
    row: Row

    def __repr__(self) -> str:
        size = f"{self.row.width}x{self.row.height}, " if self.row.width else ""
        return f"<zippy_batch.ArchivedFile {self.path!r}: {size}{self.row.codec}, {self.row.source_bytes} bytes>"

    @property
    def path(self) -> str:
        """Relative to the archived directory; see `Archive.paths`."""
        return decoded_path(self.row.path)

    @property
    def pixels(self) -> Pixels:
        """uint8, (H, W, 3) RGB or (H, W) grey, as stored in the file: an EXIF orientation is not applied.

        Raises ArchiveError for a file that was kept as it is and is no picture that could be coded.
        """
        return self.archive._decoder.pixels([self.row])[0]

    def bytes(self) -> bytes:
        """The file that restore writes: the very same file, or a JPEG of the pixels where it was coded with loss."""
        if self.row.codec == "raw":
            return self.row.payload
        return self.archive._decoder.files([self.row])[0]

    @property
    def label(self) -> str | None:
        return self.row.label

    @property
    def codec(self) -> str:
        """latent (lossy), exact or raw."""
        return self.row.codec

    @property
    def psnr(self) -> float | None:
        """dB, of the file that restore writes; None where nothing is lost, and where it was not measured."""
        return self.row.psnr

    @property
    def ssim(self) -> float | None:
        return self.row.ssim

    @property
    def columns(self) -> Mapping[str, Any]:
        """All columns of its row, text as str."""
        return as_columns(self.row)


@dataclass(frozen=True, repr=False)
class ArchivedFiles:
    """Some files of an archive, in an order; nothing of them is read before it is asked for."""

    archive: Archive
    numbers: Sequence[int]
    """Position in the archive, from 0."""
    _read: Sequence[Row] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<zippy_batch.ArchivedFiles: {len(self)} of {self.archive!r}>"

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[ArchivedFile]:
        for batch in self.batches(_READ_AHEAD):
            for number, row in zip(batch.numbers, batch._rows(), strict=True):
                yield ArchivedFile(self.archive, number, row)

    def __getitem__(self, at: int) -> ArchivedFile:
        row = self._read[at] if self._read is not None else self.archive._read([self.numbers[at]])[0]
        return ArchivedFile(self.archive, self.numbers[at], row)

    @property
    def pixels(self) -> list[Pixels]:
        """Pixels of each file, as `ArchivedFile.pixels` has them, decoded together."""
        return self.archive._decoder.pixels(self._rows())

    def rgb(self) -> list[Pixels]:
        """Pixels of each file, uint8 (H, W, 3), decoded together: grey pictures have three equal channels.

        A file that was kept as it is, for its transparency, its depth or its number of pictures, is converted as
        Pillow's `convert("RGB")` does it. Raises ArchiveError for one that is no picture.
        """
        return self.archive._decoder.rgb(self._rows())

    def files(self) -> list[bytes]:
        """Bytes of each file, as `ArchivedFile.bytes` has them, decoded together."""
        return self.archive._decoder.files(self._rows())

    @property
    def paths(self) -> list[str]:
        if self._read is not None:
            return [decoded_path(row.path) for row in self._read]
        found = self.archive._columns(self.numbers, "path")
        if None in found:
            raise ArchiveError(f"{self.archive._path}: the path of file {self.numbers[found.index(None)]} is damaged")
        return [decoded_path(path) for path in found]

    @property
    def labels(self) -> list[str | None]:
        return self.column("label")

    def column(self, name: str) -> list[Any]:
        """Values of a column (see docs/format.md), text as str. Reads no other one. Raises UsageError for a column that
        there is not."""
        if name not in BY_NAME:
            raise UsageError(f"there is no column {name!r}; there are {', '.join(BY_NAME)}")
        if self._read is not None and name != "crc":
            return [as_column(row, name) for row in self._read]
        return self.archive._columns(self.numbers, name)

    def read(self) -> ArchivedFiles:
        """The same files with their rows in memory, so that nothing is read twice. Raises DamagedRow."""
        return ArchivedFiles(self.archive, self.numbers, self._rows())

    def batches(self, size: int) -> Iterator[ArchivedFiles]:
        """Batches of `size` files, the last one maybe smaller."""
        if size < 1:
            raise UsageError(f"a batch has 1 file or more, not {size}")
        ahead = max(size, _READ_AHEAD // size * size)
        for start in range(0, len(self.numbers), ahead):
            numbers = self.numbers[start : start + ahead]
            rows = self._rows()[start : start + ahead] if self._read is not None else self.archive._read(numbers)
            for at in range(0, len(numbers), size):
                yield ArchivedFiles(self.archive, numbers[at : at + size], rows[at : at + size])

    def _rows(self) -> Sequence[Row]:
        return self.archive._read(self.numbers) if self._read is None else self._read
