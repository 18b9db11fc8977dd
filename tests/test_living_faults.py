"""What goes wrong around merge, erase and append: what stands under a name is old or new, and the next run finishes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash_points import content
from fakes import CODECS
from rows import raw_row, write_archive
from s3 import S3
from s3 import s3 as s3
from s3 import s3_server as s3_server
from test_faults import Disk
from test_faults import disk as disk

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.config import AppendOptions, RunOptions
from zippy_batch.errors import StorageError, WriteError
from zippy_batch.run.append import append
from zippy_batch.run.erase import Erasure, erase
from zippy_batch.run.merge import merge
from zippy_batch.run.pipeline import verify
from zippy_batch.stores import object_path
from zippy_batch.stores.object_path import listed

WISH = Erasure("label == 'id_1'")
INFO = ArchiveInfo(FORMAT_VERSION, {}, {"quality": 75}, ())


def test_a_command_killed_at_any_point_leaves_old_or_new_and_the_next_finishes(root: Path, tmp_path: Path) -> None:
    """merge, erase and append, of a file and of a directory, and select."""
    program = [sys.executable, str(root / "tests/living_crash_points.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=root / "tests")
    assert done.returncode == 0, done.stderr
    points = [int(word) for word in done.stdout.split()]
    assert len(points) == 7
    assert min(points) > 10


def the_merge(archives: Path, output: Path) -> None:
    merge([archives], output)


def the_erasure(archives: Path, output: Path) -> None:
    erase(output, WISH)


def the_addition(archives: Path, output: Path) -> None:
    append(archives.with_name("faces"), output, AppendOptions(device="cpu"), RunOptions(workers=1), None, CODECS)


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """3 shards of 40 rows of 4 kB, and beside them a folder of new files."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "new.bin").write_bytes(os.urandom(150_000))
    draw = random.Random(0)
    rows = [replace(raw_row(f"{i:03d}.bin".encode(), draw.randbytes(4000)), label=f"id_{i % 3}") for i in range(120)]
    return write_archive(tmp_path / "old", rows, 40, INFO)


@pytest.mark.parametrize("name", ["out.parquet", "out"])
@pytest.mark.parametrize("act", [the_merge, the_erasure, the_addition])
def test_a_full_disk_leaves_the_old_archive_and_with_room_the_command_goes_on(
    act: Callable[[Path, Path], None], name: str, archives: Path, disk: Disk
) -> None:
    output = disk.path / name
    if act is not the_merge:
        merge([archives], output)
    before = content(output) if output.exists() else {}
    used = sum(path.stat().st_size for path in disk.path.rglob("*") if path.is_file())
    disk.remount(f"size={(used + 100_000) // 4096 * 4}k")
    with pytest.raises(WriteError, match="cannot be written: No space left on device; make room"):
        act(archives, output)
    assert (content(output) if output.exists() else {}) == before
    disk.remount("size=16m")
    act(archives, output)
    assert verify(output).exit_code == 0
    assert not [path for path in disk.path.iterdir() if path.name.startswith(".")]


def test_a_store_that_breaks_off_leaves_no_object_and_the_next_run_finishes(
    archives: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = s3.at("out.parquet")
    copy = object_path.copy

    def failing(source: Any, path: Any) -> None:
        if path == output:
            raise StorageError(f"{path}: the store cannot be reached")
        copy(source, path)

    with monkeypatch.context() as patched:
        patched.setattr(object_path, "copy", failing)
        with pytest.raises(StorageError, match="cannot be reached"):
            merge([archives], output)
    assert not output.exists()
    merge([archives], output)
    assert verify(output).exit_code == 0
    assert [info.base_name for info in listed(output.parent)] == ["out.parquet"]
