"""What a comparison found: a row for each contender at each setting, and bytes at equal quality.

`Comparison` has `to_dict()` for JSON and `lines()` for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.compare.codecs import IMAGE_CODECS, LEPTON, RECODERS, TRANSCODE
from zippy_batch.compare.curves import EqualQuality, Point, mean_ratio, unbeaten
from zippy_batch.run.report import Quality, fitted, rounded, table

SOURCE = "source"
OWN_LOSSY = "zippy-batch"
OWN_EXACT = "zippy-batch-exact"
CONTENDERS = (SOURCE, *IMAGE_CODECS, *RECODERS, OWN_LOSSY, OWN_EXACT)
"""Contenders, in the order of the table."""

METRICS = {"psnr_db": "PSNR", "ssim": "SSIM", "ssimulacra2": "SSIMULACRA2"}
"""Attribute of a row -> its name in words."""

_LEAST = (3, 7, 8, 1)
"""Columns by number, from the one that is missed least where a terminal is narrow."""
_HEAD = ("", "loose B", "stored B", "of source", "PSNR dB", "SSIM", "SSIMULACRA2", "encode/s", "decode/s")


@dataclass(frozen=True)
class ComparisonRow:
    """A contender at one setting; sizes are bytes per image."""

    contender: str
    setting: str
    level: int | None
    """What the setting is made of; None where there is only one."""
    loose_bytes: float | None
    """The files by themselves; None for an archive, which is no set of files."""
    stored_bytes: float
    """All of one Parquet file: with the files in a column under zstd 19, or an archive."""
    quality: Quality | None
    """Against the decoded sources, in RGB; None where every source file comes back byte for byte."""
    jpeg_quality: float | None = None
    """Median of the estimates, of JPEG files."""
    encode_per_s: float | None = None
    """Images per second on all cores."""
    decode_per_s: float | None = None
    ssimulacra2: float | None = None
    """Mean; None for what is exact, or too small for it."""
    variant: str = ""
    """Variant of a codec with several, of which the better one counts at each quality."""

    @property
    def psnr_db(self) -> float | None:
        return self.quality.psnr_mean_db if self.quality else None

    @property
    def ssim(self) -> float | None:
        return self.quality.ssim_mean if self.quality else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "contender": self.contender,
            "setting": self.setting,
            "level": self.level,
            "variant": self.variant or None,
            "loose_bytes_per_image": rounded(self.loose_bytes, 2),
            "stored_bytes_per_image": round(self.stored_bytes, 2),
            "exact": self.quality is None,
            "psnr_db": rounded(self.psnr_db, 3),
            "ssim": rounded(self.ssim, 5),
            "ssimulacra2": rounded(self.ssimulacra2, 2),
            "jpeg_quality": self.jpeg_quality,
            "encode_images_per_s": rounded(self.encode_per_s, 1),
            "decode_images_per_s": rounded(self.decode_per_s, 1),
        }


@dataclass(frozen=True)
class Panel:
    """A column of a contact sheet: the same few images, as one contender gives them back."""

    contender: str
    setting: str
    stored_bytes: float
    """Per image, over all images of the comparison, as `ComparisonRow.stored_bytes`; likewise `psnr_db`."""
    psnr_db: float | None
    """None for the source."""
    pixels: tuple[NDArray[np.uint8], ...]
    """(H, W, 3) each."""


@dataclass(frozen=True)
class Comparison:
    source: str
    images: int
    """Compared."""
    files: int
    """Number of files below the source, whatever they are."""
    sizes: str
    """Width x height in pixels, or the range of both."""
    source_bytes: float
    """Per image, of the files by themselves."""
    skipped: Mapping[str, int]
    """Files that were looked at and are not compared, by reason."""
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]
    """Why contenders or settings are missing."""
    device: str
    cores: int
    panels: tuple[Panel, ...] = field(default=(), repr=False)

    def curve(self, contender: str, metric: str = "psnr_db") -> list[ComparisonRow]:
        """Its rows that lose something and are the better ones by a metric, in order of their bytes."""
        return better_of([row for row in self.rows if row.contender == contender and row.psnr_db is not None], metric)

    def points(self, contender: str, metric: str = "psnr_db") -> list[Point]:
        return _points(self.curve(contender, metric), metric)

    def equal(self, metric: str) -> dict[str, EqualQuality]:
        """Bytes of zippy-batch over each codec's at the same quality, in Parquet, where both curves have it."""
        mine = self.points(OWN_LOSSY, metric)
        found = {name: mean_ratio(mine, self.points(name, metric)) for name in IMAGE_CODECS}
        return {name: ratio for name, ratio in found.items() if ratio}

    @property
    def exact_ratios(self) -> dict[str, float]:
        """Bytes of the exact archive over those of the other ways to keep the very same files, in Parquet."""
        stored = {row.contender: row.stored_bytes for row in self.rows if row.contender in (OWN_EXACT, *_IN_WORDS)}
        mine = stored.pop(OWN_EXACT, None)
        return {name: mine / theirs for name, theirs in stored.items()} if mine else {}

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "images": self.images,
            "files": self.files,
            "sizes": self.sizes,
            "source_bytes_per_image": round(self.source_bytes, 2),
            "skipped": dict(sorted(self.skipped.items())),
            "device": self.device,
            "cores": self.cores,
            "rows": self._row_dicts(),
            "equal_psnr": {name: _equal_dict(one, "_db") for name, one in self.equal("psnr_db").items()},
            "equal_ssim": {name: _equal_dict(one) for name, one in self.equal("ssim").items()},
            "equal_ssimulacra2": {name: _equal_dict(one) for name, one in self.equal("ssimulacra2").items()},
            "exact_ratios": {name: round(ratio, 4) for name, ratio in self.exact_ratios.items()},
            "notes": list(self.notes),
        }

    def _row_dicts(self) -> list[dict[str, Any]]:
        better = {id(row) for name in CONTENDERS for row in self.curve(name)}
        return [{**row.to_dict(), "better_by_psnr": row.quality is None or id(row) in better} for row in self.rows]

    def lines(self, columns: int | None = None) -> list[str]:
        """The table, with less in it where there are few columns, what is missing there, and what it comes to."""
        out = [
            f"{self.images} of {self.files} files, {self.sizes}, {self.source_bytes:.0f} B each; sizes per image,",
            f"speeds in images/s on {self.cores} cores",
        ]
        out += self._table(columns)
        out += [f"skipped: {count} {reason}" for reason, count in sorted(self.skipped.items())]
        out += self.notes
        out += self._equal_lines(columns)
        if self.exact_ratios:
            out += ["", "the very same files back, bytes of zippy-batch beside others:"]
            out += [f"  {ratio:.3f} of {_IN_WORDS[name]}" for name, ratio in self.exact_ratios.items()]
        return out

    def _table(self, columns: int | None) -> list[str]:
        """The contenders' names above their rows."""
        groups = {name: self.curve(name) or [row for row in self.rows if row.contender == name] for name in CONTENDERS}
        cells = [self._cells(row) for rows in groups.values() for row in rows]
        head, *lines = fitted(partial(table, names=1), _HEAD, cells, _LEAST, columns)
        out, rest = [head], iter(lines)
        for name, rows in groups.items():
            out += [name, *islice(rest, len(rows))] if rows else []
        return [*out, *rest]

    def _cells(self, row: ComparisonRow) -> Sequence[str]:
        return [
            f"  {_setting_text(row)}",
            _number(row.loose_bytes, 0),
            _number(row.stored_bytes, 0),
            _number(row.stored_bytes / self.source_bytes, 2),
            "exact" if row.quality is None else _number(row.psnr_db, 2),
            _number(row.ssim, 4),
            _number(row.ssimulacra2, 1),
            _number(row.encode_per_s, 0),
            _number(row.decode_per_s, 0),
        ]

    def _equal_lines(self, columns: int | None) -> list[str]:
        by_metric = {metric: self.equal(metric) for metric in METRICS}
        names = [name for name in IMAGE_CODECS if any(name in found for found in by_metric.values())]
        if not names:
            return []
        head = ["", *(cell for metric in METRICS.values() for cell in (metric, "range"))]
        rows = []
        for name in names:
            row = [f"  {name}"]
            for metric, found in by_metric.items():
                one, digits = found.get(name), 3 if metric == "ssim" else 1
                row += [f"{one.ratio:.3f}", f"{one.low:.{digits}f}..{one.high:.{digits}f}"] if one else ["-", "-"]
            rows.append(row)
        said = "bytes of zippy-batch over others' at equal quality, mean where both have it:"
        ranges = (6, 4, 2)
        return ["", said, *fitted(partial(table, names=1), head, rows, ranges, columns)]


