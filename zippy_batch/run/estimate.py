"""What an archive would be, told from a sample of its files: `archive --dry-run`.

Files are taken at even distances over the sorted listing, coded as a run codes them and written as parts in a
directory for temporary files. Payload bytes grow with source bytes, so that their total is estimated by the ratio of
the two; its standard error is that of a ratio estimator (Cochran, Sampling Techniques, 3rd edition, section 6.4).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zippy_batch.run.report import Line, count_text, rounded, size_text

SAMPLE_FILES = 200
WARM_UP_FILES = 8
"""Coded before the clock starts: the first files wait for kernels to be loaded."""
_DEVIATIONS = 1.96
"""Of a normal distribution, on both sides of its mean, that hold 95 % of it."""
_KINDS = 8
"""Suffixes that are named before the others are counted together."""


@dataclass(frozen=True)
class Interval:
    """95 % confidence interval of a number of bytes."""

    mean: float
    low: float
    high: float

    def plus(self, size_bytes: float) -> Interval:
        return Interval(self.mean + size_bytes, self.low + size_bytes, self.high + size_bytes)

    def to_dict(self) -> dict[str, int]:
        return {"mean": round(self.mean), "low": round(self.low), "high": round(self.high)}


@dataclass(frozen=True)
class Sample:
    """What was coded."""

    line: Line
    sizes: Sequence[tuple[int, int]]
    """Bytes of the source and of the payload of each row."""
    overhead_bytes: float
    """Per row, beside its payload."""
    fixed_bytes: float
    """Per part."""
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """The report of a dry run."""

    source: str
    output: str
    files: int
    source_bytes: int
    shards: int
    kinds: Mapping[str, int]
    """Files by suffix."""
    sample: Sample
    archive: Interval
    is_single_file: bool
    workers: int | None
    """None where it depends on a cluster."""
    seconds: float | None
    notes: tuple[str, ...] = ()

    exit_code = 0

    @property
    def staging_bytes(self) -> float:
        """Bytes on the disk of the output while the run works: a single file is joined from its parts."""
        return self.archive.high * (2 if self.is_single_file else 1)

    def to_dict(self) -> dict[str, Any]:
        return {
            "dry_run": True,
            "source": self.source,
            "archive": self.output,
            "exit_code": self.exit_code,
            "files": self.files,
            "source_bytes": self.source_bytes,
            "shards": self.shards,
            "files_by_suffix": dict(self.kinds),
            "sample": self.sample.line.to_dict(),
            "archive_bytes": self.archive.to_dict(),
            "staging_bytes": round(self.staging_bytes),
            "workers": self.workers,
            "seconds": rounded(self.seconds, 1),
            "notes": list(self.notes),
        }

    def lines(self, columns: int | None = None) -> list[str]:
        line, archive = self.sample.line, self.archive
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.kinds.items())
        out = [
            f"dry run, {self.output} was not written: {count_text(line.images, 'file')} of {self.files} were coded",
            f"files    {self.files} in {count_text(self.shards, 'shard')}, {size_text(self.source_bytes)}: {kinds}",
            f"coded    {line.lossy_images} lossy, {line.exact_images} exact, {line.raw_images} kept raw",
        ]
        reasons = sorted(line.kept_raw.items(), key=lambda one: (-one[1], one[0]))
        out += [f"           {count} {reason}" for reason, count in reasons]
        share = self.source_bytes / archive.mean if archive.mean else 0.0
        out.append(
            f"archive  {size_text(round(archive.mean))} ({size_text(round(archive.low))} to "
            f"{size_text(round(archive.high))} at 95 %), ratio {share:.2f}"
        )
        if line.quality.psnr_mean_db is not None:
            out.append(f"quality  {line.quality.psnr_mean_db:.2f} dB PSNR, {line.quality.psnr_worst_db:.2f} at worst")
        time = "depends on the cluster" if self.seconds is None else f"about {max(1, round(self.seconds))} s"
        who = "" if self.workers is None else f" with {count_text(self.workers, 'worker')}"
        return [*out, f"time     {time}{who}", f"disk     {size_text(round(self.staging_bytes))} at most", *self.notes]


def by_suffix(paths: Iterable[bytes]) -> dict[str, int]:
    """Files by suffix in lower case, the most frequent first; rare ones together."""
    found = Counter(os.fsdecode(os.path.splitext(path)[1].lower()) for path in paths)
    common = dict(found.most_common(_KINDS))
    others = found.total() - sum(common.values())
    return {**common, "of other suffixes": others} if others else common


def payload_interval(sizes: Sequence[tuple[int, int]], files: int, source_bytes: int) -> Interval:
    """Payload bytes of all files, from (source bytes, payload bytes) of a sample of them."""
    count, source, stored = len(sizes), sum(size for size, _ in sizes), sum(size for _, size in sizes)
    ratio = stored / source if source else 0.0
    squares = math.fsum((payload - ratio * size) ** 2 for size, payload in sizes)
    variance = squares / (count - 1) if count > 1 else 0.0
    error = files * math.sqrt(max(0.0, 1 - count / files) * variance / count) if count else 0.0
    mean = ratio * source_bytes
    return Interval(mean, max(0.0, mean - _DEVIATIONS * error), mean + _DEVIATIONS * error)


def archive_interval(sample: Sample, files: int, source_bytes: int, shards: int) -> Interval:
    """Bytes of the archive without the models that it carries."""
    payload = payload_interval(sample.sizes, files, source_bytes)
    return payload.plus(files * sample.overhead_bytes + shards * sample.fixed_bytes)
