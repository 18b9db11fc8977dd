"""A sample of a directory -> every contender at every setting -> a `Comparison`.

    list -> sample, copied to a temporary directory -> codecs, on as many processes as cores -> archives -> report

Everything is measured on the same sample: the images that the lossy codec can take. What codecs make is charged twice,
as loose files and as a column of one Parquet file; an archive is charged whole.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zippy_batch.compare import codecs
from zippy_batch.compare.codecs import IMAGE_CODECS, RECODERS, Coded, Failed, Setting
from zippy_batch.compare.curves import level_for
from zippy_batch.compare.report import (
    CONTENDERS,
    OWN_EXACT,
    OWN_LOSSY,
    SOURCE,
    Comparison,
    ComparisonRow,
    Panel,
    better_of,
)
from zippy_batch.compare.stored import parquet_bytes
from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import SourceError, UsageError
from zippy_batch.images.pixels import Picture, read_picture
from zippy_batch.paths import display_path
from zippy_batch.run import pipeline
from zippy_batch.run.executor import settle_device, usable_cpus
from zippy_batch.run.plan import spread
from zippy_batch.run.report import Progress, Quality
from zippy_batch.sources.directory import find_files, read_file
from zippy_batch.stores.object_path import local_path

QUALITIES = (25, 40, 55, 65, 75, 85, 95)
BY_REQUEST = ("avif-speed0",)
"""Contenders that are left out unless they are named, because they take many times as long as all others together."""

_IN_PROCESS = RunOptions(workers=1)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class CompareOptions:
    limit: int = 200
    """Files that are looked at, spread evenly over the directory; 0 takes all."""
    qualities: tuple[int, ...] = QUALITIES
    """1..100, of zippy-batch; each codec has a ladder of its own."""
    only: tuple[str, ...] = ()
    """Contenders; empty for all but those `BY_REQUEST`."""
    skip: tuple[str, ...] = ()
    model: str = "faces"
    """Model of the lossy codec: name of a built-in one, or path of a .safetensors file."""
    device: str = "auto"
    verify: bool = True
    """Whether archives are verified when they are written, as they are by default."""
    cores: int = 0
    """Processes for the codecs; 0 takes as many as there are cores, 1 stays in this one."""
    faces: int = 0
    """Images that `Comparison.panels` show, spread evenly over the sample; 0 for no panels."""

    def __post_init__(self) -> None:
        for name in ("limit", "cores", "faces"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not self.qualities:
            raise UsageError("qualities must name at least one quality")
        for name in (*self.only, *self.skip):
            if name not in CONTENDERS:
                raise UsageError(f"there is no contender {name!r}; there is {', '.join(CONTENDERS)}")
        if not self.contenders:
            raise UsageError("no contender is left to compare")
        for quality in self.qualities:
            self.archive_options(quality)

    @property
    def contenders(self) -> tuple[str, ...]:
        asked = self.only or tuple(name for name in CONTENDERS if name not in BY_REQUEST)
        return tuple(name for name in CONTENDERS if name in asked and name not in self.skip)

    def archive_options(self, quality: int) -> ArchiveOptions:
        """Options of a lossy archive. Raises UsageError for what `archive` would not take either."""
        # images stored exactly would lift the PSNR of a set to where no setting of the lossy codec has it
        return ArchiveOptions(quality=quality, exact="never", model=self.model, device=self.device, verify=self.verify)


@dataclass(frozen=True)
class _Sample:
    """Files of the directory that are images which every contender takes."""

    folder: Path
    """Has a copy of each."""
    names: Sequence[bytes]
    sizes: Sequence[tuple[int, int]]
    """(width, height) in pixels."""

    @property
    def paths(self) -> list[Path]:
        return [self.folder / os.fsdecode(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)


def compare(
    source: str | Path, options: CompareOptions | None = None, progress: Callable[[Progress], None] | None = None
) -> Comparison:
    """Measure all contenders on the images below `source`.

    What cannot be read or decoded is skipped and counted; a contender that this machine has not, or that fails, is a
    note. Raises UsageError for a directory without images, ModelError or UsageError for a model that cannot be had.
    """
    options, source = options or CompareOptions(), local_path(source, "compare")
    device = settle_device(options.device, None)
    if OWN_LOSSY in options.contenders:
        pipeline.models_for_archive(options.archive_options(options.qualities[0]), pipeline.Codecs())
    skipped: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="zippy-batch-compare-") as folder:
        listing, refused = find_files(source)
        skipped.update(reason for _, reason in refused)
        sample = _take(source, spread(listing.files, options.limit), Path(folder) / "sample", skipped)
        if not sample:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
            raise UsageError(f"{source}: no images to compare{f' ({why})' if why else ''}")
        cores = options.cores or usable_cpus()
        with _processes(cores) as pool:
            bench = _Bench(sample, options, Path(folder), cores, pool, progress)
            rows = [row for name in options.contenders for row in bench.rows(name)]
            panels = bench.panels(rows) if options.faces else ()
        return Comparison(
            source=display_path(os.fsencode(source)),
            images=len(sample),
            files=len(listing.files) + len(refused),
            sizes=_sizes_text(sample.sizes),
            source_bytes=sum(path.stat().st_size for path in sample.paths) / len(sample),
            skipped=skipped,
            rows=tuple(rows),
            notes=tuple(bench.notes),
            device=device,
            cores=cores,
            panels=tuple(panels),
        )


def _take(source: Path, files: Sequence[Any], folder: Path, skipped: Counter[str]) -> _Sample:
    """Copies those of the files that are images; counts the others by reason."""
    names, sizes = [], []
    for file in files:
        try:
            data = read_file(source, file)
        except SourceError:
            skipped["cannot be read"] += 1
            continue
        found = read_picture(data)
        if not isinstance(found, Picture):
            skipped[found.reason] += 1
            continue
        copy = folder / os.fsdecode(file.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        os.utime(copy, (file.mtime_s, file.mtime_s))
        names.append(file.path)
        sizes.append((found.facts.width, found.facts.height))
    return _Sample(folder, names, sizes)


def _sizes_text(sizes: Sequence[tuple[int, int]]) -> str:
    low, high = np.min(sizes, axis=0), np.max(sizes, axis=0)
    smallest, largest = (f"{width}x{height}" for width, height in (low, high))
    return smallest if smallest == largest else f"{smallest} to {largest}"


@contextlib.contextmanager
def _processes(cores: int) -> Iterator[concurrent.futures.Executor | None]:
    if cores == 1:
        codecs.warm_up()
        yield None
        return
    # not forked: threads of torch and Arrow do not survive that
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(cores, context)
    # processes inherit what is blocked: an interruption is for this one to handle
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(cores):
            # starts one process each
            pool.submit(codecs.warm_up)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Bench:
    """Runs contenders on one sample."""

    def __init__(
        self,
        sample: _Sample,
        options: CompareOptions,
        folder: Path,
        cores: int,
        pool: concurrent.futures.Executor | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._sample, self._options, self._folder, self._cores, self._pool = sample, options, folder, cores, pool
        self._paths = sample.paths
        self._mean_bytes = sum(path.stat().st_size for path in self._paths) // len(sample)
        self._shown = spread(range(len(sample)), options.faces) if options.faces else []
        self._archived: dict[int, tuple[NDArray[np.uint8], ...]] = {}
        """Quality -> the shown images as they came back."""
        self._progress, self._started, self._done = progress, time.monotonic(), 0
        self.notes: list[str] = []

    def rows(self, name: str) -> list[ComparisonRow]:
        """Rows of a contender, one for each of its settings; none where it is missing, and a note."""
        if name == SOURCE:
            return [self._source()]
        if name == OWN_LOSSY:
            return [self._archive(quality) for quality in sorted(set(self._options.qualities))]
        if name == OWN_EXACT:
            return [self._archive(None)]
        why = codecs.missing(name)
        if why:
            self.notes.append(f"{name}: {why}")
            return []
        if name in RECODERS:
            return [self._recoded(name)]
        made = [self._coded(name, setting) for setting in IMAGE_CODECS[name].settings]
        return [row for row, _ in filter(None, made)]

    def panels(self, rows: Sequence[ComparisonRow]) -> list[Panel]:
        """The source, then each contender with a curve at about as many stored bytes as zippy-batch at the quality
        nearest to the default one; without zippy-batch, as the middle setting of the first that has a curve."""
        shown = [self._paths[i] for i in self._shown]
        source = tuple(codecs.in_rgb(codecs.source_pixels(path)) for path in shown)
        stored = next((row.stored_bytes for row in rows if row.contender == SOURCE), self._source().stored_bytes)
        out = [Panel(SOURCE, "", stored, None, source)]
        curves = {name: [row for row in rows if row.contender == name and row.level is not None] for name in CONTENDERS}
        mine = curves[OWN_LOSSY]
        if mine:
            anchor = min(mine, key=lambda row: abs((row.level or 0) - ArchiveOptions().quality))
        else:
            first = next((curve for curve in curves.values() if curve), [])
            if not first:
                return out
            anchor = first[len(first) // 2]
        for name, curve in curves.items():
            if name == OWN_LOSSY and curve:
                pixels = self._archived[anchor.level or 0]
                out.append(Panel(name, anchor.setting, anchor.stored_bytes, anchor.psnr_db, pixels))
            elif curve:
                made = self._coded(name, _setting_for(anchor.stored_bytes, better_of(curve, "psnr_db")))
                if made:
                    row, blobs = made
                    pixels = tuple(codecs.decode(blobs[i]) for i in self._shown)
                    out.append(Panel(name, row.setting, row.stored_bytes, row.psnr_db, pixels))
        return out

    def _source(self) -> ComparisonRow:
        blobs = [path.read_bytes() for path in self._paths]
        return ComparisonRow(
            contender=SOURCE,
            setting="as it is",
            level=None,
            loose_bytes=sum(map(len, blobs)) / len(blobs),
            stored_bytes=parquet_bytes(self._sample.names, blobs) / len(blobs),
            quality=None,
            jpeg_quality=_median(map(codecs.estimated_jpeg_quality, blobs)),
        )

    def _recoded(self, name: str) -> ComparisonRow:
        coded = list(self._each(codecs.recode, [(name, path) for path in self._paths]))
        kept = sum(one.data == path.read_bytes() for one, path in zip(coded, self._paths, strict=True))
        if kept:
            self.notes.append(f"{name}: {kept} files cannot be kept so, and count as they are")
        return self._row(name, RECODERS[name].text, None, coded, is_exact=True)

    def _coded(self, name: str, setting: Setting) -> tuple[ComparisonRow, list[bytes]] | None:
        """A codec's row at one setting, and its files; None where it fails, and a note."""
        text = IMAGE_CODECS[name].text(setting)
        if name == "mogrify":
            files = codecs.mogrify(self._paths, setting.level)
            if isinstance(files, Failed):
                self.notes.append(f"{name} {text}: left out: {files.reason}")
                return None
            blobs, seconds = files
            # one process did the work of all
            each_s = seconds * self._cores / len(blobs)
            tasks = [(blob, path, each_s) for blob, path in zip(blobs, self._paths, strict=True)]
            coded = self._accepted(f"{name} {text}", self._each(codecs.measure, tasks))
        else:
            images = [(name, setting, path) for path in self._paths]
            coded = self._accepted(f"{name} {text}", self._each(codecs.code, images))
        return (self._row(name, text, setting, coded), [one.data for one in coded]) if coded else None

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        results = self._pool.map(work, items, chunksize=4) if self._pool else map(work, items)
        for result in results:
            self._tick(1)
            yield result

    def _accepted(self, what: str, coded: Iterable[Coded | Failed]) -> list[Coded]:
        """All of them, or none and a note where one failed: means over different images do not compare."""
        good = []
        for one in coded:
            if isinstance(one, Failed):
                self.notes.append(f"{what}: left out: {one.reason}")
                return []
            good.append(one)
        return good

    def _row(
        self, name: str, text: str, setting: Setting | None, coded: Sequence[Coded], is_exact: bool = False
    ) -> ComparisonRow:
        n = len(coded)
        blobs = [one.data for one in coded]
        return ComparisonRow(
            contender=name,
            setting=text,
            level=setting.level if setting else None,
            variant=setting.variant if setting else "",
            loose_bytes=sum(map(len, blobs)) / n,
            stored_bytes=parquet_bytes(self._sample.names, blobs) / n,
            quality=None if is_exact else Quality.of((one.psnr_db, one.ssim) for one in coded),
            ssimulacra2=None if is_exact else _mean(one.ssimulacra2 for one in coded),
            jpeg_quality=_median(one.jpeg_quality for one in coded),
            encode_per_s=n * self._cores / sum(one.encode_s for one in coded),
            decode_per_s=n * self._cores / sum(one.decode_s for one in coded),
        )

    def _archive(self, quality: int | None) -> ComparisonRow:
        """An archive of the sample at a quality, or an exact one."""
        options = (
            ArchiveOptions(exact="always", device=self._options.device, verify=self._options.verify)
            if quality is None
            else self._options.archive_options(quality)
        )
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            output, back = Path(folder) / "out.parquet", Path(folder) / "back"
            archived = pipeline.archive(self._sample.folder, output, options, _IN_PROCESS)
            as_png = RestoreOptions(format="png", device=self._options.device)
            restored = pipeline.restore(output, back, as_png, _IN_PROCESS)
            found = [_restored(path, back / path.relative_to(self._sample.folder)) for path in self._paths]
            is_exact = all(
                path.read_bytes() == file.read_bytes() for path, file in zip(self._paths, found, strict=True)
            )
            measured = [] if is_exact else [codecs.quality_of(*pair) for pair in zip(self._paths, found, strict=True)]
            if quality is not None:
                shown = (codecs.source_pixels(found[i]) for i in self._shown)
                self._archived[quality] = tuple(map(codecs.in_rgb, shown))
            self._tick(len(self._sample))
            return ComparisonRow(
                contender=OWN_EXACT if quality is None else OWN_LOSSY,
                setting="--exact" if quality is None else f"-q {quality}",
                level=quality,
                loose_bytes=None,
                stored_bytes=output.stat().st_size / len(self._sample),
                quality=Quality.of((psnr, ssim) for psnr, ssim, _ in measured) if measured else None,
                ssimulacra2=_mean(score for _, _, score in measured),
                encode_per_s=_steady(len(self._sample), archived.shards),
                decode_per_s=_steady(len(self._sample), restored.shards),
            )

    def _tick(self, images: int) -> None:
        self._done += images
        if self._progress is None:
            return
        asked = self._options.contenders
        settings = sum(
            len(IMAGE_CODECS[name].settings)
            if name in IMAGE_CODECS
            else len(self._options.qualities)
            if name == OWN_LOSSY
            else 1
            for name in asked
            if name != SOURCE
        )
        # what a contact sheet needs comes on top
        total = max(self._done, settings * len(self._sample))
        self._progress(
            Progress(
                images=self._done,
                images_total=total,
                source_bytes=self._done * self._mean_bytes,
                source_bytes_total=total * self._mean_bytes,
                stored_bytes=0,
                shards=0,
                shards_total=0,
                seconds=time.monotonic() - self._started,
            )
        )


def _setting_for(stored_bytes: float, curve: Sequence[ComparisonRow]) -> Setting:
    """The level that takes about so many bytes, of the variant that is the better one there."""
    variant = min(curve, key=lambda row: abs(math.log(row.stored_bytes / stored_bytes))).variant
    rows = [row for row in curve if row.variant == variant]
    levels, sizes = [row.level or 0 for row in rows], [row.stored_bytes for row in rows]
    return Setting(level_for(stored_bytes, levels, sizes), variant)


def _restored(source: Path, same: Path) -> Path:
    """The path where restore put an image: under its own name if that was a PNG or came back exactly, else as .png."""
    return same if same.exists() else same.with_name(f"{same.name}.png")


def _steady(images: int, shards: Iterable[Any]) -> float | None:
    """Images per second of work on shards, without loading the model."""
    seconds = sum(line.seconds or 0.0 for line in shards)
    return images / seconds if seconds else None


def _median(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def _mean(scores: Iterable[float | None]) -> float | None:
    """None where there are none, or not of all."""
    known = list(scores)
    return statistics.fmean(one for one in known if one is not None) if known and None not in known else None
