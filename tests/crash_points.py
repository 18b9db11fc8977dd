"""Kills an archive run before each thing it does to the file system, and each time lets the next run finish.

A program of its own, because it forks: `python crash_points.py SOURCE`. Writes a file and a directory beside it,
and a directory over another one. Prints how many points each had, or what went wrong at one.
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

OPTIONS = ArchiveOptions(device="cpu", shard_size=6, batch_size=3)
"""Two shards."""


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
    try:
        run(source, output, overwrite)
    except Exception as error:
        raise AssertionError(f"{point}: the next run failed") from error
    assert not staging_path(output).exists(), f"{point}: the staging was left"


SAME_FOR_ALL = 10
"""Points at which parts are written, in the same way for every kind of output."""


def points(source: Path, output: Path, overwrite: bool) -> int:
    if overwrite:
        assert in_child(lambda: run(source / "sub", output.with_name("old"), False)) == 0
    prepare(output, overwrite)
    run(source, output, overwrite)  # here, so that the children find loaded and compiled what they need
    expected = content(output)
    point = 0 if output.suffix else SAME_FOR_ALL
    while True:
        prepare(output, overwrite)
        status = in_child(killing_before(point, lambda: run(source, output, overwrite)))
        if status == 0:
            return point
        where = f"{output.name}{' over another' if overwrite else ''}, point {point}"
        assert status == KILLED, f"{where}: ended with {status}"
        finish(source, output, overwrite, where)
        assert content(output) == expected, f"{where}: another archive"
        point += 1


def main() -> None:
    compare(pixels(0), pixels(1))  # compiled once, for all children
    source = Path(sys.argv[1])
    cases = (("out.parquet", False), ("out", False), ("out", True))
    print(*(points(source, source.with_name(name), overwrite) for name, overwrite in cases))


if __name__ == "__main__":
    main()
