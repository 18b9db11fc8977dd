"""What a run did, per shard and in all: sizes, quality, what was kept raw, what was damaged.

Quality is gathered in a form that adds (`Quality`), so that a report of any number of images stays small: the squared
error is summed over images, and PSNR values are counted in steps of 0.01 dB for the percentile. Everything here
pickles, because workers send it to the driver.

    Progress        while a run goes on
    ArchiveReport   archive() and stats(); stats() has no `run`
    RestoreReport   restore()
    VerifyReport    verify()

Each report has `to_dict()` for --json, `lines()` for people, and `exit_code`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, Self

from zippy_batch.archives.schema import PSNR_CAP_DB

FLOOR_REASON = "below --min-psnr"
"""How the reason of a row starts that was kept raw because no quality index reached the floor."""


_LEAST = {"sum": "least"}
"""Marks a field of which the sum has the smaller value that is known."""
_OF_ONE = {"sum": "none"}
"""Marks a field that says something of one shard, and nothing of several."""


@dataclass(frozen=True)
class Summed:
    """Reports of parts of a run add up, field by field: numbers, counts by key, lists of findings, and sums again."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{f.name: _sum(f, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def _sum(field: Field[Any], a: Any, b: Any) -> Any:
    how = field.metadata.get("sum")
    if how == "none":
        return None
    if how == "least":
        return min((value for value in (a, b) if value is not None), default=None)
    return Counter(a) + Counter(b) if isinstance(a, Mapping) else a + b


@dataclass(frozen=True)
class Done(Summed):
    """A piece of finished work."""

    images: int = 0
    source_bytes: int = 0
    stored_bytes: int = 0
    """Payloads written (archive), or restored files (restore)."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Pictures whose metadata of a kind is not archived, by kind."""


Tick = Callable[[Done], None]


@dataclass(frozen=True)
class Progress:
    """The state of a run, or of the check of what an earlier one left; sizes in bytes."""

    images: int
    images_total: int
    source_bytes: int
    source_bytes_total: int
    stored_bytes: int
    """Payloads written so far (archive), or restored files (restore)."""
    shards: int
    shards_total: int
    seconds: float
    is_check: bool = False
    """True while shards are checked that an earlier run finished."""

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def megabytes_per_s(self) -> float:
        """Source megabytes (10^6 bytes) per second."""
        return self.source_bytes / self.seconds / 1e6 if self.seconds > 0 else 0.0

    @property
    def ratio(self) -> float | None:
        """Source bytes per stored byte so far; None before anything is stored."""
        return self.source_bytes / self.stored_bytes if self.stored_bytes else None

    @property
    def seconds_left(self) -> float | None:
        """Estimate by the share of images done; None before the first."""
        return self.seconds * (self.images_total - self.images) / self.images if self.images else None


