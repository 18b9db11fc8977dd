"""The folder in a destination that a restore works in, and by which the same command finishes an interrupted one.

    DIR/.zippy-restoring/
        owner-INODE         an empty directory, named by the inode number of .zippy-restoring
        lock                held by the one run that works here; the kernel drops it when that run dies
        restore.json        the restore that is not finished
        XXXX-N              a file that is being written

A folder of this name may also be somebody's data: a half-restored directory that was copied, or archived and restored.
The directory `owner-INODE` tells them apart, because an archive holds no empty directory and a copy has an inode number
of its own. A folder without it is left alone, and the run takes another name. Only the names above are ever removed.

Each step leaves a folder that the next run can go on from: one that is empty or has its owner, with a `restore.json`
that is replaced whole and removed last, when every restored file is on disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path
from zippy_batch.stores.atomic_file import flush, replacing, writing

FOLDER_NAME = ".zippy-restoring"
_PLAN_FILE = "restore.json"
_LOCK_FILE = "lock"
_OWNER = "owner-"
_ATTEMPTS = 20
"""How often the folder is tried to be taken: a run that ends may remove it each time."""
_BEING_WRITTEN = re.compile(r"[0-9a-f]{32}-\d+|restore\.json\.new-[0-9a-f]{32}")


@dataclass(frozen=True)
class RestoreFolder:
    """Held by one run at a time; made by `restore_folder`."""

    path: Path

    def unfinished(self) -> str | None:
        """The identity of the restore that an earlier run began here and did not finish."""
        try:
            return (self.path / _PLAN_FILE).read_text()
        except FileNotFoundError:
            return None

    def begin(self, identity: str) -> None:
        """Make this restore the one to go on with; another one is forgotten."""
        self._sweep()
        if self.unfinished() == identity:
            return
        with replacing(self.path / _PLAN_FILE) as new:
            new.write_text(identity)

    def finish(self) -> None:
        """Called when every restored file is on disk."""
        self._sweep()
        (self.path / _PLAN_FILE).unlink(missing_ok=True)
        flush(self.path)

    def _sweep(self) -> None:
        """Remove what workers that died left half written."""
        for name in os.listdir(self.path):
            if _BEING_WRITTEN.fullmatch(name):
                (self.path / name).unlink(missing_ok=True)


@contextmanager
def restore_folder(destination: Path, reserved: Set[str]) -> Iterator[RestoreFolder]:
    """The folder of a restore into `destination`, new or as an earlier run left it; `reserved` are names in the
    destination that it cannot have. Removed afterwards, unless a restore is left unfinished.

    Raises UsageError when another run works in it, or the destination takes no folder.
    """
    path, lock = _locked_folder(destination, reserved)
    try:
        yield RestoreFolder(path)
    finally:
        try:
            if not (path / _PLAN_FILE).exists():
                _remove(path)
        finally:
            os.close(lock)


def _locked_folder(destination: Path, reserved: Set[str]) -> tuple[Path, int]:
    """The folder, and the descriptor of its lock."""
    for _ in range(_ATTEMPTS):
        try:
            with writing(str(destination / FOLDER_NAME)):
                destination.mkdir(parents=True, exist_ok=True)
                path = destination / _name(destination, reserved)
                path.mkdir(exist_ok=True)
                _owner(path).mkdir(exist_ok=True)
                lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            if _is_locked(lock, path):
                return path, lock
            os.close(lock)
        except FileNotFoundError as error:
            # a run that ends has removed the folder meanwhile
            vanished = error
        except OSError as error:
            raise UsageError(f"cannot restore into {_shown(destination)}: {error.strerror}") from error
    raise UsageError(f"cannot restore into {_shown(destination)}: it takes no folder ({vanished.strerror})")


def _is_locked(lock: int, path: Path) -> bool:
    """Whether this run has the lock, and it is still the one in the folder. Raises UsageError when another has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(path / _LOCK_FILE))
    except BlockingIOError as error:
        raise UsageError(
            f"another restore is writing to {_shown(path.parent)} ({path.name} in it is locked); wait for it, stop it, "
            f"or restore into another directory"
        ) from error
    except FileNotFoundError:
        return False


def _shown(path: Path) -> str:
    return display_path(os.fsencode(path))


def _name(destination: Path, reserved: Set[str]) -> str:
    """A folder that is there and this program's own, else the first name that is free."""
    there = set(os.listdir(destination))
    names = [FOLDER_NAME, *(f"{FOLDER_NAME}-{number}" for number in range(2, len(there) + len(reserved) + 3))]
    allowed = [name for name in names if name not in reserved]
    ours = (name for name in allowed if name in there and _is_ours(destination / name))
    return next(ours, None) or next(name for name in allowed if name not in there)


def _is_ours(path: Path) -> bool:
    """Whether it is a folder of this program, or an empty one, which is nobody's data."""
    with suppress(OSError):
        return not path.is_symlink() and path.is_dir() and (_owner(path).is_dir() or not os.listdir(path))
    return False


def _owner(path: Path) -> Path:
    return path / f"{_OWNER}{os.stat(path).st_ino}"


def _remove(path: Path) -> None:
    """Leaves what others have put there."""
    (path / _LOCK_FILE).unlink(missing_ok=True)
    for directory in (_owner(path), path):
        try:
            directory.rmdir()
        except OSError as error:
            # a file of somebody else's, or the lock of a run that has just come
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
