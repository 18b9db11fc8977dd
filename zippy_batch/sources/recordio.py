"""Records of an MXNet .rec file, such as those of face recognition's training sets, without MXNet.

    record      one or more parts
    part        magic (4 bytes), flag << 29 | length (4), so many bytes, zeros to a multiple of 4
    flag        0 the whole record; 1 its first part, 2 one between, 3 its last: the magic is missing between them
    content     flag n, label, id, id2 (4 bytes, a float of 4, 8, 8); n floats, the label where n > 0; the image

All are little-endian (dmlc-core, doc/recordio; mxnet.recordio.IRHeader).

    NAME.idx    lines of a key, a tab and the offset of its record: the key names the file, as 00000012.jpg
    NAME.lst    lines of a key, numbers and a path, with tabs between (tools/im2rec.py): the path names the file, the
                numbers are its label

Both may be missing. Without an .idx a record's key in the .lst is its id; without a .lst too, records are counted from
0, as MXNet's tools number them. An .idx also tells that the .rec is not whole, or another one.
"""

from __future__ import annotations

import codecs
import math
import os
import re
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zippy_batch.errors import SourceError
from zippy_batch.images.probe import sniff_format
from zippy_batch.paths import display_path
from zippy_batch.sources.containers import (
    Members,
    Opened,
    UniqueNames,
    Wanted,
    counted,
    opened,
    without_dot,
    without_root,
)
from zippy_batch.sources.directory import MAX_FILE_BYTES, Container, SourceFile

_MAGIC = b"\x0a\x23\xd7\xce"
_PART = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_MOST_LABELS = 2048
"""Numbers of a label; more are refused."""
_SNIFFED_BYTES = 16
_MOST_PARTS = 1 << 16
_MAX_LINE_BYTES = 128
"""Most bytes of a line of an .idx."""
_MAX_LIST_LINE_BYTES = 1 << 16
"""Most bytes of a line of a .lst."""
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_MOST_DIGITS = 19
"""Digits of a number that fits into 8 bytes."""

Part = tuple[int, int]
"""Offset and length."""


def find(file: Opened, members: Members, wanted: Wanted) -> None:
    """Raises SourceError for a file that is truncated or damaged, or not the one of its .idx or .lst."""
    index = _Index.beside(file)
    with _List.beside(file) as listed:
        records = _Records(file, members, index, listed)
        known = at = 0
        while at < file.size_bytes:
            parts, end = _parts_at(file, at)
            while known < len(index.offsets) and index.offsets[known] == at:
                known += 1
            if known < len(index.offsets) and index.offsets[known] < end:
                break
            records.take(parts, at)
            at = end
        if known < len(index.offsets):
            raise file.damaged(index.offsets[known], "its .idx says that a record begins there, and none does")
        records.tell()


def read(containers: Sequence[Container], file: SourceFile) -> bytes:
    """Raises SourceError."""
    number, offset, skipped = file.place
    with opened(containers[number]) as records:
        parts, _ = _parts_at(records, offset)
        data = _joined(records, parts, skipped + MAX_FILE_BYTES)[skipped:]
    if len(data) != file.size_bytes:
        raise records.damaged(offset, f"{display_path(file.path)} has {len(data)} bytes and not {file.size_bytes}")
    return data