@dataclass(frozen=True)
class Quality(Summed):
    """PSNR (dB) and SSIM of a set of images, in a form that adds."""

    images: int = 0
    squared_error: float = 0.0
    """Sum over images of the mean squared error, on the scale of 0..255."""
    psnr_counts: Mapping[int, int] = field(default_factory=dict)
    """Images by PSNR in steps of 0.01 dB, rounded down."""
    psnr_worst_db: float | None = field(default=None, metadata=_LEAST)
    ssim_sum: float = 0.0
    ssim_worst: float | None = field(default=None, metadata=_LEAST)

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> Quality:
        """Takes (PSNR in dB, SSIM) of each image; a PSNR at the cap counts as no error."""
        known = list(pairs)
        if not known:
            return cls()
        return cls(
            images=len(known),
            squared_error=math.fsum(_squared_error(psnr) for psnr, _ in known),
            psnr_counts=Counter(math.floor(psnr * 100 + 1e-6) for psnr, _ in known),
            psnr_worst_db=min(psnr for psnr, _ in known),
            ssim_sum=math.fsum(ssim for _, ssim in known),
            ssim_worst=min(ssim for _, ssim in known),
        )

    @property
    def psnr_mean_db(self) -> float | None:
        """PSNR of the mean squared error, so that a few exact images do not hide the others."""
        if not self.images:
            return None
        mean = self.squared_error / self.images
        return min(PSNR_CAP_DB, 10 * math.log10(255**2 / mean)) if mean > 0 else PSNR_CAP_DB

    @property
    def psnr_p5_db(self) -> float | None:
        """5th percentile: 95 % of the images are at least this good (to 0.01 dB)."""
        wanted, seen = math.ceil(0.05 * self.images), 0
        for step in sorted(self.psnr_counts):
            seen += self.psnr_counts[step]
            if seen >= wanted:
                # counted in steps that are rounded down
                return max(step / 100, self.psnr_worst_db or 0.0)
        return None

    @property
    def ssim_mean(self) -> float | None:
        return self.ssim_sum / self.images if self.images else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "measured_images": self.images,
            "psnr_mean_db": rounded(self.psnr_mean_db, 3),
            "psnr_p5_db": rounded(self.psnr_p5_db, 2),
            "psnr_worst_db": rounded(self.psnr_worst_db, 3),
            "ssim_mean": rounded(self.ssim_mean, 5),
            "ssim_worst": rounded(self.ssim_worst, 5),
        }


@dataclass(frozen=True)
class Line(Summed):
    """One shard of an archive, or all of it (`shard` None)."""

    shard: int | None = field(metadata=_OF_ONE)
    images: int = 0
    """Rows; every file is one, whether it is an image or not."""
    source_bytes: int = 0
    archive_bytes: int = 0
    lossy_images: int = 0
    lossy_bytes: int = 0
    """Payload bytes of the rows that the lossy codec has coded."""
    lossy_source_bytes: int = 0
    lossy_pixels: int = 0
    """Whatever their number of channels."""
    exact_images: int = 0
    exact_bytes: int = 0
    """Payload bytes of the rows that the exact codec has coded."""
    exact_source_bytes: int = 0
    raw_bytes: int = 0
    """Bytes of the files that are kept raw, before the column is compressed."""
    kept_raw: Mapping[str, int] = field(default_factory=dict)
    """Rows kept raw, by reason."""
    raised: int = 0
    """Rows whose quality index was raised to reach the floor."""
    quality: Quality = Quality()
    seconds: float | None = field(default=None, metadata=_OF_ONE)
    """Time of work on the shard, in the total that of the whole run. None where an earlier run did any of it, and in
    stats."""

    @property
    def ratio(self) -> float | None:
        """Source bytes per archive byte."""
        return self.source_bytes / self.archive_bytes if self.archive_bytes else None

    @property
    def bits_per_pixel(self) -> float | None:
        """Payload bits per pixel of the lossy rows; None when there is none."""
        return 8 * self.lossy_bytes / self.lossy_pixels if self.lossy_pixels else None

    @property
    def raw_images(self) -> int:
        return sum(self.kept_raw.values())

    @property
    def images_per_s(self) -> float | None:
        return self.images / self.seconds if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "shard": self.shard,
            "images": self.images,
            "source_bytes": self.source_bytes,
            "archive_bytes": self.archive_bytes,
            "ratio": rounded(self.ratio, 4),
            "lossy_images": self.lossy_images,
            "lossy_source_bytes": self.lossy_source_bytes,
            "lossy_bytes": self.lossy_bytes,
            "bits_per_pixel": rounded(self.bits_per_pixel, 4),
            **self.quality.to_dict(),
            "exact_images": self.exact_images,
            "exact_source_bytes": self.exact_source_bytes,
            "exact_bytes": self.exact_bytes,
            "kept_raw": self.raw_images,
            "raw_bytes": self.raw_bytes,
            "raw_reasons": dict(sorted(self.kept_raw.items())),
            "quality_raised": self.raised,
            "seconds": rounded(self.seconds, 3),
            "images_per_s": rounded(self.images_per_s, 1),
        }


