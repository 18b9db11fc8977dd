"""A text file with a path a line, relative to its own directory: part of a directory, archived as the whole would be.

UTF-8; empty lines are passed over. A path that stands there twice is one file.
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path, is_below, path_problem
from zippy_batch.sources.containers import without_dot
from zippy_batch.sources.directory import Files, Listing, SourceFile, file_problem


def find(path: Path) -> tuple[Listing, list[tuple[bytes, str]]]:
    """The files, and the lines that name none, with the reason. Raises UsageError where it is no such list."""
    top = os.path.realpath(os.fsencode(path.absolute().parent))
    names: dict[bytes, int] = {}
    refused: list[tuple[bytes, str]] = []
    lines = 0
    for number, line in enumerate(_lines(path), 1):
        name = without_dot(line.rstrip(b"\r\n"))
        if not name.strip():
            continue
        problem = path_problem(name)
        if problem:
            refused.append((name, f"line {number}: {problem}; paths are relative to the list's directory"))
        else:
            names.setdefault(name, number)
            lines += 1
    files = []
    for name, number in names.items():
        found = _look(top, name)
        if isinstance(found, str):
            refused.append((name, f"line {number}: {found}"))
        else:
            files.append(found)
    repeated = lines - len(names)
    notes = (f"{repeated} lines name a file again, which is archived once",) if repeated else ()
    return Listing(Files(files), 0, notes=notes), sorted(refused)


def _lines(path: Path) -> list[bytes]:
    shown = display_path(os.fsencode(path))
    try:
        data = path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the list {shown}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not a list of paths, one a line in UTF-8: {error}") from error
    return data.removeprefix(codecs.BOM_UTF8).split(b"\n")


def _look(top: bytes, name: bytes) -> SourceFile | str:
    full = os.path.join(top, name)
    try:
        status = os.stat(full)
        is_outside = not is_below(os.path.realpath(full), top)
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISDIR(status.st_mode):
        return "a directory; the list must name its files"
    return file_problem(full, status, is_outside) or SourceFile(name, status.st_size, status.st_mtime_ns // 10**9)
