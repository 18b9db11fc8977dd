"""Records of an MXNet .rec file, such as those of face recognition's training sets, without MXNet.

    record      one or more parts
    part        magic (4 bytes), flag << 29 | length (4), so many bytes, zeros to a multiple of 4
    flag        0 the whole record; 1 its first part, 2 one between, 3 its last: the magic is missing between them
    content     flag n, label, id, id2 (4 bytes, a float of 4, 8, 8); n floats, the label where n > 0; the image

All are little-endian (dmlc-core, doc/recordio; mxnet.recordio.IRHeader). A file is named by the number of its record,
counted from 0 in the order of the .rec, which is its key in the .idx as MXNet's tools write it. An .idx beside the file
is used to notice that the .rec is not whole, or another one.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence

import numpy as np

from zippy_batch.errors import SourceError
from zippy_batch.images.probe import sniff_format
from zippy_batch.paths import display_path
from zippy_batch.sources.containers import Members, Opened, Wanted, opened
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
"""Of an .idx."""

Part = tuple[int, int]
"""Offset and length."""


def find(file: Opened, members: Members, wanted: Wanted) -> None:
    """Raises SourceError for a file that is truncated or damaged, or not the one of its .idx."""
    indexed = _read_index(file)
    empty = number = known = at = 0
    while at < file.size_bytes:
        parts, end = _parts_at(file, at)
        while known < len(indexed) and indexed[known] == at:
            known += 1
        if known < len(indexed) and indexed[known] < end:
            break
        empty += _take(file, parts, at, number, members)
        at, number = end, number + 1
    if known < len(indexed):
        raise file.damaged(indexed[known], "its .idx says that a record begins there, and none does")
    if empty:
        members.notes.append(
            f"{empty} records of {file.name} hold no image, as those that list identities; they are left out"
        )


def read(containers: Sequence[Container], file: SourceFile) -> bytes:
    """Raises SourceError."""
    number, offset, skipped = file.place
    with opened(containers[number]) as records:
        parts, _ = _parts_at(records, offset)
        data = _joined(records, parts, skipped + MAX_FILE_BYTES)[skipped:]
    if len(data) != file.size_bytes:
        raise records.damaged(offset, f"{display_path(file.path)} has {len(data)} bytes and not {file.size_bytes}")
    return data


def _take(file: Opened, parts: Sequence[Part], at: int, number: int, members: Members) -> bool:
    """Note the image of a record; True where it has none."""
    size_bytes = sum(length for _, length in parts) + len(_MAGIC) * (len(parts) - 1)
    name = b"%08d" % number
    if size_bytes < _HEADER.size:
        members.refuse(name, f"the record at byte {at} has {size_bytes} bytes, too few for the header of an image")
        return False
    start = _joined(file, parts, _HEADER.size + _SNIFFED_BYTES)
    flag, number_label, _, _ = _HEADER.unpack_from(start)
    skipped = _HEADER.size + 4 * flag
    if skipped > size_bytes or (flag > _MOST_LABELS and skipped < size_bytes):
        members.refuse(name, f"the record at byte {at} of {size_bytes} bytes has a label of {flag} numbers")
        return False
    if skipped == size_bytes:
        return True
    if flag:
        start = _joined(file, parts, skipped + _SNIFFED_BYTES)
    values = np.frombuffer(start, "<f4", flag, _HEADER.size) if flag else (number_label,)
    path = name + b"." + suffix_of(start[skipped:])
    members.add(path, size_bytes - skipped, file.container.mtime_s, (at, skipped), _label(values))
    return False


def suffix_of(start: bytes) -> bytes:
    """Of the name of a file that begins with these bytes."""
    format = sniff_format(start)
    return {None: b"bin", "jpeg": b"jpg"}.get(format) or str(format).encode()


def _label(values: Sequence[float] | np.ndarray) -> str:
    """One number as itself, several as a JSON list; the shortest digits that give the same float32 again."""
    texts = [_digits(value) for value in values]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


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


def _read_index(file: Opened) -> array[int]:
    """Offsets of records by the .idx, ascending; none where there is none. Raises SourceError."""
    path = file.container.path.with_suffix(".idx")
    found = array("Q")
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE_BYTES), b""), 1):
                words = line.split()
                if words:
                    found.append(_offset(words, path, number))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SourceError(f"{display_path(os.fsencode(path))}: cannot be read: {error.strerror}") from error
    return array("Q", sorted(found))


def _offset(words: Sequence[bytes], path: os.PathLike[str], number: int) -> int:
    if len(words) == 2 and words[1].isdigit() and len(words[1]) < 20:
        return int(words[1])
    raise SourceError(
        f"{display_path(os.fsencode(path))}, line {number}: expected a key and an offset; take the file away if it "
        f"is no index of the .rec"
    )