class _Records:
    """The records of one file, as they come."""

    def __init__(self, file: Opened, members: Members, index: _Index, listed: _List) -> None:
        self._file, self._members, self._index, self._listed = file, members, index, listed
        self._number = 0
        self._names = UniqueNames()
        self._empty = self._unknown = self._found = 0

    def take(self, parts: Sequence[Part], at: int) -> None:
        """Note the image of a record."""
        number = self._number
        self._number += 1
        size_bytes = sum(length for _, length in parts) + len(_MAGIC) * (len(parts) - 1)
        name = b"%08d" % number
        if size_bytes < _HEADER.size:
            why = f"the record at byte {at} has {size_bytes} bytes, too few for the header of an image"
            self._members.refuse(name, why)
            return
        start = _joined(self._file, parts, _HEADER.size + _SNIFFED_BYTES)
        flag, number_label, id, _ = _HEADER.unpack_from(start)
        skipped = _HEADER.size + 4 * flag
        if skipped > size_bytes or (flag > _MOST_LABELS and skipped < size_bytes):
            self._members.refuse(name, f"the record at byte {at} of {size_bytes} bytes has a label of {flag} numbers")
            return
        if skipped == size_bytes:
            self._empty += 1
            return
        if flag:
            start = _joined(self._file, parts, skipped + _SNIFFED_BYTES)
        values = np.frombuffer(start, "<f4", flag, _HEADER.size) if flag else (number_label,)
        path, label = self._name_and_label(number, at, id, suffix_of(start[skipped:]))
        mtime_s = self._file.container.mtime_s
        self._members.add(path, size_bytes - skipped, mtime_s, (at, skipped), label or _label(values))

    def tell(self) -> None:
        """What a person should know."""
        name, notes = self._file.name, self._members.notes
        if self._empty:
            notes.append(
                f"left out: {counted(self._empty, 'record')} of {name} without an image, as lists of identities"
            )
        if self._unknown:
            notes.append(f"named by number: {counted(self._unknown, 'record')} of {name} without a key in its .idx")
        if self._names.numbered:
            notes.append(
                f"named by key: {counted(self._names.numbered, 'record')} of {name} with a path in its .lst that no "
                f"file can have, or that an earlier one has"
            )
        if len(self._listed) > self._found:
            lines = counted(len(self._listed) - self._found, "line")
            notes.append(f"without an image of {name}: {lines} of its .lst")

    def _name_and_label(self, number: int, at: int, id: int, suffix: bytes) -> tuple[bytes, str | None]:
        """The label is None where the .lst has none."""
        key = self._index.key_at(at)
        if key is None and self._index.offsets:
            self._unknown += 1
            return b"record-%08d." % number + suffix, None
        line = self._listed.line(key if key is not None else b"%d" % id)
        if key is None:
            key = b"%d" % number
        name = (b"%08d" % int(key) if key.isdigit() else key) + b"." + suffix
        if line is None:
            # a path of the .lst may be the same
            return self._names.name(name, number, suffix) if len(self._listed) else name, None
        self._found += 1
        given = without_dot(without_root(line[0]))
        return self._names.name(given, int(key) if key.isdigit() else number, suffix), line[1]


def suffix_of(start: bytes) -> bytes:
    """Suffix for the name of a file that begins with these bytes."""
    format = sniff_format(start)
    return {None: b"bin", "jpeg": b"jpg"}.get(format) or str(format).encode()


def _label(values: Sequence[float] | np.ndarray) -> str:
    """One number as itself, several as a JSON list; the shortest digits that give the same float32 again."""
    return _as_label([_digits(value) for value in values])


def _as_label(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _written_digits(word: bytes) -> str:
    """The number of a .lst, which is text: a person's number above 2^24 has digits that no float32 holds."""
    text = word.decode().strip()
    return str(int(text)) if _INTEGER.fullmatch(text) else np.format_float_positional(float(text), trim="-")


def _digits(value: float) -> str:
    # most labels are the number of a person, and NumPy takes its time
    if value == int(value) if abs(value) < 1 << 24 else False:
        return str(int(value))
    return np.format_float_positional(np.float32(value), trim="-")


def _parts_at(file: Opened, at: int) -> tuple[list[Part], int]:
    """The parts of the record at this offset, and where the next one is. Raises SourceError."""
    parts: list[Part] = []
    start = at
    while True:
        magic, word = _PART.unpack(file.read_at(at, _PART.size))
        flag, length = word >> 29, word & 0x1FFFFFFF
        follows = flag in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST))
        if magic != _MAGIC or not follows or len(parts) == _MOST_PARTS:
            raise file.damaged(at, "no record, or no part of one, begins there")
        if at + _PART.size + length > file.size_bytes:
            raise file.damaged(at, f"a record of {length} bytes begins there, and the file ends before it")
        parts.append((at + _PART.size, length))
        at += _PART.size + length + -length % 4
        if flag in (_WHOLE, _LAST):
            if at > file.size_bytes:
                raise file.damaged(start, "the zeros after the last record are missing")
            return parts, at


def _joined(file: Opened, parts: Sequence[Part], most_bytes: int) -> bytes:
    """The first bytes of a record, with the magic that stands between its parts."""
    out = bytearray()
    for i, (offset, length) in enumerate(parts):
        if i:
            out += _MAGIC
        if len(out) >= most_bytes:
            break
        out += file.read_at(offset, min(length, most_bytes - len(out)))
    return bytes(out[:most_bytes])


