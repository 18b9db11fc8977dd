"""Restore a shard: rows -> batches -> pictures or the very files -> files in their places."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.codecs.model_file import Model
from zippy_batch.config import RestoreOptions
from zippy_batch.errors import ArchiveError, DamagedRow
from zippy_batch.images.pixels import Picture, decode_written, read_picture, restored_path
from zippy_batch.paths import display_path, is_below, safe_relative_path
from zippy_batch.run.encode_verified import Coders, MakeCodec, Pixels, compare
from zippy_batch.run.quarantine import retry
from zippy_batch.run.report import Done, Finding, Quality, RestoreLine, Tick
from zippy_batch.run.rows import (
    Numbered,
    decode_pictures,
    is_verbatim,
    read_shard,
    restored_file,
    row_batches,
    stored_files,
)
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.stores.atomic_file import flush_all, writing
from zippy_batch.stores.object_path import Place


@dataclass(frozen=True)
class RestoreUnit:
    index: int
    """Shard."""
    wanted: tuple[int, ...] | None = None
    """Rows of the shard, ascending; None for all."""
    renamed: Mapping[int, Renamed] = field(default_factory=dict)
    """Row -> new name, for those that cannot go where their path says."""


@dataclass(frozen=True)
class Renamed:
    """A file that is restored under another path than its own."""

    target: bytes
    why: str | None
    """What is wrong with its path; None where the row itself says it."""


@dataclass(frozen=True)
class ShardRestored:
    index: int
    done: Done
    line: RestoreLine


@dataclass(frozen=True)
class RestoreJob:
    archive: Place
    destination: Path
    temporary: Path
    """Directory on the destination's file system for files that are being written."""
    options: RestoreOptions
    models: Mapping[str, Model]
    """Codec -> model, for those that a row needs and that could be had."""
    make_codec: MakeCodec

    def start(self, threads: int) -> Callable[[RestoreUnit, Tick], ShardRestored]:
        coders = Coders.of(self.models, self.options.device, self.make_codec)
        archive, pool, writer = (
            ArchiveReader.open(self.archive, self.options.keep_going, self.options.max_row_bytes),
            OrderedThreadPool(threads),
            FileWriter(self.destination, self.temporary),
        )

        def work(unit: RestoreUnit, tick: Tick) -> ShardRestored:
            return restore_shard(unit, archive, writer, self.options, coders, pool, tick)

        return work

    def after_death(self, unit: RestoreUnit, deaths: int, reason: str) -> RestoreUnit:
        return retry(unit, deaths, reason)


class FileWriter:
    """Writes files below one directory, each whole or not at all. Shared by the threads of a worker.

    `temporary` is a directory on the same file system for files that are being written.
    """

    def __init__(self, destination: Path, temporary: Path) -> None:
        self._destination, self._temporary = destination, os.fsencode(temporary)
        self._real = os.path.realpath(os.fsencode(destination))
        self._name, self._numbers = uuid.uuid4().hex, itertools.count()
        self._last_parent: bytes | None = None
        self._written: list[bytes] = []
        """Since they were last brought to disk."""

    def write(self, path: bytes, data: bytes, mtime_s: int) -> None:
        """Raises ArchiveError for a path that leads out of the destination, by itself or through a link there, and
        WriteError."""
        safe_relative_path(path)
        target = os.path.join(self._real, path)
        self._make_parent(os.path.dirname(target), path)
        new = os.path.join(self._temporary, b"%s-%d" % (self._name.encode(), next(self._numbers)))
        with writing(f"{self._destination}/{display_path(path)}"):
            with open(new, "xb", buffering=0) as file:
                # without a buffer a write may take a part of what it is given
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.utime(file.fileno(), (mtime_s, mtime_s))
            os.replace(new, target)
        self._written.append(target)

    def sync(self) -> None:
        """Bring to disk what was written since the last call. Raises WriteError."""
        written, self._written = self._written, []
        flush_all(dict.fromkeys(written))

    def _make_parent(self, parent: bytes, path: bytes) -> None:
        # nothing here makes links, and rows of a directory follow each other
        if parent == self._last_parent:
            return
        if not is_below(os.path.realpath(parent), self._real):
            raise ArchiveError(
                f"{display_path(path)} would leave {self._destination} through a link; take the link away"
            )
        with writing(f"{self._destination}/{display_path(path)}"):
            os.makedirs(parent, exist_ok=True)
        self._last_parent = parent


