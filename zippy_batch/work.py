"""What a worker does with one shard: archive it, restore it, check it. Ordinary functions; nothing here knows Ray.

    archive   files -> pictures -> batches -> payloads, verified -> rows -> part
    restore   rows -> batches -> pictures -> files
    verify    rows -> checksums, and if asked: decode, compare with the originals

Reading and coding run on a few threads. They change the speed and no byte: batches are cut in path order before a
thread sees them, the networks run on one thread each, and results are put back in order.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from zippy_batch.archive import Archive, ArchiveInfo, part_name, write_part
from zippy_batch.coding import Codec, Coded, MakeCodec, Pixels, code_batch, compare, compare_restored, latent_item
from zippy_batch.config import ArchiveOptions, RestoreOptions
from zippy_batch.errors import ArchiveError, DamagedRow, SourceError, WorkerError
from zippy_batch.images import (
    Facts,
    Picture,
    SourceFile,
    Unsuitable,
    decode_written,
    display_path,
    is_below,
    read_file,
    read_picture,
    restored_path,
    safe_relative_path,
    write_picture,
)
from zippy_batch.plan import Shard, cut_batches
from zippy_batch.report import FLOOR_REASON, Done, Finding, Quality, RestoreLine, Tick
from zippy_batch.schema import Row
from zippy_batch.weights import Model

FILES_PER_READ = 16
"""Files that a thread reads before it looks for other work."""
SMALLER_REASON = "smaller as it is"
UNLIKE_PSNR_DB = 14.0
"""Below it a picture is not recognised. Faces stay above it at every quality; noise, which no model predicts, may not.
"""
UNLIKE_REASON = f"the model fails on it (below {UNLIKE_PSNR_DB:g} dB)"
PSNR_TOLERANCE_DB = 0.05
"""How far a picture may fall below the PSNR its row promises before `verify --against` says so. Synthesis in floats
differs by a level here and there between machines and batch sizes, and so does the JPEG made of it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Hands:
    """The threads of one worker; with one, the caller's own."""

    def __init__(self, threads: int) -> None:
        self._ahead = threads + 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="zippy") if threads > 1 else None

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """function(item) of each, in order, and only a few items ahead of what has been taken."""
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# ---- archive ----


@dataclass(frozen=True)
class Loaded:
    """A picture whose row is not made yet, with the bytes it came from: they may yet be kept raw."""

    place: int
    """Row in the shard."""
    file: SourceFile
    data: bytes
    picture: Picture


@dataclass(frozen=True)
class ShardDone:
    index: int
    done: Done
    seconds: float


@dataclass(frozen=True)
class ArchiveJob:
    """Shards -> committed parts."""

    source: Path
    parts: Path
    """Directory in the staging."""
    options: ArchiveOptions
    model: Model
    make_codec: MakeCodec
    info: ArchiveInfo

    def start(self, threads: int) -> Callable[[Shard, Tick], ShardDone]:
        codec, hands = self.make_codec(self.model, self.options.device), Hands(threads)

        def work(shard: Shard, tick: Tick) -> ShardDone:
            started = time.monotonic()
            rows = archive_shard(shard, self.source, self.options, codec, hands, tick)
            commit_part(self.parts / part_name(shard.index), rows, self.info, self.options.verify)
            return ShardDone(shard.index, _done_of(rows), time.monotonic() - started)

        return work


def commit_part(part: Path, rows: Sequence[Row], info: ArchiveInfo, verify: bool) -> None:
    """Write a part and, if `verify`, read its rows back before it gets its name. Raises WorkerError."""
    new = part.with_name(f"{part.name}.new-{uuid.uuid4().hex}")
    write_part(new, rows, info)
    if verify:
        with Archive.open(new) as opened:
            lost = [found for found in opened.read_rows(0) if not isinstance(found, Row)]
        if lost:
            raise WorkerError(
                f"{part} does not read back as it was written: {lost[0]}; check this machine's memory and disk"
            )
    os.replace(new, part)


def archive_shard(
    shard: Shard, source: Path, options: ArchiveOptions, codec: Codec, hands: Hands, tick: Tick
) -> list[Row]:
    """Rows of a shard, in path order.

    Raises SourceError for a file that cannot be read or has changed since it was listed and, with `options.strict`,
    for one that would have to be kept raw.
    """
    from zippy_batch.latent.codec import grid

    rows: dict[int, Row] = {}

    def pictures() -> Iterator[Loaded]:
        for place, (file, data, found) in enumerate(_read_all(shard.files, source, hands)):
            if isinstance(found, Picture):
                yield Loaded(place, file, data, found)
                continue
            _forbid_raw(file, found, options)
            rows[place] = _unsuitable_row(file, data, found)
            tick(_done_of([rows[place]]))

    batches = cut_batches(pictures(), _size, grid, options.batch_size)
    for batch, made in hands.in_order(lambda batch: (batch, _archive_batch(batch, options, codec)), batches):
        rows.update((loaded.place, row) for loaded, row in zip(batch, made, strict=True))
        tick(_done_of(made))
    return [rows[place] for place in range(len(shard.files))]


