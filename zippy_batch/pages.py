"""What the pages of a Parquet column chunk claim about themselves, read before anything is decoded.

A Parquet library believes page headers: one of a few bytes can claim gigabytes, and delta and dictionary encodings can
make gigabytes out of a small page. Here the headers are walked (Thrift compact protocol, apache/parquet-format) so that
a reader can refuse what no writer of archives writes.
"""

from __future__ import annotations

from dataclasses import dataclass

_MAX_HEADER_BYTES = 1 << 12
_MAX_DEPTH = 8

_PAGE_DATA, _PAGE_DICTIONARY = 0, 2
_PLAIN_DICTIONARY, _RLE_DICTIONARY = 2, 8
ENCODINGS = {
    0: "PLAIN",
    _PLAIN_DICTIONARY: "DICTIONARY",
    5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY",
    7: "DELTA_BYTE_ARRAY",
    _RLE_DICTIONARY: "DICTIONARY",
    9: "BYTE_STREAM_SPLIT",
}

Struct = dict[int, "int | Struct"]
"""Thrift field number -> integer or struct; fields of other types are skipped."""


@dataclass(frozen=True)
class Page:
    dictionary: bool
    encoding: str
    values: int
    header_bytes: int
    stored_bytes: int
    decompressed_bytes: int


def parse_page(data: bytes) -> Page:
    """The page whose header `data` starts with. Raises ValueError for what is not a dictionary page or a data page of
    version 1."""
    reader = _Compact(data[:_MAX_HEADER_BYTES])
    try:
        header = reader.struct()
        kind, decompressed_bytes, stored_bytes = _integer(header, 1), _integer(header, 2), _integer(header, 3)
        inner = header[{_PAGE_DATA: 5, _PAGE_DICTIONARY: 7}[kind]]
        if isinstance(inner, int):
            raise ValueError("malformed page header")
        values, encoding = _integer(inner, 1), ENCODINGS[_integer(inner, 2)]
    except (KeyError, IndexError) as error:
        raise ValueError("malformed or unknown page header") from error
    if min(decompressed_bytes, stored_bytes, values) < 0:
        raise ValueError("page of negative size")
    return Page(kind == _PAGE_DICTIONARY, encoding, values, reader.at, stored_bytes, decompressed_bytes)


def _integer(struct: Struct, field: int) -> int:
    value = struct[field]
    if not isinstance(value, int):
        raise ValueError("malformed page header")
    return value


class _Compact:
    """Reader of the Thrift compact protocol; raises ValueError or IndexError on what is not that."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        """Offset of the next byte."""

    def struct(self, depth: int = 0) -> Struct:
        if depth > _MAX_DEPTH:
            raise ValueError("page header nested too deeply")
        found: Struct = {}
        field = 0
        while (head := self._byte()) != 0:
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            value = self._value(head & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> int | Struct | None:
        match kind:
            case 1 | 2:
                return 2 - kind
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                self.at += 8
            case 8:
                self.at += self._varint()
            case 9 | 10:
                self._list(depth)
            case 12:
                return self.struct(depth + 1)
            case _:
                raise ValueError(f"unknown type {kind} in a page header")
        return None

    def _list(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        if count > len(self._data):
            raise ValueError("page header with an impossible list")
        for _ in range(count):
            # booleans take a byte each in a list
            self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("number too long in a page header")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
