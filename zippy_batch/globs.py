"""Which archived paths a glob means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from zippy_batch.errors import UsageError


def compile_glob(pattern: str) -> Callable[[bytes], bool]:
    """See `Archive.select`. Raises UsageError for an empty pattern."""
    if not pattern:
        raise UsageError("the pattern is empty; '*' selects everything")
    names = pattern.strip("/").split("/")
    anchored = len(names) > 1
    parts = ["(?:[^/]+/)*" if name == "**" else _name_expression(name) + "/" for name in names[:-1]]
    last = ".+" if names[-1] == "**" else _name_expression(names[-1])
    expression = re.compile("".join(parts) + last, re.DOTALL)

    def matches(path: bytes) -> bool:
        text = os.fsdecode(path)
        return expression.fullmatch(text if anchored else text.rpartition("/")[2]) is not None

    return matches


def _name_expression(name: str) -> str:
    """Regular expression of a glob over one name."""
    # each piece matches a "/" at most where its name ends, so that the expression stays linear in the path
    pieces = re.findall(r"\*+|\?|\[[!^]?\]?[^\]]*\]|.", name, re.DOTALL)
    return "".join(_piece_expression(piece) for piece in pieces)


def _piece_expression(piece: str) -> str:
    if piece[0] == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if piece[0] == "[" and len(piece) > 2:
        negated = piece[1] in "!^"
        inside = piece[2:-1] if negated else piece[1:-1]
        escaped = inside.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace("^", "\\^")
        escaped = re.sub(r"([&~|])", r"\\\1", escaped)
        return f"(?!/)[{'^' if negated else ''}{escaped}]"
    return re.escape(piece)