def better_of(rows: Sequence[ComparisonRow], metric: str) -> list[ComparisonRow]:
    """Those of a contender's rows that no other variant of it beats: what a careful user takes at each quality."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    curves = [[row for row in rows if row.variant == variant] for variant in variants]
    kept = unbeaten([_points(curve, metric) for curve in curves])
    flags = dict(zip(map(id, chain(*curves)), chain(*kept), strict=True))
    return sorted((row for row in rows if flags[id(row)]), key=lambda row: row.stored_bytes)


def _points(rows: Sequence[ComparisonRow], metric: str) -> list[Point]:
    return [Point(row.stored_bytes, getattr(row, metric) or 0.0) for row in rows]


def _equal_dict(one: EqualQuality, unit: str = "") -> dict[str, float]:
    digits = 3 if unit else 5
    return {
        "ratio": round(one.ratio, 4),
        f"low{unit}": round(one.low, digits),
        f"high{unit}": round(one.high, digits),
    }


def _setting_text(row: ComparisonRow) -> str:
    if row.contender == SOURCE and row.jpeg_quality is not None:
        return f"JPEG q{row.jpeg_quality:.0f}"
    return row.setting


_IN_WORDS = {
    SOURCE: "the files in Parquet",
    TRANSCODE: "JPEG XL files in Parquet",
    LEPTON: "Lepton files in Parquet",
}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
