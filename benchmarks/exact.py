"""JPEG files without loss: bytes per file, images and megabytes per second, peak memory; beside what else keeps them.

    python benchmarks/exact.py [DIRECTORY ...] [--seconds 8] [--skip-speed] [--json FILE]

Each DIRECTORY holds JPEG files; without one, faces of 42x42 and of 178x218 are drawn. Sizes are those of everything
that has to be kept:

    files              the JPEG files, by themselves
    parquet            the smallest Parquet file that a careful user would write, with a column of names and one of
                       files: no statistics, no dictionary, delta-coded names, zstd level 19, one page
    xz                 one xz, at its best setting, of all files behind one another
    jpeg xl            Pillow's plugin transcodes each file without loss (effort 9), into a Parquet file as above
    lepton             lepton_jpeg_python codes each file in one piece, into a Parquet file as above
    zippy-batch        the archive that `zippy-batch archive --exact` writes

Either of the last two is left out, with a note, where its package is missing (`pip install 'zippy-batch[compare]'`).
Every file of the archive is restored and compared with its source. Speeds are those of whole shards in one process on
all cores, reading files, decoding every payload again, rebuilding and comparing every file included; first small runs
have loaded the model and compiled the coder. Peak memory is that of the command, from the operating system.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from startup import timed
from throughput import drawn, linked, size_of

from zippy_batch.compare.codecs import LEPTON, RECODERS, TRANSCODE, Recoder, missing
from zippy_batch.compare.stored import parquet_bytes
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.run.pipeline import archive, restore

OPTIONS = ArchiveOptions(exact="always", device="cpu")
IN_PROCESS = RunOptions(workers=1)


@dataclass(frozen=True)
class Sizes:
    """Bytes per file."""

    directory: str
    size: str
    files: int
    source: float
    parquet: float
    xz: float
    jpeg_xl: float | None
    lepton: float | None
    zippy: float
    payload: float
    exact_files: int

    def lines(self) -> list[str]:
        rivals = {
            "files": self.source,
            "parquet": self.parquet,
            "xz": self.xz,
            "jpeg xl": self.jpeg_xl,
            "lepton": self.lepton,
            "zippy-batch": self.zippy,
        }
        shown = [
            f"  {name:16} {value:9.1f}  {value / self.source:6.3f}"
            for name, value in rivals.items()
            if value is not None
        ]
        head = f"{self.directory}: {self.files} files, {self.size}; all came back, {self.exact_files} of them coded"
        return [head, *shown, f"  of which payload {self.payload:7.1f}"]


@dataclass(frozen=True)
class Speeds:
    directory: str
    size: str
    archive_images_per_s: float
    archive_mb_per_s: float
    restore_images_per_s: float
    restore_mb_per_s: float
    archive_peak_mb: float
    restore_peak_mb: float

    def line(self) -> str:
        ways = {
            "archive": (self.archive_images_per_s, self.archive_mb_per_s, self.archive_peak_mb),
            "restore": (self.restore_images_per_s, self.restore_mb_per_s, self.restore_peak_mb),
        }
        cells = [f"{k} {n:6.0f} images/s {mb:6.3f} MB/s, peak {top:.0f} MB" for k, (n, mb, top) in ways.items()]
        return f"{self.directory:12} {self.size:>8}  {'   '.join(cells)}"


def sizes_of(source: Path) -> Sizes:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    blobs = [path.read_bytes() for path in files]
    names = [os.fsencode(path.name) for path in files]
    recoded = {name: recoded_bytes(name, names, blobs) for name in RECODERS}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.parquet"
        report = archive(source, output, OPTIONS, IN_PROCESS)
        restore(output, Path(folder) / "back", run=IN_PROCESS)
        for path, blob in zip(files, blobs, strict=True):
            if (Path(folder) / "back" / path.relative_to(source)).read_bytes() != blob:
                sys.exit(f"{path} did not come back")
        total = report.total
        n = len(files)
        return Sizes(
            directory=source.name,
            size=size_of(source),
            files=n,
            source=sum(map(len, blobs)) / n,
            parquet=parquet_bytes(names, blobs) / n,
            xz=len(lzma.compress(b"".join(blobs), preset=9 | lzma.PRESET_EXTREME)) / n,
            jpeg_xl=recoded[TRANSCODE],
            lepton=recoded[LEPTON],
            zippy=output.stat().st_size / n,
            payload=total.exact_bytes / n,
            exact_files=total.exact_images,
        )


def recoded_bytes(name: str, names: Sequence[bytes], jpegs: Sequence[bytes]) -> float | None:
    """Per file, in Parquet; what does not come back is kept as it is. None without the package."""
    why = missing(name)
    if why:
        print(f"{name}: {why}", file=sys.stderr)
        return None
    return parquet_bytes(names, [smallest(RECODERS[name], jpeg) for jpeg in jpegs]) / len(jpegs)


def smallest(recoder: Recoder, jpeg: bytes) -> bytes:
    try:
        data = recoder.encode(jpeg)
        return data if recoder.decode(data) == jpeg else jpeg
    except Exception:
        # they raise almost anything on what they do not take
        return jpeg


def speeds_of(source: Path, seconds: float) -> Speeds:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = linked(source, folder / "few", 200)
        archive(few, folder / "first.parquet", OPTIONS, IN_PROCESS)
        rate = archive(few, folder / "few.parquet", OPTIONS, IN_PROCESS).total.images_per_s or 1.0
        many = linked(source, folder / "many", max(200, int(rate * seconds)))
        done = archive(many, folder / "many.parquet", OPTIONS, IN_PROCESS)
        back = restore(folder / "many.parquet", folder / "back", run=IN_PROCESS)
        work, way_back = (sum(line.seconds or 0.0 for line in report.shards) for report in (done, back))
        exact = ["--exact", "--workers", "1", "--device", "cpu"]
        _, archive_peak = timed(["archive", str(many), str(folder / "again.parquet"), *exact])
        _, restore_peak = timed(["restore", str(folder / "many.parquet"), str(folder / "again"), "--workers", "1"])
        return Speeds(
            directory=source.name,
            size=size_of(source),
            archive_images_per_s=done.total.images / work,
            archive_mb_per_s=done.total.source_bytes / work / 1e6,
            restore_images_per_s=back.total.images / way_back,
            restore_mb_per_s=back.total.source_bytes / way_back / 1e6,
            archive_peak_mb=archive_peak / 1e6,
            restore_peak_mb=restore_peak / 1e6,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of speed, about")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = options.directories or [drawn(Path(name), *size, 400) for size in ((42, 42), (178, 218))]
        found: list[Sizes | Speeds] = []
        for folder in folders:
            sizes = sizes_of(folder)
            print("\n".join(sizes.lines()), flush=True)
            found.append(sizes)
        for folder in [] if options.skip_speed else folders:
            speeds = speeds_of(folder, options.seconds)
            print(speeds.line(), flush=True)
            found.append(speeds)
    print(f"{len(os.sched_getaffinity(0))} cores")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