def _size(loaded: Loaded) -> tuple[int, int]:
    height, width = loaded.picture.pixels.shape[:2]
    return height, width


def _archive_batch(batch: Sequence[Loaded], options: ArchiveOptions, codec: Codec) -> list[Row]:
    pictures = [loaded.picture for loaded in batch]
    coded = code_batch(pictures, options.quality, options.min_psnr, options.verify, codec)
    return [_row(loaded, one, options) for loaded, one in zip(batch, coded, strict=True)]


def _read_all(
    files: Sequence[SourceFile], source: Path, hands: Hands
) -> Iterator[tuple[SourceFile, bytes, Picture | Unsuitable]]:
    def read(some: Sequence[SourceFile]) -> list[tuple[SourceFile, bytes, Picture | Unsuitable]]:
        contents = ((file, read_file(source, file)) for file in some)
        return [(file, data, read_picture(data)) for file, data in contents]

    groups = (files[start : start + FILES_PER_READ] for start in range(0, len(files), FILES_PER_READ))
    for group in hands.in_order(read, groups):
        yield from group


def _forbid_raw(file: SourceFile, found: Unsuitable, options: ArchiveOptions) -> None:
    if options.strict:
        raise SourceError(
            f"{display_path(file.path)} would be kept raw ({found.reason}), which --strict forbids; "
            f"take it out, or run without --strict"
        )


def _row(loaded: Loaded, coded: Coded, options: ArchiveOptions) -> Row:
    facts = loaded.picture.facts
    reason = _reason_for_raw(loaded, coded, options)
    row = Row(
        path=loaded.file.path,
        codec="raw" if reason else "latent",
        payload=loaded.data if reason else coded.payload,
        raw_reason=reason,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
        grey=loaded.picture.pixels.ndim == 2,
        quality=coded.quality,
        source_bytes=len(loaded.data),
        source_format=facts.format,
        jpeg_quality=facts.jpeg_quality,
        jpeg_tables=facts.jpeg_tables,
        psnr=coded.psnr,
        ssim=coded.ssim,
        exif=facts.exif,
        icc=facts.icc,
        mtime_s=loaded.file.mtime_s,
    )
    return replace(row, quality=None, psnr=None, ssim=None, jpeg_tables=None, exif=None, icc=None) if reason else row


def _reason_for_raw(loaded: Loaded, coded: Coded, options: ArchiveOptions) -> str | None:
    facts = loaded.picture.facts
    if coded.failure is not None:
        return coded.failure
    if not coded.reaches(options.min_psnr):
        return f"{FLOOR_REASON} {options.min_psnr:g} at every quality"
    if coded.psnr is not None and coded.psnr < UNLIKE_PSNR_DB:
        return UNLIKE_REASON
    stored_bytes = len(coded.payload) + len(facts.exif or b"") + len(facts.icc or b"")
    return SMALLER_REASON if stored_bytes >= len(loaded.data) else None


def _unsuitable_row(file: SourceFile, data: bytes, found: Unsuitable) -> Row:
    return Row(
        path=file.path,
        codec="raw",
        payload=data,
        raw_reason=found.reason,
        width=found.width,
        height=found.height,
        mode=None,
        grey=False,
        quality=None,
        source_bytes=len(data),
        source_format=found.format,
        jpeg_quality=None,
        jpeg_tables=None,
        psnr=None,
        ssim=None,
        exif=None,
        icc=None,
        mtime_s=file.mtime_s,
    )


def _done_of(rows: Sequence[Row]) -> Done:
    return Done(len(rows), *_sizes(rows))


def _sizes(rows: Iterable[Row]) -> tuple[int, int]:
    """Bytes of the sources and of the payloads."""
    sizes = [(row.source_bytes, len(row.payload)) for row in rows]
    return sum(source for source, _ in sizes), sum(stored for _, stored in sizes)


# ---- restore ----


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
    model: Model | None
    """None where no row needs one."""
    make_codec: MakeCodec

    def start(self, threads: int) -> Callable[[RestoreUnit, Tick], ShardRestored]:
        codec = self.make_codec(self.model, self.options.device) if self.model else None
        archive, hands, writer = (
            Archive.open(self.archive, allow_damage=self.options.keep_going),
            Hands(threads),
            FileWriter(self.destination, self.temporary),
        )

        def work(unit: RestoreUnit, tick: Tick) -> ShardRestored:
            return restore_shard(unit, archive, writer, self.options, codec, hands, tick)

        return work


