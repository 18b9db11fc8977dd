"""Kills a command on archives before each thing that it does to the file system, and lets the next run finish.

A program of its own, because it forks: `python living_crash_points.py DIRECTORY`. Prints how many points each command
had, or what went wrong at one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas  # noqa: F401 - pyarrow imports it where it is installed: once, and not in every child
import pyarrow.parquet  # noqa: F401
from crash_points import content, remove
from fakes import CODECS, EXACT_MODEL, MODEL
from killing import KILLED, in_child, killing_before
from rows import below, face_rows, labelled, rows_of, write_archive

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.config import AppendOptions, RunOptions
from zippy_batch.run.append import append
from zippy_batch.run.erase import Erasure, erase
from zippy_batch.run.merge import Wish, merge, select
from zippy_batch.run.rewrite import recover
from zippy_batch.run.staging_local import is_publishing, staging_path

ROWS = labelled(face_rows(15))
WISH = Erasure("label == 'id_3' or path == '000008.jpg'")
LEFT = 13
CHOSEN = Wish("label != 'id_3'")
INFO = ArchiveInfo(
    FORMAT_VERSION, {"latent": MODEL.id, "exact": EXACT_MODEL.id}, {"quality": 75, "shard_size": 2, "batch_size": 3}, ()
)


def erase_again(output: Path) -> None:
    """Killed after it was done, there is nothing left to erase."""
    recover(output)
    if len(rows_of(output)) > LEFT:
        erase(output, WISH)


def make_again(output: Path, make: Callable[[], object]) -> None:
    if not output.exists() or is_publishing(output):
        make()


def add(faces: Path, output: Path) -> None:
    append(faces, output, AppendOptions(update=True, device="cpu"), RunOptions(workers=1), None, CODECS)


def make_new_files(folder: Path) -> Path:
    """Two new ones that are kept raw, and one in place of a row."""
    folder.mkdir()
    for name in ("a.txt", "b.txt", "000008.jpg"):
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, (10, 10))
    return folder


def check_receipts(output: Path, point: str) -> None:
    """One, of what was done, under its own name."""
    found = [path for path in output.parent.iterdir() if "receipt" in path.name or ".erased-" in path.name]
    assert all(path.suffix == ".json" for path in found), f"{point}: {found}"
    for path in found:
        receipt = json.loads(path.read_bytes())
        assert set(receipt["after"]) == {name.decode() or output.name for name in content(output)}, point
        path.unlink()
    assert len(found) == 1, f"{point}: {len(found)} receipts"


@contextmanager
def named(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{where}: the next run failed") from error


def void(act: Callable[[], object]) -> None:
    act()


def points(command: str, output: Path) -> int:
    output.parent.mkdir()
    old = output.with_name(f"old{output.suffix}")
    write_archive(old, ROWS, 5, INFO)
    other = write_archive(output.with_name("other"), below("b", face_rows(7)), 5, INFO)
    faces = make_new_files(output.with_name("faces"))
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "merge": (lambda: merge([old, other], output), lambda: make_again(output, lambda: merge([old, other], output))),
        "select": (
            lambda: select(old, output, CHOSEN),
            lambda: make_again(output, lambda: select(old, output, CHOSEN)),
        ),
        "append": (lambda: add(faces, output), lambda: add(faces, output)),
        "erase": (lambda: erase(output, WISH), lambda: erase_again(output)),
    }
    run, again = runs[command]
    is_in_place = command in ("erase", "append")

    def prepare() -> None:
        remove(output)
        remove(staging_path(output))
        for path in output.parent.glob("*erased-*"):
            path.unlink()
        if is_in_place:
            (shutil.copytree if old.is_dir() else shutil.copyfile)(old, output)

    prepare()
    run()  # here, so that the children find loaded and compiled what they need
    expected = content(output)
    point = 0
    while True:
        prepare()
        status = in_child(killing_before(point, lambda: void(run)))
        if status == 0:
            return point
        where = f"{command} of {output.name}, point {point}"
        assert status == KILLED, f"{where}: ended with {status}"
        # what nobody kills needs no process of its own
        with named(where):
            if is_in_place:
                recover(output)
                assert content(output) in (content(old), expected), "neither old nor new"
            again()
        assert content(output) == expected, f"{where}: another archive"
        if command == "erase":
            check_receipts(output, where)
        point += 1


def main() -> None:
    root, names = Path(sys.argv[1]), ("out.parquet", "out")
    cases = [(command, name) for command in ("merge", "erase", "append") for name in names]
    cases.append(("select", "out"))
    print(*(points(command, root / f"{command}-{name}" / name) for command, name in cases))


if __name__ == "__main__":
    main()
