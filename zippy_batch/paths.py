"""Paths of files in a source and in an archive, and what none may be.

Bytes, relative to the directory, with "/" between their parts, as the file system has them.
"""

from __future__ import annotations

import os
import re

from zippy_batch.errors import ArchiveError

MAX_NAME_BYTES = 255
"""Of one part of a path, in Linux: what is longer could not be restored."""

_SHOWN_AS_CODES = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))},
}
"""What moves the cursor or changes a terminal's mind, and what turns the direction of text around."""


def display_path(path: bytes) -> str:
    """The path as text for people, on one line: \\xNN for bytes that are not UTF-8, and for control characters."""
    return path.decode("utf-8", errors="backslashreplace").translate(_SHOWN_AS_CODES)


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether an absolute path is a directory or something in it; neither goes through links."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


_DEVICE = rb"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])"
_DEVICE_NAME = re.compile(_DEVICE + rb"[ .]*", re.IGNORECASE)
_WINDOWS_ONLY = re.compile(_DEVICE + rb"[ ]*\..*|.*[<>:\"|?*\\\x01-\x1f].*|.*[ .]", re.IGNORECASE | re.DOTALL)
"""Names that are ordinary elsewhere, and that Windows cannot hold or takes for a device."""


def path_problem(path: bytes) -> str | None:
    """Why joining this path to a directory might not give a file inside that directory."""
    if not path:
        return "empty path"
    if b"\0" in path:
        return "zero byte in the path"
    if path.startswith((b"/", b"\\")) or re.match(rb"[A-Za-z]:(?:[/\\]|$)", path):
        return "absolute path"
    for part in path.split(b"/"):
        if part in (b"", b"."):
            return "empty or '.' part in the path"
        if b".." in (part, *part.split(b"\\")):
            return "'..' in the path"
        if _DEVICE_NAME.fullmatch(part) or (os.name == "nt" and _WINDOWS_ONLY.fullmatch(part)):
            return f"{display_path(part)!r} is no name for a file on Windows, where it could not be restored"
    return None


def safe_relative_path(path: bytes) -> None:
    """Raise ArchiveError unless joining this path to a directory gives a file inside that directory.

    Refused: the empty path, absolute paths and drive letters, empty, "." and ".." parts, also between backslashes, zero
    bytes, and the bare names of Windows devices (con, nul, com1). On Windows also whatever its file names cannot hold.
    """
    problem = path_problem(path)
    if problem is not None:
        raise ArchiveError(f"{display_path(path)!r}: refused to restore this path: {problem}")