@dataclass(frozen=True)
class RunFacts:
    """What a run took; never part of an archive."""

    seconds: float
    images: int
    """Images worked on in this run, without those of shards that were there already."""
    source_bytes: int
    device: str
    workers: int
    shards_resumed: int = 0
    """Shards that an earlier, interrupted run had committed."""
    empty_directories: int = 0
    """Directories without a file in them, which an archive of files does not hold."""
    notes: tuple[str, ...] = ()
    """What of the source is not in the archive as one might expect."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Pictures whose metadata of a kind is not archived, by kind; only those that this run coded with loss."""
    on_ray: bool = False

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "images": self.images,
            "images_per_s": round(self.images_per_s, 1),
            "megabytes_per_s": round(self.source_bytes / self.seconds / 1e6, 3) if self.seconds > 0 else 0.0,
            "device": self.device,
            "workers": self.workers,
            "shards_resumed": self.shards_resumed,
            "empty_directories": self.empty_directories,
            "notes": list(self.notes),
            "dropped_metadata": dict(sorted(self.dropped.items())),
        }


@dataclass(frozen=True)
class Floor:
    """How a floor on PSNR was met: images at the quality asked for, with it raised, exact, kept raw."""

    min_psnr_db: float
    at_once: int
    raised: int
    exact: int
    kept_raw: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ArchiveReport:
    path: str
    shards: tuple[Line, ...]
    total: Line
    """All shards; `archive_bytes` is the size of everything on disk, footer or manifest included."""
    models: Mapping[str, str]
    """Codec -> id of the model that its rows need."""
    options: Mapping[str, Any]
    min_psnr_db: float | None = None
    run: RunFacts | None = None

    exit_code = 0

    @property
    def floor(self) -> Floor | None:
        """None where no floor was asked for, or nothing was coded with loss that could miss it."""
        if self.min_psnr_db is None or self.options.get("exact") == "always":
            return None
        below = sum(count for reason, count in self.total.kept_raw.items() if reason.startswith(FLOOR_REASON))
        at_once = self.total.lossy_images - self.total.raised
        return Floor(self.min_psnr_db, at_once, self.total.raised, self.total.exact_images, below)

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "exit_code": self.exit_code,
            "models": dict(self.models),
            "options": dict(self.options),
            "shards": [line.to_dict() for line in self.shards],
            "total": self.total.to_dict(),
            "bytes_outside_shards": self.total.archive_bytes - sum(line.archive_bytes for line in self.shards),
            "floor": self.floor.to_dict() if self.floor else None,
            "run": self.run.to_dict() if self.run else None,
        }

    def lines(self, columns: int | None = None) -> list[str]:
        """The table of shards, no wider than this if it can be, then what it does not show."""
        rows = [_archive_cells(line) for line in (*self.shards, self.total)]
        out = fitted(table, _ARCHIVE_HEAD, rows, _ARCHIVE_LEAST, columns)
        out += _by_codec(self.total)
        out += _reasons(self.total.kept_raw)
        unproved = self.total.exact_images and self.options.get("verify") is False
        if unproved or (not self.total.quality.images and self.total.lossy_images):
            out.append("quality was not measured (--no-verify): no payload was decoded before it was committed")
        if self.floor:
            out.append(
                f"floor {self.floor.min_psnr_db:g} dB: {count_text(self.floor.at_once, 'image')} at the quality asked "
                "for, "
                f"{self.floor.raised} with it raised, {self.floor.exact} exact, {self.floor.kept_raw} kept raw"
            )
        return out + (_run_lines(self.run, len(self.shards)) if self.run else [])


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where; `shard` and `row` are None for what is not in the archive."""

    path: str
    what: str
    shard: int | None = None
    row: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        place = "" if self.shard is None else f"shard {self.shard}{row}: "
        return f"{place}{self.path}: {self.what}"


@dataclass(frozen=True)
class RestoreLine(Summed):
    """One shard that was restored, or all (`shard` None)."""

    shard: int | None = field(metadata=_OF_ONE)
    images: int = 0
    """Files written."""
    source_bytes: int = 0
    restored_bytes: int = 0
    raw_images: int = 0
    """How many of them were kept raw."""
    exact_images: int = 0
    """How many of them were decoded to the source's own bytes."""
    quality: Quality = Quality()
    """Against the originals in --reference; of the decoded rows only."""
    unmatched: int = 0
    """Decoded rows that --reference has no such picture for."""
    damaged: tuple[Finding, ...] = ()
    seconds: float | None = field(default=None, metadata=_OF_ONE)

    @property
    def images_per_s(self) -> float | None:
        return self.images / self.seconds if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "shard": self.shard,
            "images": self.images,
            "source_bytes": self.source_bytes,
            "restored_bytes": self.restored_bytes,
            "raw_images": self.raw_images,
            "exact_images": self.exact_images,
            **self.quality.to_dict(),
            "unmatched": self.unmatched,
            "damaged": len(self.damaged),
            "seconds": rounded(self.seconds, 3),
            "images_per_s": rounded(self.images_per_s, 1),
        }


