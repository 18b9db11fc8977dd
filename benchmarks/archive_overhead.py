"""Bytes per image of an archive by column: what everything but the payload costs.

    python benchmarks/archive_overhead.py [ARCHIVE] [--rows 669] [--json FILE]

Without an archive, one is made of made-up rows like those of 42x42 faces: numbered paths, random payloads of about 200
bytes, one set of quantisation tables, equal times. A directory's parts are added up.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.part_file import open_file
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.archives.writer import merge_parts, write_part


@dataclass(frozen=True)
class Overhead:
    rows: int
    payload_bytes: int
    """Of coded rows."""
    column_bytes: Mapping[str, int]
    """Stored bytes by column; of `payload` what it takes beyond the payloads themselves."""
    other_bytes: int
    """Footers, manifest, embedded model."""

    @property
    def total_bytes(self) -> int:
        return sum(self.column_bytes.values()) + self.other_bytes

    def lines(self) -> list[str]:
        each = [*self.column_bytes.items(), ("footer and other", self.other_bytes), ("all", self.total_bytes)]
        head = f"{self.rows} rows, {self.payload_bytes / max(1, self.rows):.1f} bytes of payload each; beside it:"
        return [head, *(f"{name:18} {size:8} B {size / max(1, self.rows):7.2f} B per row" for name, size in each)]


def made_up_archive(directory: Path, rows: int) -> Path:
    draw = random.Random(0)
    made = [
        Row(
            path=f"{i + 1:06d}.jpg".encode(),
            codec="latent",
            payload=draw.randbytes(max(60, int(draw.gauss(200, 40)))),
            raw_reason=None,
            width=42,
            height=42,
            mode="RGB",
            grey=False,
            quality=75,
            source_bytes=int(draw.gauss(925, 80)),
            source_format="jpeg",
            jpeg_quality=75,
            jpeg_tables=bytes(range(134)),
            psnr=draw.gauss(28.5, 1.6),
            ssim=1 - draw.lognormvariate(-3, 0.35),
            exif=None,
            icc=None,
            mtime_s=1_795_416_683,
        )
        for i in range(rows)
    ]
    options = {"batch_size": 64, "device": "cpu", "min_psnr": None, "quality": 75, "shard_size": 0, "verify": True}
    info = ArchiveInfo(FORMAT_VERSION, {"latent": "f" * 64}, options, (rows,))
    write_part(directory / "part", made, info)
    merge_parts([directory / "part"], directory / "made-up.parquet", info)
    return directory / "made-up.parquet"


def measure(path: Path) -> Overhead:
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    columns: Counter[str] = Counter()
    for file in files:
        for group in open_file(file).groups:
            columns.update({name: chunk.stop - chunk.start for name, chunk in group.chunks.items()})
    with ArchiveReader.open(path) as archive:
        coded_bytes = sum(archive.payload_bytes(shard) for shard in archive.shards())
        other_bytes = archive.size_bytes - columns.total()
        columns["payload"] -= coded_bytes
        return Overhead(archive.row_count, coded_bytes, dict(columns), other_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=669, help="of the made-up archive")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        overhead = measure(options.archive or made_up_archive(Path(directory), options.rows))
    print("\n".join(overhead.lines()))
    if options.json:
        options.json.write_text(json.dumps({**vars(overhead), "total_bytes": overhead.total_bytes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