# ---- what lies beside ----


@dataclass(frozen=True)
class _Index:
    """Keys of an .idx, by offset; empty where there is none."""

    offsets: Sequence[int]
    keys: Sequence[int]
    others: Mapping[int, bytes]
    """Keys that are no integers, by offset."""

    @staticmethod
    def beside(file: Opened) -> _Index:
        """Raises SourceError."""
        path = file.container.path.with_suffix(".idx")
        offsets, keys, others = array("Q"), array("Q"), {}
        for number, words in _lines(path):
            if len(words) != 2 or not _is_key(words[1]):
                raise _unlike(path, number, "a key and an offset")
            is_integer = _is_key(words[0])
            offsets.append(int(words[1]))
            keys.append(int(words[0]) if is_integer else 0)
            if not is_integer:
                others[int(words[1])] = words[0]
        order = np.argsort(np.frombuffer(offsets, np.uint64), kind="stable") if offsets else ()
        return _Index(array("Q", (offsets[i] for i in order)), array("Q", (keys[i] for i in order)), others)

    def key_at(self, offset: int) -> bytes | None:
        place = bisect_left(self.offsets, offset)
        if place == len(self.offsets) or self.offsets[place] != offset:
            return None
        return self.others.get(offset, b"%d" % self.keys[place])


class _List:
    """Path and label of a .lst, by key; nothing where there is none. Lines stay in the file until they are wanted, for
    there are as many as images."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys, self._starts = array("Q"), array("Q")
        self._file: BinaryIO | None = None

    @staticmethod
    @contextmanager
    def beside(file: Opened) -> Iterator[_List]:
        """Raises SourceError."""
        found = _List(file.container.path.with_suffix(".lst"))
        with ExitStack() as stack:
            try:
                found._read(stack.enter_context(open(found._path, "rb")))
            except FileNotFoundError:
                pass
            except SourceError:
                raise
            except OSError as error:
                raise SourceError(f"{_shown(found._path)}: cannot be read: {error.strerror}") from error
            yield found

    def __len__(self) -> int:
        return len(self._keys)

    def line(self, key: bytes) -> tuple[bytes, str] | None:
        if self._file is None or not _is_key(key):
            return None
        place = bisect_left(self._keys, int(key))
        if place == len(self._keys) or self._keys[place] != int(key):
            return None
        self._file.seek(self._starts[place])
        words = self._file.readline().rstrip(b"\r\n").split(b"\t")
        return words[-1], _as_label([_written_digits(word) for word in words[1:-1]])

    def _read(self, lines: BinaryIO) -> None:
        start = len(codecs.BOM_UTF8) if lines.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        self._file = lines
        lines.seek(start)
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_LIST_LINE_BYTES), b""), 1):
            if line.strip():
                words = line.rstrip(b"\r\n").split(b"\t")
                if len(words) < 3 or not _is_key(words[0]) or not all(map(_is_number, words[1:-1])):
                    raise _unlike(self._path, number, "a key, numbers and a path, with tabs between them")
                self._keys.append(int(words[0]))
                self._starts.append(start)
            start += len(line)
        if self._keys:
            order = np.argsort(np.frombuffer(self._keys, np.uint64), kind="stable")
            self._keys = array("Q", (self._keys[i] for i in order))
            self._starts = array("Q", (self._starts[i] for i in order))


def _lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Words of each line that has any, and its number; none where there is no such file. Raises SourceError."""
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE_BYTES), b""), 1):
                if words := (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).split():
                    yield number, words
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SourceError(f"{_shown(path)}: cannot be read: {error.strerror}") from error


def _is_key(word: bytes) -> bool:
    """Whether it is a number that fits into 8 bytes."""
    return word.isdigit() and len(word) <= _MOST_DIGITS


def _is_number(word: bytes) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _unlike(path: Path, number: int, expected: str) -> SourceError:
    return SourceError(
        f"{_shown(path)}, line {number}: expected {expected}; take the file away if it does not belong to the .rec"
    )


def _shown(path: Path) -> str:
    return display_path(os.fsencode(path))
