"""Check a shard: checksums, and if asked decode its rows and compare them with the originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.codecs.model_file import Model
from zippy_batch.config import ArchiveOptions, VerifyOptions
from zippy_batch.images.pixels import Picture, read_picture
from zippy_batch.paths import display_path
from zippy_batch.run.encode_verified import Coders, MakeCodec, Pixels, compare_restored
from zippy_batch.run.quarantine import retry
from zippy_batch.run.report import Done, Finding, Tick
from zippy_batch.run.rows import (
    Numbered,
    decode_pictures,
    facts_of,
    is_verbatim,
    read_shard,
    restored_file,
    row_batches,
    sizes,
    stored_files,
)
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.sources import Read, Source
from zippy_batch.sources.directory import SourceFile
from zippy_batch.stores.object_path import Place

PSNR_TOLERANCE_DB = 0.05
"""How far a picture may fall below the PSNR its row promises before `verify --against` says so. Synthesis in floats
differs by a level here and there between machines and batch sizes, and so does the JPEG made of it."""

BULK_ROWS = 20_000
"""Rows of an archive above which compiling the checksum pays where it was not compiled before."""


@dataclass(frozen=True)
class VerifyUnit:
    index: int
    """Shard."""
    originals: Mapping[bytes, SourceFile] = field(default_factory=dict)
    """Files to compare its rows with, by path; rows without one are only checked."""
    rows: tuple[int, ...] | None = None
    """A sample of its rows, ascending; None for all of them."""


@dataclass(frozen=True)
class ShardVerified:
    index: int
    done: Done
    decoded: int
    damaged: tuple[Finding, ...]
    differing: tuple[Finding, ...]
    unpromised: int


@dataclass(frozen=True)
class VerifyJob:
    archive: Place
    against: Source | None
    options: VerifyOptions
    device: str
    models: Mapping[str, Model]
    """Codec -> model; none where nothing is decoded."""
    make_codec: MakeCodec
    with_labels: bool = True
    """Whether `against` has any labels to compare: the directory that a tar was unpacked to has none."""

    def start(self, threads: int) -> Callable[[VerifyUnit, Tick], ShardVerified]:
        coders = Coders.of(self.models, self.device, self.make_codec)
        archive = ArchiveReader.open(self.archive, True, self.options.max_row_bytes)
        pool = OrderedThreadPool(threads)

        def work(unit: VerifyUnit, tick: Tick) -> ShardVerified:
            return verify_shard(unit, archive, self, coders, pool, tick)

        return work

    def after_death(self, unit: VerifyUnit, deaths: int, reason: str) -> VerifyUnit:
        return retry(unit, deaths, reason)


def verify_shard(
    unit: VerifyUnit, archive: ArchiveReader, job: VerifyJob, coders: Coders, pool: OrderedThreadPool, tick: Tick
) -> ShardVerified:
    """Checksums of all rows; with `deep` among its options decodes them, with `job.against` compares them with their
    originals."""
    only_checksums = not job.options.deep and job.against is None
    if only_checksums and unit.rows is None and archive.row_count >= BULK_ROWS:
        whole = archive.whole_sizes(unit.index)
        if whole is not None:
            done = Done(archive.info.shards[unit.index], *whole)
            tick(done)
            return ShardVerified(unit.index, done, 0, (), (), 0)
    read_rows = read_shard(archive, unit.index, unit.rows, are_few=True)
    rows, damaged = read_rows.whole, read_rows.damaged
    done = Done(len(rows) + len(damaged), *sizes(row for _, row in rows))
    if only_checksums:
        tick(done)
        return ShardVerified(unit.index, done, 0, damaged, (), 0)
    verified = ShardVerified(unit.index, done, 0, damaged, (), 0)
    read = job.against.reader(list(unit.originals.values())) if job.against else None

    def check(batch: Sequence[Numbered]) -> ShardVerified:
        return _verify_batch(batch, unit, job, read, coders)

    for part in pool.in_order(check, row_batches(rows, ArchiveOptions.batch_size)):
        verified = replace(
            verified,
            decoded=verified.decoded + part.decoded,
            damaged=verified.damaged + part.damaged,
            differing=verified.differing + part.differing,
            unpromised=verified.unpromised + part.unpromised,
        )
        tick(part.done)
    tick(Done(len(damaged)))
    return verified


def _verify_batch(
    batch: Sequence[Numbered], unit: VerifyUnit, job: VerifyJob, read: Read | None, coders: Coders
) -> ShardVerified:
    verbatim = is_verbatim(batch[0][1])
    pictures, damage = ([], {}) if verbatim else decode_pictures(batch, coders.latent)
    for i, picture in enumerate(pictures):
        # what passes here, restore writes
        if i not in damage and isinstance(problem := restored_file(batch[i][1], picture), str):
            damage[i] = problem
    files = stored_files(batch, coders) if verbatim else []
    damage |= {i: file for i, file in enumerate(files) if isinstance(file, str)}
    damaged, differing, unpromised = [], [], 0
    for i, (place, row) in enumerate(batch):
        where = display_path(row.path), unit.index, place
        if i in damage:
            damaged.append(Finding(where[0], damage[i], *where[1:]))
        elif read is not None and row.path in unit.originals:
            found = files[i] if verbatim else pictures[i]
            file = unit.originals[row.path]
            difference = _label_difference(row, file) if job.with_labels else None
            difference = difference or _difference(row, found, read, file)
            differing += [Finding(where[0], difference, *where[1:])] if difference else []
            unpromised += not verbatim and row.psnr is None
    done = Done(len(batch), *sizes(row for _, row in batch))
    decoded = 0 if batch[0][1].codec == "raw" else len(batch)
    return ShardVerified(unit.index, done, decoded, tuple(damaged), tuple(differing), unpromised)


def _label_difference(row: Row, file: SourceFile) -> str | None:
    return None if row.label == file.label else f"its label is {file.label!r}, the archive says {row.label!r}"


def _difference(row: Row, found: Pixels | bytes | str, read: Read, file: SourceFile) -> str | None:
    """How the row is not what it promises of its original; None where it is. What was found of it is its file, or the
    pixels of a latent row."""
    if row.source_bytes != file.size_bytes:
        return f"the file has {file.size_bytes} bytes, the archive says {row.source_bytes}"
    data = read(file)
    if isinstance(found, bytes | str):
        return None if data == found else "the file's bytes are not those in the archive"
    picture = read_picture(data)
    if not isinstance(picture, Picture):
        return f"the file is no picture that would be coded ({picture.reason}), but the archive holds it as one"
    if replace(picture.facts, jpeg_quality=None) != replace(facts_of(row), jpeg_quality=None):
        return "format, mode, size, quantisation tables, EXIF or ICC data are not those in the archive"
    if picture.pixels.shape != found.shape:
        return f"the picture is {picture.pixels.shape}, the archive's is {found.shape}"
    psnr, _ = compare_restored(picture.pixels, found, picture.facts)
    if row.psnr is not None and psnr < row.psnr - PSNR_TOLERANCE_DB:
        return f"restored it would have {psnr:.2f} dB, the archive promises {row.psnr:.2f} dB"
    return None
