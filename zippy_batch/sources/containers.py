"""Files that hold files: read at any offset, and what is found in them checked as a directory's files are.

A container is opened anew for each read, which costs some 20 microseconds, so that a shard that touches thousands of
them needs no more open files than threads, and a container that was replaced is noticed.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from zippy_batch.archives.schema import MAX_LABEL_BYTES
from zippy_batch.config import INPUTS, ArchiveOptions, check_encoding, check_labels, labels_kind
from zippy_batch.errors import OptionError, SourceError
from zippy_batch.paths import display_path, name_problem
from zippy_batch.sources.directory import MAX_FILE_BYTES, Container, FoundFiles, SourceFile, file_state

_MOST_LINKS = 40
"""Links that may lead to one another, as in Linux."""
_ROOT = re.compile(rb"(?:[A-Za-z][A-Za-z0-9+.-]+:)?/+")
"""The root of a path or a URI: /, file:/, dbfs:/, s3://."""
_LATEST_S = 1 << 38
"""Seconds since or before 1970; times beyond it, which are nonsense, are ones that no file can be given."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source: the fields of config.ArchiveOptions of the same names."""

    input: str = "auto"
    labels: str = "auto"
    leave_out: bool = False
    label_pattern: str | None = None
    image_column: str | None = None
    name_column: str | None = None
    label_column: str | None = None
    encoding: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise OptionError(f"{{input}} must be one of {', '.join(INPUTS)}, not {self.input!r}", "input")
        check_labels(self.labels, self.label_pattern)
        check_encoding(self.encoding)

    @staticmethod
    def of(options: ArchiveOptions) -> Wanted:
        return Wanted(**{one.name: getattr(options, one.name) for one in fields(Wanted)})

    @property
    def labels_kind(self) -> str:
        """One of config.LABELS, or table or pattern."""
        return labels_kind(self.labels, self.label_pattern)


# ---- reading ----


