"""Which files of a source are archived: --include, --exclude and the lines of --exclude-from.

Patterns are globs as those of `restore --select` (`archives.globs`): one without a slash fits a name at any depth, `**`
stands for any folders. A pattern that fits a folder fits all that is in it. A file is taken where any --include fits
it, or there is none, and no --exclude does.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from zippy_batch.archives.globs import compile_glob
from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path

_LEFT_BY_SYSTEMS = frozenset((b".DS_Store", b"Thumbs.db", b"desktop.ini", b"ehthumbs.db", b".directory"))
_LEFT_BY_MACOS = b"__MACOSX"
_APPLE_DOUBLE = b"._"


class FileSelection:
    """Counts what it leaves out."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Raises UsageError for a pattern that is empty or malformed."""
        self._include, self._exclude = _any_of(include), _any_of(exclude)
        self.left_out = 0
        """Files, and folders with all that is in them."""

    def takes(self, path: bytes) -> bool:
        taken = not self._is_excluded(path) and (self._include is None or self._include(path))
        self.left_out += not taken
        return taken

    def enters(self, folder: bytes) -> bool:
        """Whether to look into a folder, none of whose parents is excluded."""
        enters = self._exclude is None or not self._exclude(folder)
        self.left_out += not enters
        return enters

    def _is_excluded(self, path: bytes) -> bool:
        return self._exclude is not None and self._exclude(path)

    def notes(self) -> list[str]:
        """What a person should know."""
        if not self.left_out:
            return []
        return [f"left out by --include and --exclude, where a folder counts once: {self.left_out}"]


def patterns_in(path: Path) -> tuple[str, ...]:
    """Patterns of a file, one a line, in UTF-8; empty lines, and those that begin with #, are passed over.

    Raises UsageError.
    """
    shown = display_path(os.fsencode(path))
    try:
        # str.splitlines would end a line at characters that names may have
        lines = list(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=None))
    except OSError as error:
        raise UsageError(f"cannot read the patterns {shown}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is no list of patterns, one a line in UTF-8: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        pattern = line.rstrip()
        if pattern.startswith("!"):
            raise UsageError(f"{shown}, line {number}: {pattern!r} would take files in again, which no pattern does")
        if pattern and not pattern.startswith("#"):
            found.append(pattern)
    return tuple(found)


def left_by_systems(paths: Iterable[bytes]) -> list[str]:
    """A note that names what a system has put beside the pictures, where there is any."""
    counts: dict[str, int] = {}
    for path in paths:
        name = path[path.rfind(b"/") + 1 :]
        if path.startswith(_LEFT_BY_MACOS + b"/") or b"/" + _LEFT_BY_MACOS + b"/" in path:
            kind = _LEFT_BY_MACOS
        elif name in _LEFT_BY_SYSTEMS:
            kind = name
        elif name.startswith(_APPLE_DOUBLE):
            kind = _APPLE_DOUBLE + b"*"
        else:
            continue
        counts[kind.decode()] = counts.get(kind.decode(), 0) + 1
    if not counts:
        return []
    named = ", ".join(f"{count} of {kind}" for kind, count in sorted(counts.items()))
    return [f"files that systems leave beside others are archived, too: {named}; --exclude leaves them out"]


def _any_of(patterns: Sequence[str]) -> Callable[[bytes], bool] | None:
    """Whether any pattern fits a path or a folder that it is in; None where there is none."""
    if not patterns:
        return None
    fitting = [compile_glob(pattern) for pattern in patterns]
    return lambda path: any(fits(one) for one in _with_folders(path) for fits in fitting)


def _with_folders(path: bytes) -> Iterator[bytes]:
    yield path
    cut = path.rfind(b"/")
    while cut > 0:
        yield path[:cut]
        cut = path.rfind(b"/", 0, cut)
