"""Restore a shard: rows -> batches -> pictures or the very files -> files in their places."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zippy_batch.archive import Archive
from zippy_batch.coding import Coders, MakeCodec, Pixels, compare
from zippy_batch.config import RestoreOptions
from zippy_batch.durable import writing
from zippy_batch.errors import ArchiveError, DamagedRow
from zippy_batch.images import (
    Picture,
    decode_written,
    display_path,
    is_below,
    read_picture,
    restored_path,
    safe_relative_path,
    write_picture,
)
from zippy_batch.report import Done, Finding, Quality, RestoreLine, Tick
from zippy_batch.schema import Row
from zippy_batch.weights import Model
from zippy_batch.work.hands import Hands
from zippy_batch.work.isolation import once_more
from zippy_batch.work.rows import (
    Numbered,
    decode_pictures,
    facts_of,
    is_verbatim,
    row_batches,
    stored_files,
    whole_rows,
)


@dataclass(frozen=True)
class RestoreUnit:
    index: int
    """Shard."""
    wanted: tuple[int, ...] | None = None
    """Rows of the shard, ascending; None for all."""


@dataclass(frozen=True)
class ShardRestored:
    index: int
    done: Done
    line: RestoreLine


@dataclass(frozen=True)
class RestoreJob:
    archive: Path
    destination: Path
    temporary: Path
    """Directory on the destination's file system for files that are being written."""
    options: RestoreOptions
    models: Mapping[str, Model]
    """By codec, those that a row needs and that could be had."""
    make_codec: MakeCodec

    def start(self, threads: int) -> Callable[[RestoreUnit, Tick], ShardRestored]:
        coders = Coders.of(self.models, self.options.device, self.make_codec)
        archive, hands, writer = (
            Archive.open(self.archive, allow_damage=self.options.keep_going),
            Hands(threads),
            FileWriter(self.destination, self.temporary),
        )

        def work(unit: RestoreUnit, tick: Tick) -> ShardRestored:
            return restore_shard(unit, archive, writer, self.options, coders, hands, tick)

        return work

    def after_death(self, unit: RestoreUnit, deaths: int, reason: str) -> RestoreUnit:
        return once_more(unit, deaths, reason)


@dataclass(frozen=True)
class FileWriter:
    """Writes files below one directory, each whole or not at all. Shared by the threads of a worker."""

    destination: Path
    temporary: Path
    _real: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_real", os.path.realpath(os.fsencode(self.destination)))

    def write(self, path: bytes, data: bytes, mtime_s: int) -> None:
        """Raises ArchiveError for a path that leads out of the destination, by itself or through a link there, and
        WriteError."""
        safe_relative_path(path)
        target = os.path.join(self._real, path)
        parent = os.path.dirname(target)
        if not is_below(os.path.realpath(parent), self._real):
            raise ArchiveError(
                f"{display_path(path)} would leave {self.destination} through a link; take the link away"
            )
        new = os.path.join(os.fsencode(self.temporary), uuid.uuid4().hex.encode())
        with writing(f"{self.destination}/{display_path(path)}"):
            os.makedirs(parent, exist_ok=True)
            with open(new, "wb") as file:
                file.write(data)
            os.utime(new, (mtime_s, mtime_s))
            os.replace(new, target)


def restore_shard(
    unit: RestoreUnit,
    archive: Archive,
    writer: FileWriter,
    options: RestoreOptions,
    coders: Coders,
    hands: Hands,
    tick: Tick,
) -> ShardRestored:
    """Writes the wanted rows of a shard as files. Raises DamagedRow at the first damaged one, or with
    `options.keep_going` lists them."""
    started = time.monotonic()
    rows, damaged = whole_rows(archive, unit.index, unit.wanted)
    _stop_at_damage(damaged, options)
    line = RestoreLine(unit.index, damaged=damaged)

    def restore(batch: Sequence[Numbered]) -> RestoreLine:
        return _restore_batch(batch, unit.index, writer, options, coders)

    for part in hands.in_order(restore, row_batches(rows, options.batch_size)):
        _stop_at_damage(part.damaged, options)
        line += part
        tick(_done_of_files(part))
    line = replace(line, shard=unit.index, seconds=time.monotonic() - started)
    return ShardRestored(unit.index, _done_of_files(line), line)


def _stop_at_damage(damaged: Sequence[Finding], options: RestoreOptions) -> None:
    if damaged and not options.keep_going:
        raise DamagedRow(f"{damaged[0]}; --keep-going restores everything else and lists what is damaged")


def _restore_batch(
    batch: Sequence[Numbered], shard: int, writer: FileWriter, options: RestoreOptions, coders: Coders
) -> RestoreLine:
    if is_verbatim(batch[0][1]):
        return _restore_files(batch, shard, writer, coders)
    pictures, damage = decode_pictures(batch, coders.latent)
    line = RestoreLine(shard)
    for i, (place, row) in enumerate(batch):
        made = damage.get(i) or _written(row, pictures[i], options)
        if isinstance(made, str):
            line += RestoreLine(shard, damaged=(Finding(display_path(row.path), made, shard, place),))
        else:
            writer.write(restored_path(row.path, row.source_format or "", options.format), made, row.mtime_s)
            line += _restored_line(row, pictures[i], made, options.reference)
    return line


def _restore_files(batch: Sequence[Numbered], shard: int, writer: FileWriter, coders: Coders) -> RestoreLine:
    """Exact or raw rows: the source's own bytes."""
    line = RestoreLine(shard)
    for (place, row), file in zip(batch, stored_files(batch, coders), strict=True):
        if isinstance(file, str):
            line += RestoreLine(shard, damaged=(Finding(display_path(row.path), file, shard, place),))
        else:
            writer.write(row.path, file, row.mtime_s)
            raw, size = int(row.codec == "raw"), len(file)
            line += RestoreLine(shard, 1, size, size, raw_images=raw, exact_images=1 - raw)
    return line


def _written(row: Row, pixels: Pixels, options: RestoreOptions) -> bytes | str:
    """A file of the picture, or why there can be none: a row whose checksum is right may still be nonsense."""
    try:
        return write_picture(pixels, facts_of(row), options.format, options.jpeg_quality)
    except (ArchiveError, ValueError, OSError) as error:
        return f"it cannot be written as {options.format}: {error}"


def _restored_line(row: Row, pixels: Pixels, data: bytes, reference: Path | None) -> RestoreLine:
    line = RestoreLine(None, 1, row.source_bytes, len(data))
    if reference is None:
        return line
    original = _original(reference, row.path)
    if original is None or original.shape != pixels.shape:
        return replace(line, unmatched=1)
    return replace(line, quality=Quality.of([compare(original, decode_written(data, row.grey))]))


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
