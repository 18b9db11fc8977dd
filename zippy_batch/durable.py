"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside `path` that becomes `path`, whole and on disk, when the body has written it."""
    new = path.with_name(f"{path.name}.new-{uuid.uuid4().hex}")
    try:
        yield new
        flush(new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file or the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
