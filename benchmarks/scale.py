"""Whether the cost of an image stays the same from 10^3 images to 10^5, and what the driver needs for it.

    python benchmarks/scale.py [--counts 1000,10000,100000] [--paths 1000000] [--workers 0] [--json FILE]

Drawn faces of 42x42, 2,000 of them linked as often as it takes; each run is a process of its own. The driver's memory
is its peak above what it had when the program was loaded and had archived a few. Chosen rows are 100 at even distances,
restored by a condition on their paths. `verify` checks checksums.

--paths plans that many files that are not there, in no order, takes every shard of the plan once, and archives nothing:
what a driver needs for a list that long, in memory and on disk.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

CHOSEN = 100
DRAWN = 2000


@dataclass(frozen=True)
class Scale:
    images: int
    shards: int
    plan_s: float
    """Listing, cutting and the fingerprint alone."""
    archive_s: float
    images_per_s: float
    driver_mib: float
    bytes_per_image: float
    restore_chosen_s: float
    verify_s: float
    verify_mb_per_s: float


@dataclass(frozen=True)
class Planned:
    paths: int
    shards: int
    list_s: float
    """Sorting and packing."""
    plan_s: float
    """Digest and cuts."""
    shards_s: float
    """Every shard's files, once."""
    memory_mib: float
    disk_mib: float


def plan_only(paths: int) -> Planned:
    from zippy_batch.config import ArchiveOptions
    from zippy_batch.run.plan import plan_archive
    from zippy_batch.sources.directory import Files, Listing, SourceFile

    # 1,000 files to a directory, and directories in another order than their names
    directories = -(-paths // 1000)
    stride = next(step for step in range(directories * 5 // 8, 2 * directories) if math.gcd(step, directories) == 1)
    found = (
        SourceFile(b"%05d/%08d.jpg" % (d, 1000 * d + i), 700 + (i * 37) % 500, 1_700_000_000 + i)
        for d in (k * stride % directories for k in range(directories))
        for i in range(min(1000, paths - 1000 * d))
    )
    before, free, times = _peak_mib(), _free_mib(), [time.perf_counter()]
    files = Files(found)
    disk_mib = free - _free_mib()
    times.append(time.perf_counter())
    plan = plan_archive(Listing(files, 0), ArchiveOptions(device="cpu"), {})
    assert plan.fingerprint
    times.append(time.perf_counter())
    assert sum(len(plan.shard(index).files) for index in range(len(plan))) == paths
    times.append(time.perf_counter())
    list_s, plan_s, shards_s = (end - start for start, end in pairwise(times))
    return Planned(paths, len(plan), list_s, plan_s, shards_s, _peak_mib() - before, disk_mib)


def linked(faces: Path, folder: Path, count: int) -> None:
    """`count` links to the faces, a thousand to a directory."""
    files = sorted(faces.iterdir())
    for i in range(count):
        part = folder / f"{i // 1000:05d}"
        if i % 1000 == 0:
            part.mkdir(parents=True)
        # ext4 gives a file 65,000 names
        os.link(files[i % len(files)], part / f"{i:07d}.jpg")


def measure(source: Path, work: Path, workers: int) -> Scale:
    from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
    from zippy_batch.run import pipeline
    from zippy_batch.run.plan import plan_archive
    from zippy_batch.sources.directory import list_files

    options, run = ArchiveOptions(device="cpu"), RunOptions(workers=workers)
    few = work / "few"
    linked(source / "00000", few, 128)
    # the model is loaded and the coder compiled
    pipeline.archive(few, work / "few.parquet", options, RunOptions(workers=1))
    before = _peak_mib()
    begun = time.perf_counter()
    plan = plan_archive(list_files(source), options, {})
    assert plan.fingerprint
    plan_s = time.perf_counter() - begun
    images, shards = sum(plan.rows), len(plan)
    del plan
    begun = time.perf_counter()
    report = pipeline.archive(source, work / "out.parquet", options, run)
    archive_s = time.perf_counter() - begun
    driver_mib = _peak_mib() - before
    names = [f"'{i // 1000:05d}/{i:07d}.jpg'" for i in range(0, images, max(1, images // CHOSEN))][:CHOSEN]
    begun = time.perf_counter()
    where = f"path in [{', '.join(names)}]"
    chosen = RestoreOptions(where=where, device="cpu")
    restored = pipeline.restore(work / "out.parquet", work / "back", chosen, RunOptions(workers=1))
    restore_s = time.perf_counter() - begun
    assert restored.total.images == min(images, CHOSEN)
    begun = time.perf_counter()
    assert pipeline.verify(work / "out.parquet", run=RunOptions(workers=1)).exit_code == 0
    verify_s = time.perf_counter() - begun
    size = report.total.archive_bytes
    return Scale(
        images=images,
        shards=shards,
        plan_s=plan_s,
        archive_s=archive_s,
        images_per_s=images / archive_s,
        driver_mib=driver_mib,
        bytes_per_image=size / images,
        restore_chosen_s=restore_s,
        verify_s=verify_s,
        verify_mb_per_s=size / verify_s / 1e6,
    )


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _free_mib() -> float:
    return shutil.disk_usage(tempfile.gettempdir()).free / (1 << 20)


def _alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """In a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--paths", default="1000000", help="to plan only")
    parser.add_argument("--workers", type=int, default=0, help="as of archive; 0 chooses, 1 stays in one process")
    parser.add_argument("--json", type=Path, metavar="FILE")
    o = parser.parse_args()
    from synthetic_faces import draw_faces

    results = []
    print("  images shards   plan s  archive s  images/s  driver MiB  B/image  100 chosen s  verify s  verify MB/s")
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "drawn"
        draw_faces(faces, DRAWN, size=42)
        for count in map(int, filter(None, o.counts.split(","))):
            work = Path(folder) / str(count)
            linked(faces, work / "source", count)
            one = _alone(measure, work / "source", work, o.workers)
            results.append(one)
            print(
                f"{one.images:8d} {one.shards:6d} {one.plan_s:8.2f} {one.archive_s:10.1f} {one.images_per_s:9.0f} "
                f"{one.driver_mib:11.0f} {one.bytes_per_image:8.1f} {one.restore_chosen_s:13.2f} {one.verify_s:9.2f} "
                f"{one.verify_mb_per_s:12.1f}",
                flush=True,
            )
    print("     paths shards  list s  plan s  shards s  memory MiB  disk MiB")
    planned = []
    for paths in map(int, filter(None, o.paths.split(","))):
        plan = _alone(plan_only, paths)
        planned.append(plan)
        print(
            f"{plan.paths:10d} {plan.shards:6d} {plan.list_s:7.1f} {plan.plan_s:7.1f} {plan.shards_s:9.1f} "
            f"{plan.memory_mib:11.0f} {plan.disk_mib:9.0f}",
            flush=True,
        )
    if o.json:
        found = {"archived": [asdict(one) for one in results], "planned": [asdict(plan) for plan in planned]}
        o.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
