"""Archive a shard: files -> pictures, JPEG coefficients -> batches -> payloads, verified -> rows -> part.

What a row becomes:

    --exact       exact, where the file is a JPEG that can be rebuilt; else raw
    otherwise     latent, where the file is a picture and the codec can keep it; exact instead, where that takes no more
                  bytes or where the lossy codec fails; else raw
    --no-exact    latent, else raw

A file that kills its workers is raw in any case: see `isolation`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.archives.writer import part_name, write_part
from zippy_batch.codecs.model_file import Model
from zippy_batch.config import ArchiveOptions
from zippy_batch.errors import SourceError, WorkerError
from zippy_batch.images.pixels import Facts, Picture, Unsuitable, estimate_jpeg_quality, read_picture
from zippy_batch.images.probe import EMPTY, Refused, read_header
from zippy_batch.paths import display_path
from zippy_batch.run.encode_verified import CodedFile, CodedPicture, Coders, MakeCodec, code_batch, code_files
from zippy_batch.run.plan import BatchLimit, Key, Shard, cut_batches
from zippy_batch.run.quarantine import (
    CODING,
    DECODING,
    JournalEntry,
    QuarantinedShard,
    StepJournal,
    open_journal,
    retry_with_journal,
)
from zippy_batch.run.report import FLOOR_REASON, Done, Tick
from zippy_batch.run.rows import EXACT_BATCH, sizes
from zippy_batch.run.staging import committing
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.sources import Source
from zippy_batch.sources.directory import SourceFile
from zippy_batch.stores.object_path import Place

if TYPE_CHECKING:
    from zippy_batch.jpeg.file import JpegImage

FILES_PER_READ = 16
BYTES_PER_READ = 1 << 20
"""Files that a thread reads before it looks for other work; read, they take up to fifty times their size."""
SMALLER_REASON = "smaller as it is"
UNLIKE_PSNR_DB = 14.0
"""A picture below it is not recognised. Faces stay above it at every quality; noise, which no model predicts, may not.
"""
UNLIKE_REASON = f"lossy quality too low (PSNR below {UNLIKE_PSNR_DB:g} dB)"
EXACT_SHARE = 0.5
"""Share of a JPEG's scan: of 360 face files no exact payload was below 0.517 of it, so that the exact codec need not be
tried where the lossy payload is below this."""


@dataclass(frozen=True)
class Loaded:
    """A file whose row is not made yet, with its bytes: they may yet be kept raw."""

    place: int
    """Row in the shard."""
    file: SourceFile
    data: bytes
    found: Picture | JpegImage
    stands_in: bool = False
    """Whether it is an empty picture in place of a poison file, whose row is made: it keeps the shape of its batch."""


@dataclass(frozen=True)
class PoisonFile:
    """A file that killed its workers."""

    reason: str
    format: str | None
    width: int | None
    height: int | None
    empty: Picture | None = None
    """What stands in for it; None for a file that is in no batch of pictures, whoever reads it."""


Found = Union[Picture, "JpegImage", Unsuitable, PoisonFile]
Look = Callable[[bytes], Union[Picture, "JpegImage", Unsuitable]]


@dataclass(frozen=True)
class ShardDone:
    index: int
    done: Done
    seconds: float


@dataclass(frozen=True)
class ArchiveJob:
    """Shards -> committed parts."""

    source: Source
    parts: Place
    """Directory in the staging."""
    options: ArchiveOptions
    models: Mapping[str, Model]
    """Codec -> its model."""
    make_codec: MakeCodec
    info: ArchiveInfo

    def start(self, threads: int) -> Callable[[Shard | QuarantinedShard, Tick], ShardDone]:
        coders, pool = Coders.of(self.models, self.options.device, self.make_codec), OrderedThreadPool(threads)

        def work(unit: Shard | QuarantinedShard, tick: Tick) -> ShardDone:
            started, done = time.monotonic(), Done()

            def count(piece: Done) -> None:
                nonlocal done
                done += piece
                tick(piece)

            rows = archive_shard(unit, self.source, self.options, coders, pool, count)
            commit_part(self.parts / part_name(unit.index), rows, self.info, self.options.verify)
            return ShardDone(unit.index, done, time.monotonic() - started)

        return work

    def after_death(self, unit: Shard | QuarantinedShard, deaths: int, reason: str) -> Shard | QuarantinedShard:
        return retry_with_journal(unit, deaths, reason, self.parts)


def commit_part(part: Place, rows: Sequence[Row], info: ArchiveInfo, verify: bool) -> None:
    """Write a part and, if `verify`, read its rows back before it gets its name. Raises WorkerError, StorageError."""
    with committing(part) as new:
        _write_checked(new, part, rows, info, verify)


def _write_checked(new: Path, part: Place, rows: Sequence[Row], info: ArchiveInfo, verify: bool) -> None:
    write_part(new, rows, info)
    if verify:
        with ArchiveReader.open(new) as opened:
            lost = [found for found in opened.read_rows(0) if not isinstance(found, Row)]
        if lost:
            raise WorkerError(
                f"{part} does not read back as it was written: {lost[0]}; check this machine's memory and disk"
            )


def archive_shard(
    unit: Shard | QuarantinedShard,
    source: Source,
    options: ArchiveOptions,
    coders: Coders,
    pool: OrderedThreadPool,
    tick: Tick,
) -> list[Row]:
    """Rows of a shard, in path order.

    Raises SourceError for a file that cannot be read or has changed since it was listed and, with `options.strict`,
    for one that would have to be kept raw.
    """
    with open_journal(unit) as journal:
        shard, pool = (unit.shard, OrderedThreadPool(1)) if isinstance(unit, QuarantinedShard) else (unit, pool)
        return _ShardArchiver(source, options, coders, journal).rows(shard, pool, tick)


@dataclass(frozen=True)
class _ShardArchiver:
    """One shard at work."""

    source: Source
    options: ArchiveOptions
    coders: Coders
    journal: StepJournal

    def rows(self, shard: Shard, pool: OrderedThreadPool, tick: Tick) -> list[Row]:
        rows: dict[int, Row] = {}

        def loaded() -> Iterator[Loaded]:
            for place, (file, data, found) in enumerate(
                _read_all(shard.files, self.source, self.options, pool, self.journal)
            ):
                if not isinstance(found, Unsuitable | PoisonFile):
                    yield Loaded(place, file, data, found)
                    continue
                _forbid_raw(file, found.reason, self.options)
                rows[place] = _raw_row(file, data, found.reason, found.format, found.width, found.height)
                tick(_done_of([rows[place]]))
                if isinstance(found, PoisonFile) and found.empty is not None:
                    yield Loaded(place, file, b"", found.empty, stands_in=True)

        def archive_batch(batch: Sequence[Loaded]) -> tuple[list[Loaded], list[Row]]:
            if all(one.stands_in for one in batch):
                return [], []
            if self.journal.careful:
                _try_alone(batch, self.options, self.coders, self.journal)
            made = zip(batch, _archive_batch(batch, self.options, self.coders), strict=True)
            kept = [(one, row) for one, row in made if not one.stands_in]
            return [one for one, _ in kept], [row for _, row in kept]

        limits = {"latent": BatchLimit(self.options.batch_size), "exact": EXACT_BATCH}
        batches = cut_batches(loaded(), _key, _samples, lambda key: limits[key[0]])
        for batch, made in pool.in_order(archive_batch, batches):
            for one, row in zip(batch, made, strict=True):
                if row.raw_reason not in (None, SMALLER_REASON):
                    _forbid_raw(one.file, row.raw_reason, self.options)
            rows.update((one.place, row) for one, row in zip(batch, made, strict=True))
            tick(replace(_done_of(made), dropped=_dropped(batch, made)))
        return [rows[place] for place in range(len(shard.files))]


def _try_alone(batch: Sequence[Loaded], options: ArchiveOptions, coders: Coders, journal: StepJournal) -> None:
    """Codes each file of a batch by itself, for nothing but the journal: it says which one a worker dies of."""
    for one in batch:
        if not one.stands_in:
            with journal.at(CODING, one.place):
                _archive_batch([one], options, coders)


def _done_of(rows: Sequence[Row]) -> Done:
    return Done(len(rows), *sizes(rows))


def _dropped(batch: Sequence[Loaded], made: Sequence[Row]) -> Counter[str]:
    """Kinds of metadata that lossy rows leave out."""
    lossy = [one.found for one, row in zip(batch, made, strict=True) if row.codec == "latent"]
    return Counter(kind for found in lossy if isinstance(found, Picture) for kind in found.dropped)


# ---- reading ----


def _read_all(
    files: Sequence[SourceFile], source: Source, options: ArchiveOptions, pool: OrderedThreadPool, journal: StepJournal
) -> Iterator[tuple[SourceFile, bytes, Found]]:
    read_file = source.reader(files)
    looks: Mapping[str, Look] = {"always": _look_exact, "auto": _look_both, "never": read_picture}
    look = looks[options.exact]

    def read_one(place: int, file: SourceFile) -> tuple[SourceFile, bytes, Found]:
        with journal.at(DECODING, place):
            data = read_file(file)
            step = journal.poison.get(place)
            return file, data, look(data) if step is None else _as_poison(data, step, look)

    def read(some: Sequence[tuple[int, SourceFile]]) -> list[tuple[SourceFile, bytes, Found]]:
        return [read_one(place, file) for place, file in some]

    for group in pool.in_order(read, _groups(files)):
        yield from group


def _groups(files: Sequence[SourceFile]) -> Iterator[list[tuple[int, SourceFile]]]:
    group: list[tuple[int, SourceFile]] = []
    held = 0
    for place, file in enumerate(files):
        if group and (len(group) == FILES_PER_READ or held + file.size_bytes > BYTES_PER_READ):
            yield group
            group, held = [], 0
        group.append((place, file))
        held += file.size_bytes
    if group:
        yield group


def _as_poison(data: bytes, step: JournalEntry, look: Look) -> PoisonFile:
    """What is known of a poison file; it is decoded only where that is not what its workers died of."""
    found = look(data) if step.doing == CODING else None
    if isinstance(found, Picture):
        facts = found.facts
        like_it = _empty(facts.width, facts.height, found.pixels.ndim == 2)
        return PoisonFile(step.reason, facts.format, facts.width, facts.height, like_it)
    try:
        header = read_header(data)
    except Refused as refused:
        return PoisonFile(step.reason, refused.format, refused.width, refused.height)
    grey = header.jpeg is not None and len(header.jpeg.sampling) == 1
    empty = _empty(header.width, header.height, grey) if found is None and look is not _look_exact else None
    return PoisonFile(step.reason, header.format, header.width, header.height, empty)


def _empty(width: int, height: int, grey: bool) -> Picture:
    """A black picture, in a format that the exact codec is never tried on."""
    pixels = np.zeros((height, width) if grey else (height, width, 3), np.uint8)
    return Picture(pixels, Facts("png", "L" if grey else "RGB", width, height))


def _look_exact(data: bytes) -> JpegImage | Unsuitable:
    from zippy_batch.jpeg.file import Unrebuildable, parse

    try:
        return parse(data)
    except Unrebuildable as error:
        reason = str(error) if data else EMPTY
    try:
        header = read_header(data)
    except Refused as refused:
        return Unsuitable(reason, refused.format, refused.width, refused.height)
    return Unsuitable(reason, header.format, header.width, header.height)


def _look_both(data: bytes) -> Picture | JpegImage | Unsuitable:
    from zippy_batch.jpeg.file import Unrebuildable, parse

    found = read_picture(data)
    if isinstance(found, Unsuitable) and found.format == "jpeg":
        try:
            return parse(data)
        except Unrebuildable:
            pass
    return found


def _forbid_raw(file: SourceFile, reason: str | None, options: ArchiveOptions) -> None:
    if options.strict:
        raise SourceError(
            f"{display_path(file.path)} would be kept raw ({reason}), which --strict forbids; "
            f"take it out, or run without --strict"
        )


# ---- coding ----


def _key(loaded: Loaded) -> Key:
    from zippy_batch.codecs.latent.codec import grid

    if not isinstance(loaded.found, Picture):
        return ("exact", 0, 0)
    height, width = loaded.found.pixels.shape[:2]
    return ("latent", *grid(height, width))


def _samples(loaded: Loaded) -> int:
    if isinstance(loaded.found, Picture):
        height, width = loaded.found.pixels.shape[:2]
        return height * width
    return sum(c.size for c in loaded.found.coefficients)


def _archive_batch(batch: Sequence[Loaded], options: ArchiveOptions, coders: Coders) -> list[Row]:
    if isinstance(batch[0].found, Picture):
        return _archive_pictures(batch, options, coders)
    images = [(one.data, one.found) for one in batch if not isinstance(one.found, Picture)]
    return _archive_files(batch, images, options, coders)


def _archive_files(
    batch: Sequence[Loaded], images: Sequence[tuple[bytes, JpegImage]], options: ArchiveOptions, coders: Coders
) -> list[Row]:
    """Exact rows, or raw ones where coding gains nothing."""
    exact = _code_exact(dict(enumerate(images)), options, coders)
    return [_smaller_row(one, exact[i]) for i, one in enumerate(batch)]


def _archive_pictures(batch: Sequence[Loaded], options: ArchiveOptions, coders: Coders) -> list[Row]:
    pictures = [one.found for one in batch if isinstance(one.found, Picture)]
    assert coders.latent is not None
    coded = code_batch(pictures, options.quality, options.min_psnr, options.verify, coders.latent)
    failures = [_failure(one, options) for one in coded]
    exact: dict[int, _Exact] = {}
    if options.exact == "auto":
        wanted = {i: one.data for i, one in enumerate(batch) if _may_be_exact(one, coded[i], failures[i])}
        exact = _code_exact(_take_apart(wanted), options, coders)
    rows = []
    for i, (one, picture) in enumerate(zip(batch, pictures, strict=True)):
        latent = None if failures[i] else _latent_row(one, picture, coded[i])
        rows.append(_smallest_row(one, picture, latent, exact.get(i), failures[i]))
    return rows


def _failure(coded: CodedPicture, options: ArchiveOptions) -> str | None:
    """Why an image cannot be kept by the lossy codec; None where it can."""
    if coded.failure is not None:
        return coded.failure
    if not coded.reaches(options.min_psnr):
        return f"{FLOOR_REASON} {options.min_psnr:g} at every quality"
    return UNLIKE_REASON if coded.psnr is not None and coded.psnr < UNLIKE_PSNR_DB else None


def _may_be_exact(loaded: Loaded, coded: CodedPicture, failure: str | None) -> bool:
    """Whether the exact codec is worth a try: where the lossy one fails, or by the length of the file's scan."""
    if not isinstance(loaded.found, Picture) or loaded.found.facts.format != "jpeg":
        return False
    # inside a scan no 0xFF is followed by 0xDA
    scan_bytes = len(loaded.data) - loaded.data.rfind(b"\xff\xda")
    return failure is not None or len(coded.payload) >= EXACT_SHARE * scan_bytes


