"""The paths of an archive and what it says of each: filtered, sorted, as lines or as JSON. No image is read."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zippy_batch.archives.reader import listed
from zippy_batch.archives.where import TYPES
from zippy_batch.dataset import Archive, ArchivedFile
from zippy_batch.errors import UsageError, ZippyError
from zippy_batch.paths import display_path, encoded_path
from zippy_batch.views.markup import plain_text

LISTED = ("source_bytes", "width", "height", "codec", "psnr", "ssim", "label", "raw_reason")
"""Columns of a long list, besides the path."""
_NEAR = 2000
"""Paths before and after an unknown one, in their order, of which the nearest are looked for."""


@dataclass(frozen=True)
class Choice:
    """A choice of rows, and their order."""

    where: str | None = None
    select: Sequence[str] = ()
    """Globs: those that any matches."""
    sort: str | None = None
    """A column, from small to large, or from large to small with a minus before it."""
    limit: int | None = None
    among: Sequence[int] | None = None
    """Numbers of rows that another choice has left; all of them where it is None."""


def chosen(archive: Archive, choice: Choice) -> list[int]:
    """Numbers of the rows chosen, in the order wanted. Raises UsageError."""
    if choice.limit is not None and choice.limit < 0:
        raise UsageError(f"--limit is 0 or more, not {choice.limit}")
    if choice.select:
        wanted = {number for glob in choice.select for number in archive.rows(choice.where, glob).numbers}
        numbers: Sequence[int] = sorted(wanted)
    else:
        numbers = archive.rows(choice.where).numbers if choice.among is None else choice.among
    if choice.sort is not None:
        numbers = _sorted(archive, numbers, choice.sort)
    return list(numbers[: choice.limit])


def _sorted(archive: Archive, numbers: Sequence[int], by: str) -> list[int]:
    name = by.removeprefix("-")
    if name not in TYPES:
        raise UsageError(f"there is no column {name!r} to sort by; there are {', '.join(TYPES)}")
    rows = archive.rows()
    column = rows.paths if name == "path" else rows.column(name)
    known = [number for number in numbers if column[number] is not None]
    known.sort(key=lambda number: column[number], reverse=by.startswith("-"))
    return known + [number for number in numbers if column[number] is None]


def table(archive: Archive, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Path and LISTED of each row, as JSON has them."""
    rows = archive.rows()
    columns = {"path": rows.paths} | {name: rows.column(name) for name in LISTED}
    return [{name: column[number] for name, column in columns.items()} for number in numbers]


def short_lines(archive: Archive, numbers: Sequence[int]) -> list[str]:
    paths = archive.rows().paths
    return [display_path(encoded_path(paths[number])) for number in numbers]


def long_lines(archive: Archive, numbers: Sequence[int]) -> list[str]:
    """Bytes, width x height, codec, PSNR, label and path, in columns."""
    cells = [
        (
            "-" if row["source_bytes"] is None else str(row["source_bytes"]),
            f"{row['width']}x{row['height']}" if row["width"] else "-",
            row["codec"] or "-",
            "-" if row["psnr"] is None else f"{row['psnr']:.1f} dB",
            "-" if row["label"] is None else display_path(row["label"].encode("utf-8", "surrogateescape")),
            display_path(encoded_path(row["path"])),
        )
        for row in table(archive, numbers)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        f"{size:>{widths[0]}}  {pixels:>{widths[1]}}  {codec:<{widths[2]}}  {psnr:>{widths[3]}}  "
        f"{label:<{widths[4]}}  {path}"
        for size, pixels, codec, psnr, label, path in cells
    ]


def file_of(archive: Archive, path: str) -> ArchivedFile:
    """The file of a path, as it is or as `ls` writes it. Raises UsageError, which names paths that are near."""
    try:
        return archive[path]
    except KeyError:
        pass
    paths = archive.paths
    shown = [number for number, one in enumerate(paths) if display_path(encoded_path(one)) == path]
    if len(shown) == 1:
        return archive[shown[0]]
    near = [display_path(encoded_path(one)) for one in _near(paths, path)]
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; zippy-batch ls {archive.path} lists what there is"
    raise UsageError(f"there is no file {display_path(encoded_path(path))} in {archive.path}{hint}")


def damage_text(name: str, view: str, damage: Sequence[str]) -> str:
    """One line about an archive of which a view shows what is left."""
    return f"{name} is damaged, and the {view} shows what can be read: {listed(damage)}"


def partial_text(damage: Sequence[str]) -> str:
    """One line about a file that was written without what is lost of it."""
    return f"the file was written as far as it can be had back: {listed(damage)}"


def files_or_damage(archive: Archive, numbers: Sequence[int]) -> list[bytes | str]:
    """Bytes of each file, decoded together; text says what is wrong with one that cannot be had back."""
    try:
        return [*archive[numbers].files()]
    except ZippyError:
        return [_file_or_damage(archive, number) for number in numbers]


def _file_or_damage(archive: Archive, number: int) -> bytes | str:
    try:
        return archive[number].bytes()
    except ZippyError as error:
        return plain_text(str(error))


def _near(paths: Sequence[str], path: str) -> list[str]:
    """Paths that end alike, else some that are written much alike."""
    name = path.rsplit("/", 1)[-1]
    same = [one for one in paths if one.rsplit("/", 1)[-1] == name]
    if same:
        return same[:3]
    ordered = sorted(paths)
    at = bisect_left(ordered, path)
    return difflib.get_close_matches(path, ordered[max(0, at - _NEAR) : at + _NEAR], 3)
