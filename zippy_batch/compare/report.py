"""What a comparison found: a row for each contender at each setting, and bytes at equal PSNR.

`Comparison` has `to_dict()` for JSON and `lines()` for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.compare.codecs import IMAGE_CODECS, TRANSCODE
from zippy_batch.compare.curves import EqualPsnr, Point, mean_ratio
from zippy_batch.run.report import Quality, rounded, table

SOURCE = "source"
OWN_LOSSY = "zippy-batch"
OWN_EXACT = "zippy-batch-exact"
CONTENDERS = (SOURCE, *IMAGE_CODECS, TRANSCODE, OWN_LOSSY, OWN_EXACT)
"""In the order of the table."""

_HEAD = ("", "", "loose B", "stored B", "of source", "PSNR dB", "SSIM", "JPEG q", "encode/s", "decode/s")


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
            "loose_bytes_per_image": rounded(self.loose_bytes, 2),
            "stored_bytes_per_image": round(self.stored_bytes, 2),
            "exact": self.quality is None,
            "psnr_db": rounded(self.psnr_db, 3),
            "ssim": rounded(self.ssim, 5),
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
    """Below the source, whatever they are."""
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

    def curve(self, contender: str) -> list[ComparisonRow]:
        """Its rows that lose something, in order of their level."""
        return [row for row in self.rows if row.contender == contender and row.psnr_db is not None]

    def points(self, contender: str) -> list[Point]:
        return [Point(row.stored_bytes, row.psnr_db or 0.0) for row in self.curve(contender)]

    @property
    def equal_psnr(self) -> dict[str, EqualPsnr]:
        """Bytes of zippy-batch over each codec's at the same PSNR, in Parquet, where both have a curve in common."""
        found = {name: mean_ratio(self.points(OWN_LOSSY), self.points(name)) for name in IMAGE_CODECS}
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
            "rows": [row.to_dict() for row in self.rows],
            "equal_psnr": {
                name: {"ratio": round(one.ratio, 4), "low_db": round(one.low_db, 3), "high_db": round(one.high_db, 3)}
                for name, one in self.equal_psnr.items()
            },
            "exact_ratios": {name: round(ratio, 4) for name, ratio in self.exact_ratios.items()},
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The table, what is missing in it, and what it comes to."""
        out = [
            f"{self.images} of {self.files} files, {self.sizes}, {self.source_bytes:.0f} B each; "
            f"sizes per image, speeds in images/s on {self.cores} cores"
        ]
        out += table(_HEAD, [self._cells(i) for i in range(len(self.rows))], names=2)
        out += [f"skipped: {count} {reason}" for reason, count in sorted(self.skipped.items())]
        out += self.notes
        if self.equal_psnr:
            out += ["", "stored bytes of zippy-batch at equal PSNR, mean over the range that both cover:"]
            width = max(map(len, self.equal_psnr))
            out += [
                f"  {one.ratio:.2f} of {name:{width}}  {one.low_db:.1f} to {one.high_db:.1f} dB"
                for name, one in self.equal_psnr.items()
            ]
        if self.exact_ratios:
            said = ", ".join(f"{ratio:.2f} of {_IN_WORDS[name]}" for name, ratio in self.exact_ratios.items())
            out += ["", f"the very same files back: {said}"]
        return out

    def _cells(self, index: int) -> Sequence[str]:
        row, before = self.rows[index], self.rows[index - 1] if index else None
        return [
            "" if before and before.contender == row.contender else row.contender,
            row.setting,
            _number(row.loose_bytes, 0),
            _number(row.stored_bytes, 0),
            _number(row.stored_bytes / self.source_bytes, 2),
            "exact" if row.quality is None else _number(row.psnr_db, 2),
            _number(row.ssim, 4),
            _number(row.jpeg_quality, 0),
            _number(row.encode_per_s, 0),
            _number(row.decode_per_s, 0),
        ]


_IN_WORDS = {SOURCE: "the files in Parquet + zstd", TRANSCODE: "JPEG XL in Parquet + zstd"}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