@dataclass(frozen=True)
class RestoreReport:
    path: str
    destination: str
    shards: tuple[RestoreLine, ...]
    total: RestoreLine
    selected: int
    """Rows that were asked for."""
    with_reference: bool
    run: RunFacts

    @property
    def exit_code(self) -> int:
        return 1 if self.total.damaged else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "destination": self.destination,
            "exit_code": self.exit_code,
            "selected": self.selected,
            "shards": [line.to_dict() for line in self.shards],
            "total": self.total.to_dict(),
            "damaged": [finding.to_dict() for finding in self.total.damaged],
            "run": self.run.to_dict(),
        }

    def lines(self, columns: int | None = None) -> list[str]:
        """The table of shards, and what it does not show, as an ArchiveReport has them."""
        head = _RESTORE_HEAD + (_QUALITY_HEAD if self.with_reference else ())
        rows = [_restore_cells(line, self.with_reference) for line in (*self.shards, self.total)]
        out = fitted(table, head, rows, _RESTORE_LEAST, columns)
        if self.total.unmatched:
            have = "has" if self.total.unmatched == 1 else "have"
            unmatched = count_text(self.total.unmatched, "restored image")
            out.append(f"{unmatched} {have} no picture of the same size under --reference")
        out += _findings(f"{len(self.total.damaged)} rows are damaged and were not restored:", self.total.damaged)
        return out + _run_lines(self.run, len(self.shards))


