"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    with ThreadPoolExecutor(_FLUSHES, thread_name_prefix="zippy-flush") as pool:
        # all of them are tried: what is on disk need not be written again
        for done in [pool.submit(_flush_named, path) for path in paths]:
            done.result()


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
