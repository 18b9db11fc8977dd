"""Which archived paths a glob means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from zippy_batch.errors import UsageError

_ANY_FOLDERS = None
"""Stands for `**`."""


def compile_glob(pattern: str) -> Callable[[bytes], bool]:
    """See `ArchiveReader.select`. Raises UsageError for a pattern that is empty or malformed.

    Matching takes at most (length of the path) x (length of the pattern) steps, whatever is in either.
    """
    if not pattern:
        raise UsageError("the pattern is empty; '*' selects everything")
    names = pattern.removeprefix("./").strip("/").split("/")
    if names[-1] == "**":
        names.append("*")
    try:
        wanted = [_ANY_FOLDERS if name == "**" else re.compile(_expression(name), re.DOTALL) for name in names]
    except re.error as error:
        raise UsageError(f"the pattern {pattern!r} is malformed: {error}") from error
    if "/" not in pattern.rstrip("/"):
        wanted.insert(0, _ANY_FOLDERS)
    return lambda path: _matches(wanted, os.fsdecode(path).split("/"))


def _matches(wanted: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    """Going back to the last `**` only is enough: what an earlier one could skip, the last one can."""
    at = place = 0
    back: tuple[int, int] | None = None
    while place < len(names):
        expression = wanted[at] if at < len(wanted) else None
        if at < len(wanted) and expression is _ANY_FOLDERS:
            back, at = (at + 1, place), at + 1
        elif expression is not None and expression.fullmatch(names[place]):
            at, place = at + 1, place + 1
        elif back is not None:
            back = (back[0], back[1] + 1)
            at, place = back
        else:
            return False
    return all(rest is _ANY_FOLDERS for rest in wanted[at:])


def _expression(name: str) -> str:
    """Regular expression of a glob over one name."""
    pieces = re.findall(r"\*+|\?|\[[!^]?\]?[^\]]*\]|.", name, re.DOTALL)
    fixed = [""]
    for piece in pieces:
        if piece[0] == "*":
            fixed.append("")
        else:
            fixed[-1] += _piece_expression(piece)
    if len(fixed) == 1:
        return fixed[0]
    # atomic groups, as in Python's fnmatch: the first place where a piece fits is as good as any later one
    middle = "".join(f"(?>.*?{piece})" for piece in fixed[1:-1])
    return f"{fixed[0]}{middle}.*{fixed[-1]}"


def _piece_expression(piece: str) -> str:
    if piece == "?":
        return "."
    if piece[0] != "[" or len(piece) < 3:
        return re.escape(piece)
    negated = "^" if piece[1] in "!^" else ""
    inside = piece[2:-1] if negated else piece[1:-1]
    escaped = re.sub(r"[\\\[\]^&~|]", _escaped, inside)
    return f"[{negated}{escaped}]"


def _escaped(found: re.Match[str]) -> str:
    return "\\" + found[0]
