"""Images per second of archive (verified) and restore, beside what Pillow does on the same cores in the same run.

    python benchmarks/throughput.py [DIRECTORY ...] [--model NAME|FILE] [--cores 2] [--seconds 6] [--skip-ray]
                                    [--json FILE]

Each DIRECTORY holds images of one size; without one, faces of 42x42 and of 178x218 are drawn. The images of a directory
are linked as often as it takes to keep a measurement going, which makes nothing faster: nothing here looks at an image
twice.

    zippy, in process   one process, `workers=1`; a first small run has loaded the model and compiled the coder
    zippy, no verify    the same with `--no-verify`: nothing is decoded again and measured
    zippy, Ray          as many workers as cores; "steady" is the work of the shards without Ray's and the model's start
    avif, webp          as many processes as cores, each encoding pixels it holds in memory until time is up

Archive counts everything: reading and decoding the source file, coding, decoding again from the bytes, writing and
reading the JPEG that restore would write, PSNR, SSIM, and the Parquet file. Restore counts reading, decoding, and
writing JPEG files. The classical codecs work in memory: for archive they are charged for encoding alone, without
verification or measurement, for restore with decoding and encoding a JPEG. Ratios above 1 mean that zippy-batch is
faster all the same.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}

CLASSICAL: dict[str, tuple[str, dict[str, Any]]] = {
    # qualities that give thumbnails of faces about 28 dB; speed hardly depends on them
    "avif speed 6": ("AVIF", {"quality": 40, "speed": 6, "max_threads": 1}),
    "avif speed 0": ("AVIF", {"quality": 40, "speed": 0, "max_threads": 1}),
    "webp method 4": ("WEBP", {"quality": 25, "method": 4}),
}


@dataclass(frozen=True)
class Rate:
    """Images per second; None where it was not measured."""

    directory: str
    size: str
    name: str
    archive: float | None
    restore: float | None


def drawn(folder: Path, width: int, height: int, count: int) -> Path:
    """`count` drawn faces, saved as cameras of the time did: JPEG of quality 75."""
    from PIL import Image
    from synthetic_faces import draw_faces

    square = folder / f"square-{width}x{height}"
    draw_faces(square, count, size=max(width, height))
    out = folder / f"drawn-{width}x{height}"
    out.mkdir()
    for path in sorted(square.iterdir()):
        with Image.open(path) as image:
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image.crop((left, top, left + width, top + height)).save(out / path.name, quality=75)
    return out


def linked(source: Path, folder: Path, count: int) -> Path:
    """A directory of `count` links to the images below `source`, taken in turn."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        sys.exit(f"no images in {source}")
    folder.mkdir()
    for i in range(count):
        file = files[i % len(files)]
        target = folder / f"{i:06d}{file.suffix}"
        try:
            os.link(file, target)
        except OSError:
            # another file system, or one without links
            target.write_bytes(file.read_bytes())
    return folder


def pixels_of(source: Path, most: int = 200) -> list[Any]:
    import numpy as np
    from PIL import Image

    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)[:most]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def size_of(source: Path) -> str:
    shapes = {f"{a.shape[1]}x{a.shape[0]}" for a in pixels_of(source, 20)}
    return shapes.pop() if len(shapes) == 1 else "mixed"


def encoded(pixels: Any, form: str, settings: dict[str, Any]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **settings)
    return out.getvalue()


def _to_jpeg(blob: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(blob)) as image:
        image.save(io.BytesIO(), "JPEG", quality=75)


def turns_per_second(work: Callable[[Any], object], items: Sequence[Any], seconds: float) -> float:
    work(items[0])
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        work(items[count % len(items)])
        count += 1
    return count / passed


_start: Any = None
"""Barrier of the processes that measure at the same time; set in each of them when it starts."""


def _meet_at(barrier: Any) -> None:
    global _start
    _start = barrier


def _classical(name: str, source: Path, seconds: float) -> tuple[float, float]:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    form, settings = CLASSICAL[name]
    images = pixels_of(source)
    blobs = [encoded(image, form, {**settings, **({"speed": 10} if form == "AVIF" else {})}) for image in images]
    _start.wait(timeout=300)
    encode = turns_per_second(lambda image: encoded(image, form, settings), images, seconds)
    decode = turns_per_second(_to_jpeg, blobs, seconds)
    return encode, decode