@dataclass(frozen=True)
class VerifyReport:
    path: str
    rows: int
    decoded: int
    """Rows that were decoded, and not only checked against their checksum."""
    damaged: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()
    """What is wrong with whole files: parts that are missing, too many or not what the manifest says."""
    against: str | None = None
    missing: tuple[Finding, ...] = ()
    """Files of `against` that are not in the archive."""
    extra: tuple[Finding, ...] = ()
    """Rows of the archive that are not in `against`."""
    differing: tuple[Finding, ...] = ()
    """Rows that are not what they promise of the file in `against`."""
    unpromised: int = 0
    """Rows compared that promise no quality, because they were archived with --no-verify."""
    labels_compared: bool = True
    """False where the archive has labels and `against` has none, as with those of a table or a pattern."""
    run: RunFacts | None = None
    sampled: int | None = None
    """Rows that were looked at, where that was a sample."""
    checked_bytes: int = 0
    """Of the archive; of a sample, its payloads."""

    @property
    def exit_code(self) -> int:
        return 1 if self.is_damaged or self.missing or self.extra or self.differing else 0

    @property
    def is_damaged(self) -> bool:
        return bool(self.damaged or self.problems)

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "exit_code": self.exit_code,
            "rows": self.rows,
            "decoded": self.decoded,
            "damaged": [finding.to_dict() for finding in self.damaged],
            "problems": list(self.problems),
            "against": self.against,
            "missing": [finding.to_dict() for finding in self.missing],
            "extra": [finding.to_dict() for finding in self.extra],
            "differing": [finding.to_dict() for finding in self.differing],
            "unpromised": self.unpromised,
            "labels_compared": self.labels_compared,
            "sampled": self.sampled,
            "checked_bytes": self.checked_bytes,
            "megabytes_per_s": rounded(self.megabytes_per_s, 1),
            "run": self.run.to_dict() if self.run else None,
        }

    @property
    def megabytes_per_s(self) -> float | None:
        return self.checked_bytes / 1e6 / self.run.seconds if self.run and self.run.seconds > 0 else None

    def lines(self, columns: int | None = None) -> list[str]:
        of_them = "" if self.sampled is None else f", a sample of {self.sampled} looked at"
        out = [f"{count_text(self.rows, 'row')}{of_them}, {self.decoded} decoded, {len(self.damaged)} damaged"]
        if self.run and self.megabytes_per_s is not None:
            out.append(f"{size_text(self.checked_bytes)} in {self.run.seconds:.1f} s: {self.megabytes_per_s:.1f} MB/s")
        out += self.problems
        out += _findings("damaged:", self.damaged)
        if self.against is not None:
            out += _findings(f"in {self.against} but not in the archive:", self.missing)
            out += _findings(f"in the archive but not in {self.against}:", self.extra)
            out += _findings("not what the archive promises:", self.differing)
            if self.unpromised:
                out.append(f"{self.unpromised} rows promise no quality (archived with --no-verify)")
            if not self.labels_compared:
                out.append(f"labels are not compared: {self.against} has none")
        out.append(self._verdict())
        return out

    def _verdict(self) -> str:
        if self.exit_code:
            return f"{self.path} is NOT whole" if self.is_damaged else f"{self.path} and {self.against} differ"
        if self.sampled is not None:
            return f"{self.path} has no damage in the sample"
        if self.against is None:
            return f"{self.path} is whole"
        return f"{self.path} holds everything in {self.against}, as promised"


Report = ArchiveReport | RestoreReport | VerifyReport


def total_of(lines: Iterable[Line], archive_bytes: int) -> Line:
    """The sum, with the size in bytes of all that is on disk."""
    return replace(sum(lines, start=Line(shard=None)), archive_bytes=archive_bytes)


