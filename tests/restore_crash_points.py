"""Kills a restore before each thing it does to the file system, and lets the next one finish.

A program of its own, because it forks. `python restore_crash_points.py DESTINATION ARCHIVE` restores an archive, which
is killed once. Without ARCHIVE only the folder is used that a restore works in, and the run that goes on is killed at
each point as well. Prints how many points there were, or what went wrong at one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from killing import KILLED, in_child, killing_before

from zippy_batch.run.restore_folder import FOLDER_NAME, restore_folder
from zippy_batch.stores.atomic_file import flush_all

NAMES = ("a.txt", "b.txt")


def use_folder(destination: Path) -> None:
    """As a restore does."""
    with restore_folder(destination, set()) as folder:
        if folder.unfinished() != "this":
            assert not any((destination / name).exists() for name in NAMES), "the restore is not gone on with"
        folder.begin("this")
        for number, name in enumerate(NAMES):
            new = folder.path / f"{'0' * 32}-{number}"
            new.write_text(name)
            os.replace(new, destination / name)
        flush_all([os.fsencode(destination)])
        folder.finish()


def restored(archive: Path) -> Callable[[Path], None]:
    from fakes import CODECS

    from zippy_batch.config import RestoreOptions, RunOptions
    from zippy_batch.run.pipeline import restore

    def run(destination: Path) -> None:
        restore(archive, destination, RestoreOptions(device="cpu"), RunOptions(workers=1), codecs=CODECS)

    return run


def is_done(destination: Path) -> bool:
    """Whether all that is left to do is to tidy up: then the files are there, as after any restore."""
    there = all((destination / name).exists() for name in NAMES)
    return there and not (destination / FOLDER_NAME / "restore.json").exists()


def check(destination: Path, where: str) -> None:
    there = {path.name: path.read_text() for path in destination.iterdir() if path.is_file()}
    assert there == {name: name for name in NAMES}, f"{where}: {there}"


def kill_twice(destination: Path, run: Callable[[Path], None], first: int) -> None:
    second = 0
    while not is_done(destination):
        again = in_child(killing_before(second, lambda: run(destination)))
        if again == 0:
            break
        where = f"points {first} and {second}"
        assert again == KILLED, f"{where}: ended with {again}"
        if not is_done(destination):
            assert in_child(lambda: run(destination)) == 0, f"{where}: the third run failed"
        check(destination, where)
        shutil.rmtree(destination)
        assert in_child(killing_before(first, lambda: run(destination))) == KILLED
        second += 1


def main() -> None:
    destination = Path(sys.argv[1])
    run = restored(Path(sys.argv[2])) if len(sys.argv) > 2 else use_folder
    run(destination)
    first = 0
    while True:
        shutil.rmtree(destination)
        status = in_child(killing_before(first, lambda: run(destination)))
        if status == 0:
            break
        assert status == KILLED, f"point {first}: ended with {status}"
        if run is use_folder:
            kill_twice(destination, run, first)
        elif not is_done(destination):
            assert in_child(lambda: run(destination)) == 0, f"point {first}: the next run failed"
        check(destination, f"point {first}")
        first += 1
    print(first)


if __name__ == "__main__":
    main()