def classical(name: str, source: Path, seconds: float, cores: int) -> tuple[float, float]:
    """Images per second, encoded and decoded, of `cores` processes that work at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    with concurrent.futures.ProcessPoolExecutor(cores, context, _meet_at, (barrier,)) as pool:
        rates = [task.result() for task in [pool.submit(_classical, name, source, seconds) for _ in range(cores)]]
    return sum(encode for encode, _ in rates), sum(decode for _, decode in rates)


def _zippy(source: Path, folder: Path, workers: int, shard_size: int, model: str) -> list[tuple[float, float]]:
    """(whole run, steady) images per second of archive, of restore, and in one process of archive without verifying."""
    from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
    from zippy_batch.run import pipeline

    options, run = ArchiveOptions(shard_size=shard_size, model=model), RunOptions(workers=workers)
    if workers == 1:
        # load the model, compile the coder: what a long run does once
        few = linked(source, folder / "few", 2 * options.batch_size)
        pipeline.archive(few, folder / "few.parquet", options, run)
        pipeline.restore(folder / "few.parquet", folder / "few-back", RestoreOptions(), run)
    out = folder / "out.parquet"
    reports: list[Any] = [pipeline.archive(source, out, options, run)]
    reports.append(pipeline.restore(out, folder / "back", RestoreOptions(), run))
    if workers == 1:
        reports.append(pipeline.archive(source, folder / "unverified.parquet", replace(options, verify=False), run))
    return [(report.run.images_per_s, steady(report.total.images, report.shards, workers)) for report in reports]


def steady(images: int, shards: Sequence[Any], workers: int) -> float:
    """Images per second of `workers` that are always busy, from the seconds of work on each shard."""
    seconds = sum(line.seconds or 0.0 for line in shards)
    return images * workers / seconds if seconds else 0.0


def zippy(source: Path, work: Path, workers: int, shard_size: int, model: str) -> list[tuple[float, float]]:
    """What `_zippy` measures, in a fresh process.

    What it writes stays in `work`: for some time after thousands of files were removed, ext4 makes new ones slowly.
    """
    folder = work / f"{source.name}-{workers}"
    folder.mkdir()
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_zippy, source, folder, workers, shard_size, model).result()


def measure(source: Path, work: Path, options: argparse.Namespace) -> list[Rate]:
    """All contenders on one directory."""
    size = size_of(source)
    pixels = pixels_of(source, 1)[0]
    count = options.images or max(500, min(8000, 16_000_000 // (pixels.shape[0] * pixels.shape[1])))
    many = linked(source, work / f"{source.name}-linked", count)
    # several shards for each worker, so that none is idle for long at the end
    shard_size, model = -(-count // (4 * options.cores)), options.model
    found = []

    def add(name: str, archive: float | None, restore: float | None) -> None:
        found.append(Rate(source.name, size, name, archive, restore))
        print(f"  {name:26} {_shown(archive)} {_shown(restore)}", flush=True)

    print(f"{source.name}: {count} images of {size}; images/s on {options.cores} cores")
    print(f"  {'':26} {'archive':>10} {'restore':>10}")
    # in process shards follow one another: the automatic size keeps the threads busy
    (archive, _), (restore, _), (unverified, _) = zippy(many, work, 1, 0, model)
    add("zippy, in process", archive, restore)
    add("zippy, no verify", unverified, None)
    if not options.skip_ray:
        (archive, archive_steady), (restore, restore_steady) = zippy(many, work, options.cores, shard_size, model)
        add("zippy, Ray", archive, restore)
        add("zippy, Ray, steady", archive_steady, restore_steady)
    for name in CLASSICAL:
        add(name, *classical(name, source, options.seconds, options.cores))
    return found


def print_ratios(rates: Sequence[Rate]) -> None:
    by_name = {rate.name: rate for rate in rates}
    for mine in (name for name in by_name if name.startswith("zippy")):
        said = []
        for theirs in CLASSICAL:
            a, b = by_name[mine], by_name[theirs]
            said.append(f"{_ratio(a.archive, b.archive)} / {_ratio(a.restore, b.restore)} of {theirs}")
        print(f"  {mine}, archive / restore: {', '.join(said)}")


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}x" if a and b else "-"


def _shown(rate: float | None) -> str:
    return f"{'-' if rate is None else f'{rate:.1f}':>10}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    parser.add_argument("--model", default="faces", help="of the lossy codec")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each classical measurement")
    parser.add_argument("--images", type=int, default=0, help="of each zippy-batch measurement; 0 chooses by size")
    parser.add_argument("--skip-ray", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < options.cores:
        sys.exit(f"this machine lends {len(cores)} cores; ask for that many with --cores")
    # inherited by every process that is started below
    os.sched_setaffinity(0, cores[: options.cores])
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sources = options.directories or [drawn(work, 42, 42, 200), drawn(work, 178, 218, 100)]
        print(f"{platform.machine()}, Python {platform.python_version()}")
        for source in sources:
            found = measure(source.resolve(), work, options)
            print_ratios(found)
            rates += found
    if options.json:
        options.json.write_text(json.dumps([asdict(rate) for rate in rates], indent=2) + "\n")


if __name__ == "__main__":
    main()