def size_text(size_bytes: int) -> str:
    """Three digits and a decimal unit: 999 B, 1.23 kB, 45.6 MB."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value, units = size_bytes / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {units[0]}"


_QUALITY_HEAD = ("PSNR dB", "5 %", "worst", "SSIM", "worst")
_ARCHIVE_HEAD = (
    "shard",
    "images",
    "source",
    "archive",
    "ratio",
    "bit/px",
    *_QUALITY_HEAD,
    "exact",
    "raw",
    "s",
    "images/s",
)
_ARCHIVE_LEAST = (10, 7, 13, 9, 14, 5, 8, 11, 2, 6)
"""Columns by number, from the one that is missed least where a terminal is narrow."""
_RESTORE_LEAST = (13, 10, 12, 7, 11, 8, 2, 5, 4)
_RESTORE_HEAD = ("shard", "images", "source", "restored", "exact", "raw", "damaged", "s", "images/s")


def _archive_cells(line: Line) -> list[str]:
    return [
        "total" if line.shard is None else str(line.shard),
        str(line.images),
        size_text(line.source_bytes),
        size_text(line.archive_bytes),
        _number(line.ratio, 2),
        _number(line.bits_per_pixel, 3),
        *_quality_cells(line.quality),
        str(line.exact_images or "-"),
        str(line.raw_images),
        _number(line.seconds, 2),
        _number(line.images_per_s, 0),
    ]


def _restore_cells(line: RestoreLine, with_reference: bool) -> list[str]:
    cells = [
        "total" if line.shard is None else str(line.shard),
        str(line.images),
        size_text(line.source_bytes),
        size_text(line.restored_bytes),
        str(line.exact_images or "-"),
        str(line.raw_images),
        str(len(line.damaged)),
        _number(line.seconds, 2),
        _number(line.images_per_s, 0),
    ]
    return cells + (_quality_cells(line.quality) if with_reference else [])


def _quality_cells(quality: Quality) -> list[str]:
    return [
        _number(quality.psnr_mean_db, 2),
        _number(quality.psnr_p5_db, 2),
        _number(quality.psnr_worst_db, 2),
        _number(quality.ssim_mean, 4),
        _number(quality.ssim_worst, 4),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 0) -> list[str]:
    """Columns aligned right, but the first `names` of them left; those that say nothing in any row are left out."""
    keep = [i for i in range(len(head)) if any(row[i] != "-" for row in rows)]
    widths = {i: max(len(head[i]), *(len(row[i]) for row in rows)) for i in keep}
    align = [str.ljust if i < names else str.rjust for i in range(len(head))]
    return ["  ".join(align[i](row[i], widths[i]) for i in keep) for row in (head, *rows)]


def fitted(
    make: Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    least: Sequence[int],
    columns: int | None,
) -> list[str]:
    """The table that `make` makes, without as many of the columns `least` as are too many for a terminal, and a line
    that names those."""
    keep, gone = list(range(len(head))), []
    candidates = [i for i in least if i < len(head)]
    while True:
        out = make([head[i] for i in keep], [[row[i] for i in keep] for row in rows])
        if columns is None or not candidates or max(map(len, out)) <= columns:
            break
        gone.append(candidates.pop(0))
        keep.remove(gone[-1])
    left_out = [_full_name(head, i) for i in sorted(gone) if any(row[i] != "-" for row in rows)]
    return [*out, f"not shown for want of room: {', '.join(left_out)}"] if left_out else out


def _full_name(head: Sequence[str], column: int) -> str:
    """`worst` stands in more than one column: after PSNR, and after SSIM."""
    name = head[column]
    return name if name != "worst" else f"worst {'SSIM' if head[column - 1] == 'SSIM' else 'PSNR'}"


def count_text(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _by_codec(total: Line) -> list[str]:
    """What the rows of each codec take, where there is more than the lossy one."""
    if not total.exact_images:
        return []
    kinds = [
        ("exact", total.exact_images, total.exact_source_bytes, total.exact_bytes),
        ("lossy", total.lossy_images, total.lossy_source_bytes, total.lossy_bytes),
    ]
    return [
        f"{name}: {count_text(images, 'file')} of {size_text(source)} in {size_text(stored)} of payload "
        f"({stored / source:.3f})"
        for name, images, source, stored in kinds
        if images and source
    ]


def _reasons(kept_raw: Mapping[str, int]) -> list[str]:
    if not kept_raw:
        return []
    ordered = sorted(kept_raw.items(), key=lambda item: (-item[1], item[0]))
    return ["kept raw:", *(f"  {count} {reason}" for reason, count in ordered)]


def _findings(title: str, findings: Sequence[Finding]) -> list[str]:
    return [title, *(f"  {finding}" for finding in findings)] if findings else []


def _run_lines(run: RunFacts, shards: int) -> list[str]:
    workers = count_text(run.workers, "worker") if run.on_ray else "in process"
    speed = f"{run.images_per_s:.0f} images/s on {run.device}"
    out = [f"{count_text(run.images, 'image')} in {run.seconds:.1f} s: {speed}, {workers}"]
    if run.shards_resumed:
        out.append(f"{run.shards_resumed} of {shards} shards were there from an earlier run")
    if run.empty_directories:
        directories = (
            "1 empty directory is" if run.empty_directories == 1 else f"{run.empty_directories} empty directories are"
        )
        out.append(f"{directories} not in the archive, which holds files")
    if run.dropped:
        counts = ", ".join(f"{kind} of {count}" for kind, count in sorted(run.dropped.items()))
        out.append(f"metadata that is not archived, by the pictures that have it: {counts}")
    return [*out, *run.notes]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _squared_error(psnr_db: float) -> float:
    return 0.0 if psnr_db >= PSNR_CAP_DB else 255**2 / 10 ** (psnr_db / 10)