@dataclass(frozen=True)
class FileWriter:
    """Writes files below one directory, each whole or not at all. Shared by the threads of a worker."""

    destination: Path
    temporary: Path
    _real: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_real", os.path.realpath(os.fsencode(self.destination)))

    def write(self, path: bytes, data: bytes, mtime_s: int) -> None:
        """Raises ArchiveError for a path that leads out of the destination, by itself or through a link there."""
        safe_relative_path(path)
        target = os.path.join(self._real, path)
        parent = os.path.dirname(target)
        if not is_below(os.path.realpath(parent), self._real):
            raise ArchiveError(
                f"{display_path(path)} would leave {self.destination} through a link; take the link away"
            )
        os.makedirs(parent, exist_ok=True)
        new = os.path.join(os.fsencode(self.temporary), uuid.uuid4().hex.encode())
        with open(new, "wb") as file:
            file.write(data)
        os.utime(new, (mtime_s, mtime_s))
        os.replace(new, target)


def restore_shard(
    unit: RestoreUnit,
    archive: Archive,
    writer: FileWriter,
    options: RestoreOptions,
    codec: Codec | None,
    hands: Hands,
    tick: Tick,
) -> ShardRestored:
    """Writes the wanted rows of a shard as files. Raises DamagedRow at the first damaged one, or with
    `options.keep_going` lists them."""
    started = time.monotonic()
    rows, damaged = _whole_rows(archive, unit.index, unit.wanted)
    _stop_at_damage(damaged, options)
    line = RestoreLine(unit.index, damaged=damaged)

    def restore(batch: Sequence[Numbered]) -> RestoreLine:
        return _restore_batch(batch, unit.index, writer, options, codec)

    for part in hands.in_order(restore, _decodable(rows, options.batch_size)):
        _stop_at_damage(part.damaged, options)
        line += part
        tick(_done_of_files(part))
    line = replace(line, shard=unit.index, seconds=time.monotonic() - started)
    return ShardRestored(unit.index, _done_of_files(line), line)


Numbered = tuple[int, Row]
"""A row and its place in its shard."""


def _whole_rows(
    archive: Archive, shard: int, wanted: tuple[int, ...] | None
) -> tuple[list[Numbered], tuple[Finding, ...]]:
    rows: list[Numbered] = []
    damaged: list[Finding] = []
    places = range(archive.info.shards[shard]) if wanted is None else wanted
    for place, row in zip(places, archive.read_rows(shard, wanted), strict=True):
        if isinstance(row, Row):
            rows.append((place, row))
        else:
            damaged.append(Finding(_name(row.path), row.reason, shard, place))
    return rows, tuple(damaged)


def _name(path: bytes | None) -> str:
    return "(its path is lost)" if path is None else display_path(path)


def _stop_at_damage(damaged: Sequence[Finding], options: RestoreOptions) -> None:
    if damaged and not options.keep_going:
        raise DamagedRow(f"{damaged[0]}; --keep-going restores everything else and lists what is damaged")


def _decodable(rows: Iterable[Numbered], batch_size: int) -> Iterator[list[Numbered]]:
    """Batches of one latent grid; raw rows, which have none, are among themselves."""
    from zippy_batch.latent.codec import grid

    def size(numbered: Numbered) -> tuple[int, int]:
        row = numbered[1]
        return (row.height or 0, row.width or 0) if row.codec == "latent" else (0, 0)

    return cut_batches(rows, size, lambda h, w: grid(h, w) if h else (0, 0), batch_size)


def _decode(batch: Sequence[Numbered], codec: Codec | None) -> tuple[list[Pixels], dict[int, str]]:
    """Pixels of latent rows, and what is wrong by place in the batch."""
    if codec is None:
        return [], dict.fromkeys(range(len(batch)), "the model that it needs is missing or damaged")
    rows = [row for _, row in batch]
    items = [latent_item(row.payload, row.height or 0, row.width or 0, row.grey, row.quality or 0) for row in rows]
    return codec.decode_checked(items)


def _restore_batch(
    batch: Sequence[Numbered], shard: int, writer: FileWriter, options: RestoreOptions, codec: Codec | None
) -> RestoreLine:
    if batch[0][1].codec == "raw":
        for _, row in batch:
            writer.write(row.path, row.payload, row.mtime_s)
        size_bytes = sum(row.source_bytes for _, row in batch)
        return RestoreLine(shard, len(batch), size_bytes, size_bytes, raw_images=len(batch))
    pictures, damage = _decode(batch, codec)
    line = RestoreLine(shard)
    for i, (place, row) in enumerate(batch):
        made = damage.get(i) or _written(row, pictures[i], options)
        if isinstance(made, str):
            line += RestoreLine(shard, damaged=(Finding(display_path(row.path), made, shard, place),))
        else:
            writer.write(restored_path(row.path, row.source_format or "", options.format), made, row.mtime_s)
            line += _restored_line(row, pictures[i], made, options.reference)
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


