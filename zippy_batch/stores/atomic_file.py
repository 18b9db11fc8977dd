"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zippy_batch.errors import WriteError
from zippy_batch.paths import display_path

_TO_DO = {
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make its file system writable",
}
"""What only writing meets. Anything else may come from what is read meanwhile."""
ONLY_WRITING = frozenset(_TO_DO)
_FLUSHES = 16
"""Side by side: a file system commits together what waits for it together."""
_MANY = 64
"""So many files take longer one by one than all that their file system has not written yet."""
_SYNCED_WHOLE = frozenset({"ext2", "ext3", "ext4", "xfs"})
"""File systems of Linux whose syncfs(2) brings everything to disk; some others pass on no more than a part."""
UNFINISHED_BYTES = len(".new-") + 32
"""How much longer the name of a file is while `replacing` writes it."""
_FIRST_LINUX_THAT_TELLS = (5, 8)
"""Before it, syncfs(2) says nothing of what could not be written."""
_HERE = -100
"""AT_FDCWD of Linux: paths are those of this process."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2), and RENAME_SWAP of macOS' renamex_np(2)."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside `path` that becomes `path`, whole and on disk, when the body has written it.

    Raises WriteError.
    """
    new = path.with_name(f"{path.name}.new-{uuid.uuid4().hex}")
    try:
        with writing(str(path)):
            yield new
            flush(new)
            os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Raises WriteError, which names the file and what to do, where the file system has no room for it or no right."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TO_DO:
            raise
        raise WriteError(
            f"{path} cannot be written: {os.strerror(error.errno)}; {_TO_DO[error.errno]} and give the same command "
            f"again, which goes on where it stopped"
        ) from error


def exchange(one: Path, other: Path) -> bool:
    """Give each of two files or directories the other's name, in one step. False, and nothing was done, where the
    system or the file system cannot. Raises OSError where one of them is not there."""
    call = _exchange_call()
    if call is None:
        return False
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(error, os.strerror(error), str(other))


@functools.cache
def _exchange_call() -> Callable[[bytes, bytes], Any] | None:
    """None where the C library has none."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(_HERE, one, _HERE, other, _EXCHANGE)
    if hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, _EXCHANGE)
    return None


def flush(path: Path | bytes) -> None:
    """Bring a file or the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(paths: Iterable[bytes]) -> None:
    """Bring many files and directories to disk. Raises WriteError, which names the one that does not get there."""
    left = list(paths)
    if len(left) >= _MANY:
        # what keeps this from working keeps single files from it, too, and is said of them by name
        with suppress(OSError):
            left = _left_by_whole_file_systems(left)
    with ThreadPoolExecutor(_FLUSHES, thread_name_prefix="zippy-flush") as pool:
        # all of them are tried: what is on disk need not be written again
        for done in [pool.submit(_flush_named, path) for path in left]:
            done.result()


def _left_by_whole_file_systems(paths: Sequence[bytes]) -> list[bytes]:
    """What is not on disk after file systems with many of these paths have been brought there as a whole."""
    by_device: dict[int, list[bytes]] = {}
    for path in paths:
        by_device.setdefault(os.stat(path).st_dev, []).append(path)
    done = [device for device, some in by_device.items() if len(some) >= _MANY and _flush_file_system(some[0], device)]
    return [path for device, some in by_device.items() if device not in done for path in some]


def _flush_file_system(path: bytes, device: int) -> bool:
    """Bring the file system of a path to disk; False where that cannot be done, or not all got there."""
    call = _sync_call()
    if call is None or _kind_of_file_system(device) not in _SYNCED_WHOLE:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return bool(call(descriptor) == 0)
    finally:
        os.close(descriptor)


@functools.cache
def _sync_call() -> Callable[[int], Any] | None:
    """None where there is none that can be believed."""
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or version < _FIRST_LINUX_THAT_TELLS or not hasattr(library, "syncfs"):
        return None
    return lambda descriptor: library.syncfs(descriptor)


def _kind_of_file_system(device: int) -> str | None:
    """Its type as in proc(5), mountinfo; None where there is no telling."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return None
    kinds = {line.partition(b" - ")[2].split()[0] for line in lines if line.split()[2] == wanted}
    return kinds.pop().decode() if len(kinds) == 1 else None


def _flush_named(path: bytes) -> None:
    shown = display_path(path)
    try:
        with writing(shown):
            flush(path)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"{shown} cannot be brought to disk: {error.strerror}; check the disk and give the same command again"
        ) from error
