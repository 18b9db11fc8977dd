"""Kills an archive run before each thing it does to the file system, and each time lets the next run finish.

A program of its own, because it forks: `python crash_points.py SOURCE OUTPUT [--overwrite]`. Prints how many points
there were, or what went wrong at one.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pandas  # noqa: F401 - pyarrow imports it where it is installed: once, and not in every child
import pyarrow.parquet  # noqa: F401
from fakes import CODECS, files_of, pixels

from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.run.encode_verified import compare
from zippy_batch.run.pipeline import archive
from zippy_batch.run.staging_local import is_publishing, staging_path

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
EFFECTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
KILLED, FAILED = 9, 3


def run(source: Path, output: Path, overwrite: bool) -> None:
    archive(source, output, OPTIONS, RunOptions(workers=1, overwrite=overwrite), codecs=CODECS)


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing_before(point: int, work: Callable[[], None]) -> Callable[[], None]:
    """As SIGKILL would: nothing is flushed, nothing is tidied up."""
    left = point

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if event in EFFECTS or writes:
            left -= 1
            if left < 0:
                os._exit(KILLED)

    def watched() -> None:
        sys.addaudithook(watch)
        work()

    return watched


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prepare(output: Path, overwrite: bool) -> None:
    remove(output)
    remove(staging_path(output))
    if overwrite:
        shutil.copytree(output.with_name("old"), output)


def finish(source: Path, output: Path, overwrite: bool, point: str) -> None:
    """The same command again, unless it had nothing left to do but to tidy up."""
    if not overwrite and output.exists() and not is_publishing(output):
        return
    assert in_child(lambda: run(source, output, overwrite)) == 0, f"{point}: the next run failed"
    assert not staging_path(output).exists(), f"{point}: the staging was left"


def main() -> None:
    compare(pixels(0), pixels(1))  # compiled once, for all children
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    overwrite = "--overwrite" in sys.argv
    if overwrite:
        assert in_child(lambda: run(source / "sub", output.with_name("old"), False)) == 0
    prepare(output, overwrite)
    assert in_child(lambda: run(source, output, overwrite)) == 0
    expected = content(output)
    point = 0
    while True:
        prepare(output, overwrite)
        status = in_child(killing_before(point, lambda: run(source, output, overwrite)))
        if status == 0:
            break
        assert status == KILLED, f"point {point}: ended with {status}"
        finish(source, output, overwrite, f"point {point}")
        assert content(output) == expected, f"point {point}: another archive"
        point += 1
    print(point)


if __name__ == "__main__":
    main()