def restore_shard(
    unit: RestoreUnit,
    archive: ArchiveReader,
    writer: FileWriter,
    options: RestoreOptions,
    coders: Coders,
    pool: OrderedThreadPool,
    tick: Tick,
) -> ShardRestored:
    """Writes the wanted rows of a shard as files. Raises DamagedRow at the first damaged one, or with
    `options.keep_going` lists them."""
    started = time.monotonic()
    found = read_shard(archive, unit.index, unit.wanted)
    _stop_at_damage(found.damaged, options)
    rows = _under_their_names(sorted([*found.whole, *found.rest], key=itemgetter(0)), unit.renamed)
    line = RestoreLine(unit.index, damaged=(*found.damaged, *_renamed(rows, unit)))

    def restore(batch: Sequence[Numbered]) -> RestoreLine:
        return _restore_batch(batch, unit.index, writer, options, coders)

    for part in pool.in_order(restore, row_batches(rows, options.batch_size)):
        _stop_at_damage(part.damaged, options)
        line += part
        tick(_done_of_files(part))
    if options.sync:
        writer.sync()
    line = replace(line, shard=unit.index, seconds=time.monotonic() - started)
    return ShardRestored(unit.index, _done_of_files(line), line)


def _under_their_names(rows: Sequence[Numbered], renamed: Mapping[int, Renamed]) -> list[Numbered]:
    return [(at, replace(row, path=renamed[at].target) if at in renamed else row) for at, row in rows]


def _renamed(rows: Sequence[Numbered], unit: RestoreUnit) -> list[Finding]:
    """What is wrong with the paths of rows that are otherwise whole."""
    wrong = [(at, unit.renamed[at]) for at, _ in rows if at in unit.renamed]
    return [
        Finding(display_path(one.target), f"restored under this name: {one.why}", unit.index, at)
        for at, one in wrong
        if one.why is not None
    ]


def _stop_at_damage(damaged: Sequence[Finding], options: RestoreOptions) -> None:
    if damaged and not options.keep_going:
        raise DamagedRow(f"{damaged[0]}; --keep-going restores everything else and lists what is damaged")


def _restore_batch(
    batch: Sequence[Numbered], shard: int, writer: FileWriter, options: RestoreOptions, coders: Coders
) -> RestoreLine:
    if is_verbatim(batch[0][1]):
        return _restore_files(batch, shard, writer, coders)
    pictures, damage = decode_pictures(batch, coders.latent)
    tally = _Tally()
    for i, (place, row) in enumerate(batch):
        made = damage.get(i) or restored_file(row, pictures[i], options.format, options.jpeg_quality)
        if isinstance(made, str):
            tally.damaged.append(Finding(display_path(row.path), made, shard, place))
            continue
        writer.write(restored_path(row.path, row.source_format or "", options.format), made, row.mtime_s)
        tally.add(row, made)
        if options.reference is not None:
            tally.measured.append(_measured(row, pictures[i], made, options.reference))
    return tally.line(shard)


def _restore_files(batch: Sequence[Numbered], shard: int, writer: FileWriter, coders: Coders) -> RestoreLine:
    """Exact or raw rows: the source's own bytes."""
    tally = _Tally()
    for (place, row), file in zip(batch, stored_files(batch, coders), strict=True):
        if isinstance(file, str):
            tally.damaged.append(Finding(display_path(row.path), file, shard, place))
        else:
            writer.write(row.path, file, row.mtime_s)
            tally.add(row, file)
    return tally.line(shard)


@dataclass
class _Tally:
    """A batch's line while it grows: adding up lines takes longer than writing a thumbnail's pixels."""

    written: Counter[str] = field(default_factory=Counter)
    """Files by codec."""
    source_bytes: int = 0
    restored_bytes: int = 0
    measured: list[tuple[float, float] | None] = field(default_factory=list)
    """PSNR and SSIM; None where the reference has no such picture."""
    damaged: list[Finding] = field(default_factory=list)

    def add(self, row: Row, file: bytes) -> None:
        self.written[row.codec] += 1
        self.source_bytes += row.source_bytes
        self.restored_bytes += len(file)

    def line(self, shard: int) -> RestoreLine:
        return RestoreLine(
            shard,
            self.written.total(),
            self.source_bytes,
            self.restored_bytes,
            raw_images=self.written["raw"],
            exact_images=self.written["exact"],
            quality=Quality.of(one for one in self.measured if one is not None),
            unmatched=self.measured.count(None),
            damaged=tuple(self.damaged),
        )


def _measured(row: Row, pixels: Pixels, data: bytes, reference: Path) -> tuple[float, float] | None:
    original = _original(reference, row.path)
    if original is None or original.shape != pixels.shape:
        return None
    return compare(original, decode_written(data, row.grey))


def _original(reference: Path, path: bytes) -> Pixels | None:
    """Pixels of a picture below `reference`; None where there is none."""
    try:
        with open(os.path.join(os.fsencode(reference), path), "rb") as file:
            picture = read_picture(file.read())
    except OSError:
        return None
    return picture.pixels if isinstance(picture, Picture) else None


def _done_of_files(line: RestoreLine) -> Done:
    return Done(line.images + len(line.damaged), line.source_bytes, line.restored_bytes)
