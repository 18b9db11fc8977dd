"""Bytes per image and quality of an archive, beside AVIF and WebP files stored the best way a user could store them.

    python benchmarks/compression.py DIRECTORY ... [--qualities 25,40,55,65,75,85,95] [--limit 200] [--skip avif-speed0]

Without a directory, faces of 42x42 are drawn. The archive is charged for the whole Parquet file. The rivals are charged
for a Parquet file too, with one row per image (path and encoded file) under zstd level 19, so that the header which all
their files share costs them almost nothing; AVIF is tuned for PSNR. Quality is the PSNR (dB, RGB) of the squared error
pooled over all images, between the decoded source and what comes back as PNG. "of X" is the archive's bytes divided by
X's at the same PSNR, where X's curve is interpolated between its settings (bytes on a logarithmic scale); below 1 the
archive is smaller. The last line is the mean of that ratio over the range of PSNR that both curves cover.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
Setting = tuple[str, dict[str, Any]]
RIVALS: dict[str, list[Setting]] = {
    "avif-speed6": [("AVIF", {"quality": q, "speed": 6}) for q in (3, 8, 14, 22, 32, 44, 58, 70)],
    "avif-speed0": [("AVIF", {"quality": q, "speed": 0}) for q in (3, 8, 14, 22, 32, 44, 58, 70)],
    "webp": [("WEBP", {"quality": q, "method": 6}) for q in (2, 10, 25, 45, 65, 80, 90)],
}


@dataclass(frozen=True)
class Point:
    """One setting on one directory."""

    directory: str
    name: str
    setting: str
    bytes_per_image: float
    psnr_db: float


def pixels_of(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3), in stored orientation."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def psnr_db(squared_errors: Sequence[float]) -> float:
    return 10 * math.log10(255**2 / max(float(np.mean(squared_errors)), 1e-3))


def squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def encoded(path: Path, setting: Setting) -> tuple[bytes, float]:
    """A rival's file of an image, and its squared error."""
    form, options = setting
    pixels, out = pixels_of(path), io.BytesIO()
    tuned = {"advanced": {"tune": "psnr"}, "max_threads": 1} if form == "AVIF" else {}
    Image.fromarray(pixels).save(out, form, **options, **tuned)
    with Image.open(out) as back:
        return out.getvalue(), squared_error(pixels, np.asarray(back.convert("RGB")))


def rival_point(directory: Path, paths: Sequence[Path], name: str, setting: Setting, pool: Any) -> Point:
    blobs, errors = zip(*pool.map(encoded, paths, [setting] * len(paths), chunksize=4), strict=True)
    sink = io.BytesIO()
    table = pa.table({"path": [path.name for path in paths], "image": pa.array(blobs, pa.binary())})
    pq.write_table(table, sink, compression="zstd", compression_level=19)
    return Point(directory.name, name, f"q{setting[1]['quality']}", sink.tell() / len(paths), psnr_db(errors))


def archive_point(directory: Path, paths: Sequence[Path], quality: int, model: str) -> Point:
    from zippy_batch import pipeline
    from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions

    with tempfile.TemporaryDirectory() as folder:
        source, out, back = Path(folder) / "in", Path(folder) / "out.parquet", Path(folder) / "back"
        for path in paths:
            copy = source / path.relative_to(directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        options = ArchiveOptions(quality=quality, model=model, verify=False)
        pipeline.archive(source, out, options, RunOptions(workers=1))
        pipeline.restore(out, back, RestoreOptions(format="png"), RunOptions(workers=1))
        errors = [squared_error(pixels_of(path), pixels_of(restored(back, directory, path))) for path in paths]
        return Point(directory.name, "zippy-batch", f"q{quality}", out.stat().st_size / len(paths), psnr_db(errors))


def restored(back: Path, directory: Path, path: Path) -> Path:
    """Where restore put an image: under its own name if that was a PNG or was kept raw, else with .png appended."""
    same = back / path.relative_to(directory)
    return same if same.exists() else same.with_name(f"{same.name}.png")


def log_bytes_at(points: Sequence[Point], at_db: Sequence[float]) -> NDArray[np.float64]:
    ordered = sorted(points, key=lambda point: point.psnr_db)
    known = np.log([point.bytes_per_image for point in ordered])
    return np.interp(at_db, [point.psnr_db for point in ordered], known, left=np.nan, right=np.nan)


def ratio_at(mine: Point, theirs: Sequence[Point]) -> float | None:
    """Bytes of `mine` over those of the rival at the same PSNR; None outside of the rival's curve."""
    there = float(log_bytes_at(theirs, [mine.psnr_db])[0])
    return None if math.isnan(there) else mine.bytes_per_image / math.exp(there)


def mean_ratio(mine: Sequence[Point], theirs: Sequence[Point]) -> tuple[float, float, float] | None:
    """Mean ratio of bytes at equal PSNR, and the range in dB that both curves cover."""
    low = max(min(point.psnr_db for point in points) for points in (mine, theirs))
    high = min(max(point.psnr_db for point in points) for points in (mine, theirs))
    if high <= low:
        return None
    at_db = np.linspace(low, high, 100)[1:-1].tolist()
    return math.exp(np.mean(log_bytes_at(mine, at_db) - log_bytes_at(theirs, at_db))), low, high


def measure(directory: Path, options: argparse.Namespace, pool: Any) -> list[Point]:
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = paths[:: max(1, len(paths) // options.limit)][: options.limit] if options.limit else paths
    if not paths:
        sys.exit(f"no images in {directory}")
    names = [name for name in RIVALS if name not in options.skip]
    rivals = {name: [rival_point(directory, paths, name, setting, pool) for setting in RIVALS[name]] for name in names}
    print(f"{directory.name}: {len(paths)} images")
    print(f"  {'':16} {'bytes/image':>12} {'PSNR dB':>8}" + "".join(f" {'of ' + name:>15}" for name in names))
    mine = []
    for quality in options.qualities:
        point = archive_point(directory, paths, quality, options.model)
        mine.append(point)
        cells = [ratio_at(point, rivals[name]) for name in names]
        shown = "".join(f" {'-' if cell is None else f'{cell:.3f}':>15}" for cell in cells)
        print(f"  {'quality ' + str(quality):16} {point.bytes_per_image:12.1f} {point.psnr_db:8.2f}{shown}", flush=True)
    for name in names:
        for point in rivals[name]:
            print(f"  {name + ' ' + point.setting:16} {point.bytes_per_image:12.1f} {point.psnr_db:8.2f}")
    for name in names:
        if mean := mean_ratio(mine, rivals[name]):
            print(f"  mean of {name}: {mean[0]:.3f} over {mean[1]:.1f} to {mean[2]:.1f} dB", flush=True)
    return [*mine, *(point for name in names for point in rivals[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    parser.add_argument("--qualities", default=[25, 40, 55, 65, 75, 85, 95], type=_numbers)
    parser.add_argument("--limit", type=int, default=0, help="images of each directory, spread over it; 0 takes all")
    parser.add_argument("--skip", action="append", default=[], choices=RIVALS, help="leave a rival out")
    parser.add_argument("--model", default="faces")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    points = []
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ProcessPoolExecutor(cores) as pool:
        directories = options.directories
        if not directories:
            from zippy_batch.drawn import draw_faces

            directories = [Path(folder) / "drawn-42x42"]
            draw_faces(directories[0], 200)
        for directory in directories:
            points += measure(directory.resolve(), options, pool)
    if options.json:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