@dataclass(frozen=True)
class Opened:
    """A container, for as long as it is open."""

    container: Container
    descriptor: int

    @property
    def name(self) -> str:
        return display_path(os.fsencode(self.container.path))

    @property
    def size_bytes(self) -> int:
        return self.container.size_bytes

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Exactly so many bytes. Raises SourceError where the container ends before."""
        data = b""
        if 0 <= offset <= offset + size_bytes <= self.size_bytes:
            try:
                data = os.pread(self.descriptor, size_bytes, offset)
                while data and len(data) < size_bytes:
                    more = os.pread(self.descriptor, size_bytes - len(data), offset + len(data))
                    data = data + more if more else b""
            except OSError as error:
                raise SourceError(f"{self.name}: cannot be read at byte {offset}: {error.strerror}") from error
        if len(data) != size_bytes:
            raise self.damaged(offset, f"{size_bytes} bytes are expected there, and it ends at {self.size_bytes}")
        return data

    def damaged(self, offset: int, what: str) -> SourceError:
        return SourceError(
            f"{self.name} is truncated or damaged at byte {offset}: {what}; bring it back from where it is whole"
        )

    def stream(self, most_bytes: int) -> Stream:
        return Stream(self, most_bytes)


class Stream(io.RawIOBase):
    """A container as libraries want files. A header can ask for any number of bytes: more than `most_bytes` in one go
    raise SourceError."""

    def __init__(self, file: Opened, most_bytes: int) -> None:
        self._file, self._most_bytes, self._at = file, most_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size_bytes}[whence]
        if base + offset < 0:
            # as any file does: zipfile looks for what a short file has no room for
            raise OSError(errno.EINVAL, f"it points to byte {base + offset}")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._file.size_bytes - self._at)
        wanted = left if size < 0 else min(size, left)
        if wanted > self._most_bytes or size > self._most_bytes:
            raise self._file.damaged(self._at, f"a header of {max(size, wanted)} bytes")
        data = self._file.read_at(self._at, wanted)
        self._at += wanted
        return data


def container_at(path: Path) -> Container:
    """Raises SourceError."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    state = file_state(status.st_mtime_ns, status.st_ctime_ns)
    return Container(path, status.st_size, status.st_mtime_ns // 10**9, state)


@contextmanager
def opened(container: Container) -> Iterator[Opened]:
    """Raises SourceError where it cannot be opened, or is not what was listed."""
    name = display_path(os.fsencode(container.path))
    try:
        # not to hang where a file was replaced by a pipe
        descriptor = os.open(container.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise SourceError(f"{name}: cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        found = (status.st_size, status.st_mtime_ns // 10**9)
        if found != (container.size_bytes, container.mtime_s) or not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"{name}: changed during the run: expected {container.size_bytes} bytes of time {container.mtime_s}, "
                f"found {found[0]} bytes of time {found[1]}; run again when it is at rest"
            )
        yield Opened(container, descriptor)
    finally:
        os.close(descriptor)


# ---- members ----


class Members:
    """What is found in one container, in the order in which it is found."""

    def __init__(self, number: int, prefix: bytes, labels: str) -> None:
        self.files = FoundFiles()
        self.refused: list[tuple[bytes, str]] = []
        self.notes: list[str] = []
        self._number, self._prefix, self._labels = number, prefix, labels
        self._links: dict[bytes, tuple[bytes, int]] = {}
        self._directories: set[bytes] = set()
        self._same: dict[str, str] = {}

    def add(self, path: bytes, size_bytes: int, mtime_s: int, at: tuple[int, ...], label: str | None = None) -> None:
        """A file; it is refused where a directory's would be. `at` is where a reader of its kind finds it."""
        path = without_dot(path)
        full = self._full(path)
        why = _member_problem(size_bytes, mtime_s) or name_problem(path) or name_problem(full)
        if why:
            self.refuse(path, why)
            return
        if self._labels != "auto":
            label = folder_label(path) if self._labels == "folders" else None
        if label is not None and len(label.encode()) > MAX_LABEL_BYTES:
            self.refuse(path, f"label of {len(label.encode())} bytes")
            return
        # equal labels become one object, however many files have them
        label = None if label is None else self._same.setdefault(label, label)
        self.files.append(SourceFile(full, size_bytes, mtime_s, label, (self._number, *at)))

    def refuse(self, path: bytes, why: str) -> None:
        self.refused.append((self._full(path), why))

    def add_link(self, path: bytes, target: bytes, mtime_s: int) -> None:
        """`target` is relative to the container's root, or absolute."""
        path = without_dot(path)
        if path in self._links:
            self.refuse(path, "there twice, as a link; unpack it, and archive the directory")
        self._links[path] = (target, mtime_s)

    def add_directory(self, path: bytes) -> None:
        self._directories.add(without_dot(path).rstrip(b"/"))

    def follow_links(self) -> None:
        """Links to files become those files, under their own path and time, as in a directory."""
        if not self._links:
            return
        start = len(self._full(b""))
        targets = {path: self._target(path) for path in self._links}
        wanted = set(targets.values())
        regular = {file.path[start:]: file for file in self.files if file.path[start:] in wanted}
        for path, target in targets.items():
            found = regular.get(target)
            if found is None:
                self.refuse(path, "link to something that is no file in it; unpack it, and archive the directory")
            else:
                self.add(path, found.size_bytes, self._links[path][1], found.place[1:])

    def _target(self, path: bytes) -> bytes:
        for _ in range(_MOST_LINKS):
            if path not in self._links:
                break
            path = normal(self._links[path][0])
        return path

    @property
    def empty_directories(self) -> int:
        if not self._directories:
            return 0
        start = len(self._full(b""))
        taken = parents(file.path[start:] for file in self.files) | parents(self._directories)
        return len(self._directories - taken - {b"", b"."})

    def _full(self, path: bytes) -> bytes:
        return self._prefix + b"/" + path if self._prefix else path


PICTURE_NAME = re.compile(rb"\.(?:jpe?g|png|webp|bmp|gif|tiff?|ppm|pgm)$", re.IGNORECASE)


def _member_problem(size_bytes: int, mtime_s: int) -> str | None:
    if size_bytes > MAX_FILE_BYTES:
        return f"{size_bytes} bytes, over the limit of 1 GiB"
    if not -_LATEST_S < mtime_s < _LATEST_S:
        return f"{mtime_s} s since 1970 is no time of a file"
    return None


def with_classes(files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    """Members that have labels are classes of WebDataset: the pictures of their samples get them instead. `files` are
    sorted, so those of a sample, whose paths begin with its key and a dot, follow each other."""
    run: list[SourceFile] = []
    key = b""
    for file in files:
        if not file.path.startswith(key + b"."):
            yield from _labelled_run(run)
            run, key = [], sample_of(file.path)
        run.append(file)
    yield from _labelled_run(run)


def _labelled_run(run: Sequence[SourceFile]) -> Iterator[SourceFile]:
    classes = {sample_of(file.path): file.label for file in run if file.label is not None}
    for file in run:
        label = classes.get(sample_of(file.path)) if PICTURE_NAME.search(file.path) else None
        yield file if file.label == label else replace(file, label=label)


def parents(paths: Iterable[bytes]) -> set[bytes]:
    """All directories that these paths lie in."""
    found: set[bytes] = set()
    for path in paths:
        cut = path.rfind(b"/")
        while cut > 0 and path[:cut] not in found:
            found.add(path[:cut])
            cut = path.rfind(b"/", 0, cut)
    return found


def without_dot(path: bytes) -> bytes:
    """The path as `tar -cf x.tar .` would not have written it."""
    while path.startswith(b"./"):
        path = path[2:].lstrip(b"/")
    return path


def normal(path: bytes) -> bytes:
    """The path without "." and ".." where that is possible; what leads out of the container keeps them."""
    return posixpath.normpath(path)


def without_root(path: bytes) -> bytes:
    """An absolute path, or a URI, as tar would name the member: relative to the root."""
    match = _ROOT.match(path)
    return path[match.end() :] if match else path


def folder_and_name(path: bytes) -> tuple[bytes, bytes]:
    """The folder ends in a slash, or is empty."""
    cut = path.rfind(b"/") + 1
    return path[:cut], path[cut:]


def counted(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def decoded(data: bytes, encoding: str | None) -> str:
    """Decode text in UTF-8, in UTF-16 that says so, or in `encoding`. Raises UnicodeDecodeError."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if encoding is None:
            raise
        return data.decode(encoding)


class UniqueNames:
    """Names for files that a container holds by number: those that they have, unless no directory could hold them, or
    an earlier one has the same."""

    def __init__(self) -> None:
        self.numbered = 0
        """Names that are not as they were given, because they have their number."""
        self._taken: set[bytes] = set()

    def name(self, given: bytes, number: int, suffix: bytes) -> bytes:
        """`given` is empty where there is none; `suffix` is for names that are made up."""
        path = given
        if name_problem(path):
            path = b"%08d.%s" % (number, suffix)
            self.numbered += 1
        elif path in self._taken:
            self.numbered += 1
        while path in self._taken:
            folder, name = folder_and_name(path)
            stem, dot, end = name.rpartition(b".") if b"." in name else (name, b"", b"")
            path = folder + stem + b".%08d" % number + dot + end
        self._taken.add(path)
        return path


def sample_of(path: bytes) -> bytes:
    """WebDataset's key of a file: its path up to the first dot in its name."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.split(b".", 1)[0]


def folder_label(path: bytes) -> str | None:
    """Name of the directory that a file is in; None at the top."""
    folder = path.rpartition(b"/")[0].rpartition(b"/")[2]
    return folder.decode("utf-8", errors="backslashreplace") if folder else None