def _take_apart(files: Mapping[int, bytes]) -> dict[int, tuple[bytes, JpegImage]]:
    """Those of these files that can be rebuilt."""
    from zippy_batch.jpeg.file import Unrebuildable, parse

    out = {}
    for i, data in files.items():
        try:
            out[i] = data, parse(data)
        except Unrebuildable:
            continue
    return out


@dataclass(frozen=True)
class _Exact:
    """A JPEG file that the exact codec has coded."""

    image: JpegImage
    coded: CodedFile
    stored_bytes: int
    """Payload, and the header's share among the files of the batch that have the same: it is stored once."""


def _code_exact(
    files: Mapping[int, tuple[bytes, JpegImage]], options: ArchiveOptions, coders: Coders
) -> dict[int, _Exact]:
    if not files:
        return {}
    assert coders.exact is not None
    coded = code_files(list(files.values()), options.verify, coders.exact)
    alike = Counter(image.header for _, image in files.values())
    return {
        i: _Exact(image, one, len(one.payload) + len(image.header) // alike[image.header])
        for (i, (_, image)), one in zip(files.items(), coded, strict=True)
    }


# ---- rows ----


def _smallest_row(
    loaded: Loaded, picture: Picture, latent: Row | None, exact: _Exact | None, failure: str | None
) -> Row:
    """The latent, the exact or the raw row, whichever takes the fewest bytes; of equal ones the truer."""
    facts = picture.facts
    sound = exact if exact and exact.coded.failure is None else None
    if latent and (sound is None or _stored_bytes(latent) < sound.stored_bytes):
        if _stored_bytes(latent) < len(loaded.data):
            return latent
    elif sound and sound.stored_bytes < len(loaded.data):
        return _exact_row(loaded, sound)
    raw = _raw_row(loaded.file, loaded.data, failure or SMALLER_REASON, facts.format, facts.width, facts.height)
    return replace(raw, mode=facts.mode, grey=picture.pixels.ndim == 2, jpeg_quality=facts.jpeg_quality)


def _smaller_row(loaded: Loaded, exact: _Exact) -> Row:
    """The exact row, or the raw one."""
    if exact.coded.failure is None and exact.stored_bytes < len(loaded.data):
        return _exact_row(loaded, exact)
    row = _exact_row(loaded, exact)
    return replace(
        _raw_row(loaded.file, loaded.data, exact.coded.failure or SMALLER_REASON, "jpeg", row.width, row.height),
        mode=row.mode,
        grey=row.grey,
        jpeg_quality=row.jpeg_quality,
    )


def _stored_bytes(latent: Row) -> int:
    return len(latent.payload) + len(latent.exif or b"") + len(latent.icc or b"")


def _latent_row(loaded: Loaded, picture: Picture, coded: CodedPicture) -> Row:
    facts = picture.facts
    return Row(
        path=loaded.file.path,
        codec="latent",
        payload=coded.payload,
        raw_reason=None,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
        grey=picture.pixels.ndim == 2,
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
        label=loaded.file.label,
    )


def _exact_row(loaded: Loaded, exact: _Exact) -> Row:
    frame = exact.image.frame
    grey = len(frame.components) == 1
    tables = tuple(dict.fromkeys(tuple(c.table.tolist()) for c in frame.components))
    row = _raw_row(loaded.file, loaded.data, None, "jpeg", frame.width, frame.height)
    return replace(
        row,
        codec="exact",
        payload=exact.coded.payload,
        mode="L" if grey else "RGB",
        grey=grey,
        jpeg_quality=estimate_jpeg_quality(tables),
        jpeg_header=exact.image.header,
    )


def _raw_row(
    file: SourceFile, data: bytes, reason: str | None, format: str | None, width: int | None, height: int | None
) -> Row:
    return Row(
        path=file.path,
        codec="raw",
        payload=data,
        raw_reason=reason,
        width=width,
        height=height,
        mode=None,
        grey=False,
        quality=None,
        source_bytes=len(data),
        source_format=format,
        jpeg_quality=None,
        jpeg_tables=None,
        psnr=None,
        ssim=None,
        exif=None,
        icc=None,
        mtime_s=file.mtime_s,
        label=file.label,
    )
