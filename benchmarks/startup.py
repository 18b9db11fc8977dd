"""Seconds and peak memory of whole commands, start-up included, as a user types them.

    python benchmarks/startup.py [DIRECTORY] [--runs 3] [--json FILE]

DIRECTORY holds the images; without one, 669 faces of 42x42 are drawn. Each command runs in a process of its own, with
nothing of it in memory before. The first run is also shown alone, because it finds the files of Python, torch and the
model on disk and not in the page cache, and may compile what later runs take from a cache. Peak memory is that of the
largest process, from the operating system; where workers are started, theirs are not added.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    command: str
    seconds: tuple[float, ...]
    peak_memory_bytes: int

    def line(self) -> str:
        first, best = self.seconds[0], min(self.seconds)
        return f"{self.command:44} {first:8.2f} {best:8.2f} {self.peak_memory_bytes / 1e6:10.0f}"


def timed(args: list[str]) -> tuple[float, int]:
    """Seconds and peak resident memory (bytes) of a command and what it waited for; its output is dropped."""
    begun = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):
            os.dup2(quiet, stream)
        os.execv(sys.executable, [sys.executable, "-m", "zippy_batch", *args])
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - begun
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"zippy-batch {' '.join(args)} failed")
    # kilobytes on Linux, bytes on macOS
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(shown: str, args: list[str], runs: int, clear: Path | None) -> Measured:
    seconds, peak = [], 0
    for _ in range(runs):
        if clear is not None:
            shutil.rmtree(clear, ignore_errors=True)
        taken, memory = timed(args)
        seconds.append(taken)
        peak = max(peak, memory)
    return Measured(shown, tuple(seconds), peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = options.directory
        if source is None:
            from synthetic_faces import draw_faces

            source = work / "faces"
            draw_faces(source, 669)
        out, back = work / "out.parquet", work / "back"
        count = sum(1 for path in source.rglob("*") if path.is_file())
        print(f"{count} files in {source}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}")
        print(f"{'command':44} {'first s':>8} {'best s':>8} {'peak MB':>10}")
        results = []
        first = min(source.rglob("*.jpg"), default=min(path for path in source.rglob("*") if path.is_file()))
        name = str(first.relative_to(source))
        for shown, args, clear in (
            ("zippy-batch --help", ["--help"], None),
            ("zippy-batch archive DIR out.parquet", ["archive", str(source), str(out), "--overwrite"], None),
            ("zippy-batch stats out.parquet", ["stats", str(out)], None),
            ("zippy-batch ls out.parquet", ["ls", str(out)], None),
            ("zippy-batch cat out.parquet NAME.jpg", ["cat", str(out), name], None),
            ("zippy-batch verify out.parquet", ["verify", str(out)], None),
            ("zippy-batch restore out.parquet back", ["restore", str(out), str(back)], back),
        ):
            results.append(measure(shown, args, options.runs, clear))
            print(results[-1].line(), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
