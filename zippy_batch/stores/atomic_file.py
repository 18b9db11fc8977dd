"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zippy_batch.errors import WriteError

_TO_DO = {
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make its file system writable",
}
"""What only writing meets. Anything else may come from what is read meanwhile."""


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


def flush(path: Path) -> None:
    """Bring a file or the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
