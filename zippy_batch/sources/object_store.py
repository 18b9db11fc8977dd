"""A source in an object store: its listing, and its files, many of them on their way at a time.

    s3://bucket/faces -> list_objects -> SourceFile -> ObjectReader -> bytes

Sizes and times are those of the listing, and an object that no longer has them when it is read has changed. What comes
is compared with the store's checksum where it has one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

from zippy_batch.errors import SourceError, UsageError
from zippy_batch.paths import display_path, name_problem
from zippy_batch.sources.clashes import clashes
from zippy_batch.sources.directory import MAX_FILE_BYTES, Files, Listing, SourceFile, file_state, require_none_refused
from zippy_batch.sources.selection import FileSelection
from zippy_batch.stores.object_path import REQUESTS, ObjectPath, listed, read_checked

_AHEAD_FILES = 4 * REQUESTS
_AHEAD_BYTES = 64 << 20
"""Bytes of objects that are read before they are asked for; the last one may exceed it."""


def list_objects(root: ObjectPath, selection: FileSelection | None = None) -> Listing:
    """Every object below `root` that is selected, in the order in which `list_files` has files.

    Raises UsageError naming what could not be archived, before anything is read, and where there is no object.
    """
    found = listed(root, recursive=True)
    refused: list[tuple[bytes, str]] = []
    directories: set[bytes] = set()
    filled: set[bytes] = set()

    def files() -> Iterator[SourceFile]:
        for info in found:
            path = info.path[len(root.key) + 1 :].encode()
            filled.add(path.rpartition(b"/")[0])
            if not info.is_file:
                directories.add(path)
            elif selection is None or selection.takes(path):
                why = name_problem(path)
                if info.size > MAX_FILE_BYTES:
                    why = f"{info.size} bytes, over the limit of 1 GiB"
                if why:
                    refused.append((path, why))
                else:
                    time_ns = info.mtime_ns or 0
                    yield SourceFile(path, info.size, time_ns // 10**9, state=file_state(time_ns, 0))

    listing = Listing(Files(files()), 0)
    listing = replace(listing, empty_directories=len(directories - filled))
    refused += clashes(listing.files, ())
    require_none_refused(str(root), sorted(refused))
    if not found and root.is_file():
        raise UsageError(
            f"{root} is one object; a source in a store is all that lies below a name, such as {root.parent}, and "
            f"a .tar, .zip, .parquet or .rec is read from a disk: bring it to this machine first"
        )
    return listing


class ObjectReader:
    """Content of the listed files below `root`, each once, by any number of threads; fast where they are asked for in
    about the order of `files`."""

    def __init__(self, root: ObjectPath, files: Sequence[SourceFile]) -> None:
        self._root, self._ahead = root, iter(files)
        self._coming: dict[bytes, tuple[Future[bytes], int]] = {}
        self._coming_bytes = 0
        self._taken: set[bytes] = set()
        """Those that were asked for before their turn."""
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="zippy-read")

    def __call__(self, file: SourceFile) -> bytes:
        """Raises SourceError when it is gone or is not what was listed, and StorageError."""
        with self._lock:
            self._look_ahead()
            coming = self._coming.pop(file.path, None)
            if coming is None:
                self._taken.add(file.path)
        if coming is None:
            return read_object(self._root, file)
        data = coming[0].result()
        with self._lock:
            self._coming_bytes -= coming[1]
            return data

    def _look_ahead(self) -> None:
        while len(self._coming) < _AHEAD_FILES and self._coming_bytes < _AHEAD_BYTES:
            file = next(self._ahead, None)
            if file is None:
                break
            if file.path not in self._taken:
                self._coming[file.path] = self._pool.submit(read_object, self._root, file), file.size_bytes
                self._coming_bytes += file.size_bytes


def read_object(root: ObjectPath, file: SourceFile) -> bytes:
    """Raises SourceError when it is gone or is not what was listed, and StorageError."""
    path, name = root / file.path.decode(), display_path(file.path)
    try:
        data, said = read_checked(path)
    except FileNotFoundError as error:
        raise SourceError(f"{name}: cannot be read: there is no object {path} any more") from error
    changed = said.get("Last-Modified")
    mtime_s = file.mtime_s if changed is None else int(datetime.fromisoformat(changed.decode()).timestamp())
    if (len(data), mtime_s) != (file.size_bytes, file.mtime_s):
        raise SourceError(
            f"{name}: changed during the run: expected {file.size_bytes} bytes of time {file.mtime_s}, "
            f"found {len(data)} bytes of time {mtime_s}; run again when {root} is at rest"
        )
    return data
