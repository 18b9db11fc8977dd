"""Labels that a source itself does not have: from a table beside it, or from the names of its files.

    FILE      -> label_from_table      a line for each picture, with its path and what it shows
    pattern   -> label_by_pattern      what the groups of a regular expression find in a name

A table is text with commas, tabs, semicolons or blanks between its columns, with or without a header: CelebA's
identity_CelebA.txt and list_attr_celeba.txt, which begins with a count, their forms in CSV, Hugging Face's
metadata.csv. One value becomes the label as it stands; several become a JSON object with the names of their columns, or
a JSON list where they have none.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zippy_batch.archives.schema import MAX_LABEL_BYTES
from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path
from zippy_batch.sources.containers import PICTURE_NAME, Wanted, counted, decoded, folder_and_name, without_dot
from zippy_batch.sources.directory import Files, Listing, SourceFile

_PATH_COLUMNS = ("path", "file_name", "filename", "file", "image_path", "image", "image_id", "img", "name", "key", "id")
"""Names of the column that says which picture a line is about; it is the first one where none is there."""
_LABEL_COLUMNS = ("label", "class", "identity", "identity_id", "target")
"""Names of the column that is the label where a table has several others."""
_DELIMITERS = "\t,;"
_SUFFIX = re.compile(rb"\.[A-Za-z0-9]{2,5}$")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")

Labels = Mapping[bytes, str]
"""Path, as a table has it -> label."""


def label_from_table(listing: Listing, wanted: Wanted) -> Listing:
    """Raises UsageError for a file that is no such table, says two things about one picture, or names no picture of the
    listing."""
    table = _Table.read(Path(wanted.labels), wanted)
    labels, note = table.labels(listing, wanted)
    example = _example(labels, listing)
    for other in (_with_slashes, _by_stem):
        if not any(_keys_found(labels, file.path) for file in listing.files):
            labels = other(labels)
    notes = [*listing.notes, *note]
    named: Counter[bytes] = Counter()
    unlabelled = 0

    def files() -> Iterator[SourceFile]:
        nonlocal unlabelled
        for file in listing.files:
            found = _keys_found(labels, file.path)
            unlabelled += not found and PICTURE_NAME.search(file.path) is not None
            named.update(found[:1])
            yield replace(file, label=labels[found[0]] or None if found else None)

    labelled = Files(files())
    if not named:
        raise UsageError(f"no line of {table.name} names a file of the source{example}")
    several = [key for key, count in named.items() if count > 1]
    if several:
        example = display_path(several[0])
        notes.append(f"one label for several files: {counted(len(several), 'line')} of {table.name}, such as {example}")
    if unlabelled:
        notes.append(f"without a line in {table.name}, and without a label: {counted(unlabelled, 'picture')}")
    if len(named) < len(labels):
        notes.append(f"without a file of the source: {counted(len(labels) - len(named), 'line')} of {table.name}")
    return replace(listing, files=labelled, notes=tuple(notes))


def label_by_pattern(listing: Listing, wanted: Wanted) -> Listing:
    """The pattern is searched for in names, or in whole paths where it has a slash. Raises UsageError where it fits
    none."""
    assert wanted.label_pattern is not None
    pattern = re.compile(wanted.label_pattern)
    in_path = "/" in wanted.label_pattern
    fitting = others = 0

    def files() -> Iterator[SourceFile]:
        nonlocal fitting, others
        for file in listing.files:
            text = (file.path if in_path else folder_and_name(file.path)[1]).decode("utf-8", "backslashreplace")
            match = pattern.search(text)
            fitting += match is not None
            others += match is None and PICTURE_NAME.search(file.path) is not None
            yield replace(file, label=None if match is None else _label_of_groups(match))

    labelled = Files(files())
    if not fitting:
        first = display_path(next(iter(listing.files)).path) if listing.files else "nothing"
        raise UsageError(f"--label-pattern {wanted.label_pattern!r} fits no name of the source, whose first is {first}")
    notes = (f"without a label, because --label-pattern does not fit: {counted(others, 'picture')}",) if others else ()
    return replace(listing, files=labelled, notes=(*listing.notes, *notes))


def _label_of_groups(match: re.Match[str]) -> str | None:
    """The group called label, or the only one; else all of them."""
    named = match.groupdict()
    if "label" in named:
        return named["label"]
    if len(match.groups()) == 1:
        return match[1]
    values = [_json_value(text) for text in match.groups()]
    return json.dumps(dict(zip(named, values, strict=True)) if len(named) == len(values) else values)


# ---- tables ----


@dataclass(frozen=True)
class _Table:
    name: str
    rows: Sequence[tuple[int, Sequence[str]]]
    """Number of the line, and its cells."""

    @staticmethod
    def read(path: Path, wanted: Wanted) -> _Table:
        """Raises UsageError."""
        name = display_path(os.fsencode(path))
        try:
            text = decoded(path.read_bytes(), wanted.encoding)
        except OSError as error:
            raise UsageError(f"cannot read the labels {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{name} is not UTF-8 text ({error}); say what it is with --encoding") from error
        # str.splitlines would end a line at characters that labels may have
        lines = list(io.StringIO(text, newline=""))
        rows = [(number, cells) for number, cells in _cells(name, lines) if any(cells)]
        if len(rows) > 1 and len(rows[0][1]) == 1 and rows[0][1][0].isdecimal():
            del rows[0]
        return _Table(name, rows)

    def labels(self, listing: Listing, wanted: Wanted) -> tuple[Labels, list[str]]:
        """Labels by path, and what a person should know. Raises UsageError."""
        header, rows = self._header(listing)
        width = max((len(cells) for _, cells in rows), default=0)
        if header and len(header) == width - 1:
            header = ["", *header]
        path = self._column(header, wanted.name_column, _PATH_COLUMNS)
        if path is None:
            path = 0 if header else self._first_picture()
        others = [i for i in range(width) if i != path]
        chosen = self._column(header, wanted.label_column, _LABEL_COLUMNS) if len(others) > 1 else None
        taken = others if chosen is None else [chosen]
        left_out = [header[i] for i in others if i not in taken]
        note = [f"columns of {self.name} that are left out: {', '.join(left_out)}"] if left_out else []
        labels: dict[bytes, str] = {}
        for number, cells in rows:
            if len(cells) < 2 or len(cells) <= path:
                raise UsageError(f"{self.name}, line {number}: expected the path of a picture and its label")
            key = without_dot(cells[path].encode())
            label = self._label(number, header, cells, taken)
            if labels.setdefault(key, label) != label:
                raise UsageError(f"{self.name}, line {number}: {display_path(key)} has another label before")
        return labels, note

    def _header(self, listing: Listing) -> tuple[list[str], Sequence[tuple[int, Sequence[str]]]]:
        """Names of the columns, none where the table has no header, and the lines that follow."""
        if not self.rows:
            raise UsageError(f"{self.name} is empty: expected a line for each picture, with its path and its label")
        first = [cell.encode() for cell in self.rows[0][1]]
        if any(_SUFFIX.search(cell) for cell in first) or any(
            _keys_found(dict.fromkeys(first[:1], ""), file.path) for file in listing.files
        ):
            return [], self.rows
        return [cell.strip() for cell in self.rows[0][1]], self.rows[1:]

    def _first_picture(self) -> int:
        """The column of a table without a header that has names of pictures; else the first."""
        cells = self.rows[0][1]
        return next((i for i, cell in enumerate(cells) if PICTURE_NAME.search(cell.encode())), 0)

    def _column(self, header: Sequence[str], asked: str | None, known: Sequence[str]) -> int | None:
        if asked is not None and asked in header:
            return header.index(asked)
        if asked is not None:
            there = ", ".join(header) if header else "no header"
            raise UsageError(f"{self.name} has no column {asked!r}; it has {there}")
        lower = [name.lower() for name in header]
        return next((lower.index(name) for name in known if name in lower), None)

    def _label(self, number: int, header: Sequence[str], cells: Sequence[str], taken: Sequence[int]) -> str:
        values = [cells[i].strip() if i < len(cells) else "" for i in taken]
        if len(values) == 1:
            label = values[0]
        elif header:
            label = json.dumps({header[i]: _json_value(v) for i, v in zip(taken, values, strict=True)})
        else:
            label = json.dumps([_json_value(value) for value in values])
        if len(label.encode()) > MAX_LABEL_BYTES:
            raise UsageError(f"{self.name}, line {number}: a label of {len(label.encode())} bytes")
        return label


def _cells(name: str, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Cells, divided by tabs, commas or semicolons where there are any, else by blanks."""
    delimiter = _delimiter(lines)
    if delimiter is not None:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise UsageError(f"{name}, line {reader.line_num}: {error}") from error
        return
    split = [line.split() for line in lines]
    has_blanks_in_names = any(PICTURE_NAME.search(word.encode()) for words in split for word in words[1:])
    for number, (line, words) in enumerate(zip(lines, split, strict=True), 1):
        yield number, line.strip().rsplit(None, 1) if has_blanks_in_names else words


