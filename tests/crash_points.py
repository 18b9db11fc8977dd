"""Kills an archive run before each thing it does to the file system, and each time lets the next run finish.

A program of its own, because it forks: `python crash_points.py SOURCE OUTPUT [--overwrite]`. Prints how many points
there were, or what went wrong at one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas  # noqa: F401 - pyarrow imports it where it is installed: once, and not in every child
import pyarrow.parquet  # noqa: F401
from fakes import CODECS, files_of, pixels
from killing import KILLED, in_child, killing_before

from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.run.encode_verified import compare
from zippy_batch.run.pipeline import archive
from zippy_batch.run.staging_local import is_publishing, staging_path

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)


def run(source: Path, output: Path, overwrite: bool) -> None:
    archive(source, output, OPTIONS, RunOptions(workers=1, overwrite=overwrite), codecs=CODECS)


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