def facts_of(row: Row) -> Facts:
    """What a restored file needs besides the pixels."""
    return Facts(
        format=row.source_format or "",
        mode=row.mode or "RGB",
        width=row.width or 0,
        height=row.height or 0,
        jpeg_quality=row.jpeg_quality,
        jpeg_tables=row.jpeg_tables,
        exif=row.exif,
        icc=row.icc,
    )


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


# ---- verify ----


@dataclass(frozen=True)
class VerifyUnit:
    index: int
    """Shard."""
    originals: Mapping[bytes, SourceFile] = field(default_factory=dict)
    """Files to compare its rows with, by path; rows without one are only checked."""


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
    archive: Path
    against: Path | None
    deep: bool
    device: str
    model: Model | None
    """None where nothing is decoded."""
    make_codec: MakeCodec

    def start(self, threads: int) -> Callable[[VerifyUnit, Tick], ShardVerified]:
        codec = self.make_codec(self.model, self.device) if self.model else None
        archive, hands = Archive.open(self.archive, allow_damage=True), Hands(threads)

        def work(unit: VerifyUnit, tick: Tick) -> ShardVerified:
            return verify_shard(unit, archive, self, codec, hands, tick)

        return work


def verify_shard(
    unit: VerifyUnit, archive: Archive, job: VerifyJob, codec: Codec | None, hands: Hands, tick: Tick
) -> ShardVerified:
    """Checksums of all rows; with `job.deep` decodes them, with `job.against` compares them with their originals."""
    rows, damaged = _whole_rows(archive, unit.index, None)
    done = Done(len(rows) + len(damaged), *_sizes(row for _, row in rows))
    if not job.deep and job.against is None:
        tick(done)
        return ShardVerified(unit.index, done, 0, damaged, (), 0)
    verified = ShardVerified(unit.index, done, 0, damaged, (), 0)

    def check(batch: Sequence[Numbered]) -> ShardVerified:
        return _verify_batch(batch, unit, job.against, codec)

    for part in hands.in_order(check, _decodable(rows, ArchiveOptions.batch_size)):
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
    batch: Sequence[Numbered], unit: VerifyUnit, against: Path | None, codec: Codec | None
) -> ShardVerified:
    is_latent = batch[0][1].codec != "raw"
    pictures, damage = _decode(batch, codec) if is_latent else ([], {})
    damaged, differing, unpromised = [], [], 0
    for i, (place, row) in enumerate(batch):
        where = display_path(row.path), unit.index, place
        if i in damage:
            damaged.append(Finding(where[0], damage[i], *where[1:]))
        elif against is not None and row.path in unit.originals:
            difference = _difference(row, pictures[i] if is_latent else None, against, unit.originals[row.path])
            differing += [Finding(where[0], difference, *where[1:])] if difference else []
            unpromised += is_latent and row.psnr is None
    done = Done(len(batch), *_sizes(row for _, row in batch))
    return ShardVerified(unit.index, done, len(batch) * is_latent, tuple(damaged), tuple(differing), unpromised)


def _difference(row: Row, decoded: Pixels | None, against: Path, file: SourceFile) -> str | None:
    """How the row is not what it promises of its original; None where it is."""
    if row.source_bytes != file.size_bytes:
        return f"the file has {file.size_bytes} bytes, the archive says {row.source_bytes}"
    data = read_file(against, file)
    if decoded is None:
        return None if data == row.payload else "the file's bytes are not those in the archive"
    picture = read_picture(data)
    if not isinstance(picture, Picture):
        return f"the file is no picture that would be coded ({picture.reason}), but the archive holds it as one"
    if replace(picture.facts, jpeg_quality=None) != replace(facts_of(row), jpeg_quality=None):
        return "format, mode, size, quantisation tables, EXIF or ICC data are not those in the archive"
    if picture.pixels.shape != decoded.shape:
        return f"the picture is {picture.pixels.shape}, the archive's is {decoded.shape}"
    psnr, _ = compare_restored(picture.pixels, decoded, picture.facts)
    if row.psnr is not None and psnr < row.psnr - PSNR_TOLERANCE_DB:
        return f"restored it would have {psnr:.2f} dB, the archive promises {row.psnr:.2f} dB"
    return None
