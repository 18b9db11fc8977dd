"""A text file with a path a line: part of a directory, archived as the whole would be.

Paths are relative to the list's own directory, or absolute and below it. UTF-8; empty lines are passed over. A path
that stands there twice is one file.
"""

from __future__ import annotations

import codecs
import os
import posixpath
import stat
from collections.abc import Iterator
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path

from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path, is_below, name_problem
from zippy_batch.sources.containers import counted
from zippy_batch.sources.directory import Files, Listing, SourceFile, file_problem, found_file
from zippy_batch.sources.selection import FileSelection


def find(path: Path, selection: FileSelection) -> tuple[Listing, list[tuple[bytes, str]]]:
    """The files, and the lines that name none, with the reason. Raises UsageError where it is no such list."""
    directory = os.fsencode(path.absolute().parent)
    top = os.path.realpath(directory)
    refused: list[tuple[bytes, str]] = []

    def found() -> Iterator[SourceFile]:
        for number, written in _lines(path):
            name = _relative(written, (directory, top))
            if not selection.takes(name):
                continue
            problem = name_problem(name)
            if problem:
                advice = "paths are relative to the list's directory, or absolute and below it"
                refused.append((written, f"line {number}: {problem}; {advice}"))
                continue
            file = _look(top, name)
            if isinstance(file, SourceFile):
                yield file
            else:
                refused.append((name, f"line {number}: {file}"))

    files = Files(found())
    repeated = sum(one.path == other.path for one, other in pairwise(files))
    if repeated:
        files = Files(next(same) for _, same in groupby(files, key=attrgetter("path")))
    notes = (f"archived once all the same: files of {counted(repeated, 'repeated line')}",) if repeated else ()
    return Listing(files, 0, notes=notes), sorted(refused)


def _relative(written: bytes, directories: tuple[bytes, ...]) -> bytes:
    """The path below the list's directory, which may go by several names; what is not below it stays as it is written.
    ".." is left in: where links are, it is not the directory before it."""
    name = written if b".." in written.split(b"/") else posixpath.normpath(written)
    # normpath leaves two slashes at the beginning
    name = b"/" + name.lstrip(b"/") if name.startswith(b"/") else name
    for directory in directories:
        if is_below(name, directory) and name != directory:
            return name[len(directory.rstrip(b"/")) + 1 :]
    return name


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Those that are not empty, with their numbers. Raises UsageError."""
    shown = display_path(os.fsencode(path))
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line.decode("utf-8")
                name = line.rstrip(b"\r\n")
                if number == 1:
                    name = name.removeprefix(codecs.BOM_UTF8)
                if name.strip():
                    yield number, name
    except OSError as error:
        raise UsageError(f"cannot read the list {shown}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not a list of paths, one a line in UTF-8: line {number}: {error}") from error


def _look(top: bytes, name: bytes) -> SourceFile | str:
    full = os.path.join(top, name)
    try:
        status = os.stat(full)
        is_outside = not is_below(os.path.realpath(full), top)
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISDIR(status.st_mode):
        return "a directory; the list must name its files"
    return file_problem(full, status, is_outside) or found_file(name, status)
