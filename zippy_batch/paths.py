"""Paths of files in a source and in an archive, and what none may be.

Bytes, relative to the directory, with "/" between their parts, as the file system has them.
"""

from __future__ import annotations

import os
import re

from zippy_batch.errors import ArchiveError

MAX_NAME_BYTES = 255
"""Most bytes of one part of a path, in Linux: what is longer could not be restored."""
MAX_PATH_BYTES = 4095
"""Most bytes of a path, in Linux."""

_SHOWN_AS_CODES = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))},
}
"""What moves the cursor or changes a terminal's mind, and what turns the direction of text around."""


def display_path(path: bytes) -> str:
    """The path as text for people, on one line: \\xNN for bytes that are not UTF-8, and for control characters."""
    return path.decode("utf-8", errors="backslashreplace").translate(_SHOWN_AS_CODES)


def decoded_path(path: bytes) -> str:
    """The path as Python's os functions take it: bytes that are not UTF-8 become surrogate escapes."""
    return path.decode("utf-8", errors="surrogateescape")


def encoded_path(path: str) -> bytes:
    """Inverse of `decoded_path`."""
    return path.encode("utf-8", errors="surrogateescape")


_OTHER_KINDS = frozenset(
    f".{kind}"
    for kind in (
        *("tar", "tgz", "gz", "bz2", "xz", "zst", "zip", "7z", "rar", "rec", "idx", "lst", "txt", "csv", "json"),
        *("parquet", "parq", "pq", "arrow", "feather", "safetensors", "jpg", "jpeg", "png", "gif", "webp", "avif"),
    )
)


def is_named_like_a_file(name: str) -> bool:
    """Whether a directory of this name would be taken for a file of another kind, as x.tar would be."""
    return os.path.splitext(name)[1].lower() in _OTHER_KINDS


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether an absolute path is a directory or something in it; neither goes through links."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


_DEVICE = rb"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])"
_WINDOWS_REFUSES = re.compile(
    _DEVICE + rb"[ .]*|" + _DEVICE + rb"[ ]*\..*|.*[<>:\"|?*\\\x01-\x1f].*|.*[ .]", re.IGNORECASE | re.DOTALL
)
"""Names that are ordinary elsewhere, and that Windows cannot hold, takes for a device or reads as several parts."""


def path_problem(path: bytes, on_windows: bool = os.name == "nt") -> str | None:
    """Why joining this path to a directory might not give a file inside that directory."""
    if not path:
        return "empty path"
    if b"\0" in path:
        return "zero byte in the path"
    if path.startswith(b"/"):
        return "absolute path"
    for part in path.split(b"/"):
        if part in (b"", b"."):
            return "empty or '.' part in the path"
        if part == b"..":
            return "'..' in the path"
        if on_windows and _WINDOWS_REFUSES.fullmatch(part):
            return f"{display_path(part)!r} is no name for a file on Windows"
    return None


def name_problem(path: bytes) -> str | None:
    """Why no directory could hold a file of this path."""
    longest = max(map(len, path.split(b"/")))
    if longest > MAX_NAME_BYTES or len(path) > MAX_PATH_BYTES:
        return f"path of {len(path)} bytes with a name of {longest}, and no directory holds it"
    return path_problem(path)


def safe_relative_path(path: bytes) -> None:
    """Raise ArchiveError unless joining this path to a directory gives a file inside that directory.

    Refused: the empty path, absolute paths, empty, "." and ".." parts, and zero bytes. On Windows also whatever its
    file names cannot hold: backslashes and drive letters, and the names of devices (con, nul, com1).
    """
    problem = path_problem(path)
    if problem is not None:
        raise ArchiveError(f"{display_path(path)!r}: refused to restore this path: {problem}")


def shown_path(path: str) -> str:
    """A path of `decoded_path` as text for everybody, with bytes that are not UTF-8 as escapes."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