def _delimiter(lines: Sequence[str]) -> str | None:
    """The first of tab, comma and semicolon that the third line has, as those before may be a count and a header. One
    that the first lines have equally often goes first: in a table with semicolons, 1,5 may be a number."""
    if not lines:
        return None
    start = [line for line in lines[:3] if any(one in line for one in _DELIMITERS)]
    there = [one for one in _DELIMITERS if one in lines[min(2, len(lines) - 1)]]
    even = [one for one in there if len({line.count(one) for line in start}) == 1]
    return next(iter((*even, *there)), None)


def _json_value(text: str | None) -> str | int | None:
    return int(text) if text is not None and _INTEGER.fullmatch(text) else text


# ---- which line is about a file ----


def _keys_found(labels: Labels, path: bytes) -> list[bytes]:
    """What a table may call the file, the fullest name first."""
    name = folder_and_name(path)[1]
    return [key for key in (path, name, _SUFFIX.sub(b"", path), _SUFFIX.sub(b"", name)) if key in labels]


def _with_slashes(labels: Labels) -> Labels:
    """Labels for tables that were written on Windows."""
    return {key.replace(b"\\", b"/"): label for key, label in labels.items()}


def _by_stem(labels: Labels) -> Labels:
    """Labels for tables of another directory, or of files in another format: by name, without folders and suffixes;
    names that have several labels are left out."""
    found: dict[bytes, str] = {}
    several: set[bytes] = set()
    for key, label in labels.items():
        stem = _SUFFIX.sub(b"", folder_and_name(key)[1])
        if found.setdefault(stem, label) != label:
            several.add(stem)
    return {stem: label for stem, label in found.items() if stem not in several}


def _example(labels: Labels, listing: Listing) -> str:
    if not labels:
        return ": it has a header and nothing else"
    there = next((file.path for file in listing.files), b"")
    return f"; its first line is about {display_path(next(iter(labels)))}, the first file is {display_path(there)}"
