"""Kills a command on archives before each thing that it does to the file system, and lets the next run finish.

A program of its own, because it forks: `python living_crash_points.py COMMAND OUTPUT`. Prints how many points there
were, or what went wrong at one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas  # noqa: F401 - pyarrow imports it where it is installed: once, and not in every child
import pyarrow.parquet  # noqa: F401
from crash_points import content, remove
from killing import KILLED, in_child, killing_before
from rows import below, face_rows, labelled, rows_of, write_archive

from zippy_batch.run.erase import Erasure, erase
from zippy_batch.run.merge import merge
from zippy_batch.run.rewrite import recover
from zippy_batch.run.staging_local import is_publishing, staging_path

ROWS = labelled(face_rows(15))
WISH = Erasure("label == 'id_3' or path == '000008.jpg'")
LEFT = 13


def erase_again(output: Path) -> None:
    """Killed after it was done, there is nothing left to erase."""
    recover(output)
    if len(rows_of(output)) > LEFT:
        erase(output, WISH)


def merge_again(sources: list[Path], output: Path) -> None:
    if not output.exists() or is_publishing(output):
        merge(sources, output)


def check_receipts(output: Path, point: str) -> None:
    """One, of what was done, under its own name."""
    found = [path for path in output.parent.iterdir() if "receipt" in path.name or ".erased-" in path.name]
    assert all(path.suffix == ".json" for path in found), f"{point}: {found}"
    for path in found:
        receipt = json.loads(path.read_bytes())
        assert set(receipt["after"]) == {name.decode() or output.name for name in content(output)}, point
        path.unlink()
    assert len(found) == 1, f"{point}: {len(found)} receipts"


def void(act: Callable[[], object]) -> None:
    act()


def main() -> None:
    command, output = sys.argv[1], Path(sys.argv[2])
    old = output.with_name(f"old{output.suffix}")
    write_archive(old, ROWS, 5)
    other = write_archive(output.with_name("other"), below("b", face_rows(7)), 5)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "merge": (lambda: merge([old, other], output), lambda: merge_again([old, other], output)),
        "erase": (lambda: erase(output, WISH), lambda: erase_again(output)),
    }
    run, again = runs[command]
    is_in_place = command != "merge"

    def prepare() -> None:
        remove(output)
        remove(staging_path(output))
        for path in output.parent.glob("*erased-*"):
            path.unlink()
        if is_in_place:
            (shutil.copytree if old.is_dir() else shutil.copyfile)(old, output)

    prepare()
    assert in_child(lambda: void(run)) == 0
    expected = content(output)
    point = 0
    while True:
        prepare()
        status = in_child(killing_before(point, lambda: void(run)))
        if status == 0:
            break
        assert status == KILLED, f"point {point}: ended with {status}"
        if is_in_place:
            assert in_child(lambda: recover(output)) == 0, f"point {point}: not recovered"
            assert content(output) in (content(old), expected), f"point {point}: neither old nor new"
        assert in_child(lambda: void(again)) == 0, f"point {point}: the next run failed"
        assert content(output) == expected, f"point {point}: another archive"
        if command == "erase":
            check_receipts(output, f"point {point}")
        point += 1
    print(point)


if __name__ == "__main__":
    main()
