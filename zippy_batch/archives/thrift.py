"""The Thrift compact protocol, for structures that are known in full beforehand.

Whatever is not in the description is refused: fields unknown, twice or of another type, numbers out of range, lengths
beyond the data. So what was read here is read the same way by any other reader, and costs no more memory than a small
multiple of its bytes.

Format: the Apache Thrift compact protocol, as used by Apache Parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12
_BITS = {_I16: 16, _I32: 32, _I64: 64}


@dataclass(frozen=True)
class Kind:
    """Type of a field."""

    wire: int
    fields: Mapping[int, Kind] | None = None
    """Fields of a struct, by number."""
    element: Kind | None = None
    """What a list holds."""


BOOL = Kind(_TRUE)
BYTE = Kind(_BYTE)
I16 = Kind(_I16)
I32 = Kind(_I32)
I64 = Kind(_I64)
BINARY = Kind(_BINARY)


def struct_of(fields: Mapping[int, Kind]) -> Kind:
    return Kind(_STRUCT, fields=fields)


def list_of(element: Kind) -> Kind:
    return Kind(_LIST, element=element)


Struct = dict[int, Any]
"""Field number -> bool, int, bytes, list or Struct, as its Kind says."""


def parse_struct(data: bytes, kind: Kind) -> tuple[Struct, int]:
    """The struct that `data` starts with, and the number of its bytes. Raises ValueError for anything else."""
    reader = ThriftReader(data)
    try:
        return reader.struct(kind), reader.at
    except IndexError as error:
        raise ValueError("structure without an end") from error


def write_struct(value: Struct, kind: Kind) -> bytes:
    """Inverse of `parse_struct`; fields in ascending order, so that equal values give equal bytes."""
    out = bytearray()
    _write_struct(out, value, kind)
    return bytes(out)


def _write_struct(out: bytearray, value: Struct, kind: Kind) -> None:
    fields, last = kind.fields or {}, 0
    for number in sorted(value):
        field = fields[number]
        wire = field.wire if field.wire != _TRUE or value[number] else _FALSE
        step = number - last
        out.append((step << 4 | wire) if step < 16 else wire)
        if step >= 16:
            _write_varint(out, number << 1)
        _write_value(out, value[number], field)
        last = number
    out.append(0)


def _write_value(out: bytearray, value: Any, kind: Kind) -> None:
    if kind.wire in _BITS:
        _write_varint(out, value << 1 if value >= 0 else (-value << 1) - 1)
    elif kind.wire == _BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind.wire == _STRUCT:
        _write_struct(out, value, kind)
    elif kind.wire == _BYTE:
        out.append(value)
    elif kind.wire == _LIST and kind.element is not None:
        out.append(min(len(value), 15) << 4 | kind.element.wire)
        if len(value) >= 15:
            _write_varint(out, len(value))
        for one in value:
            _write_value(out, one, kind.element)


def _write_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


class ThriftReader:
    """Raises ValueError, or IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        """Offset of the next byte."""

    def struct(self, kind: Kind) -> Struct:
        fields = kind.fields or {}
        found: Struct = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self._integer(16)
            wire = head & 15
            field = fields.get(number)
            if field is None or number in found:
                raise ValueError(f"unexpected field {number}")
            if field.wire == _TRUE and wire in (_TRUE, _FALSE):
                found[number] = wire == _TRUE
            elif field.wire == wire:
                found[number] = self._value(field)
            else:
                raise ValueError(f"field {number} has type {wire}")
        return found

    def _value(self, kind: Kind) -> Any:
        if kind.wire in _BITS:
            return self._integer(_BITS[kind.wire])
        if kind.wire == _BINARY:
            return self.take(self.varint())
        if kind.wire == _STRUCT:
            return self.struct(kind)
        if kind.wire == _LIST and kind.element is not None:
            return self._list(kind.element)
        if kind.wire == _BYTE:
            return self.byte()
        raise ValueError(f"type {kind.wire} where there is none")

    def _list(self, element: Kind) -> list[Any]:
        head = self.byte()
        count = head >> 4 if head >> 4 != 15 else self.varint()
        if head & 15 != element.wire or count > len(self._data) - self.at:
            raise ValueError("impossible list")
        return [self._value(element) for _ in range(count)]

    def take(self, size_bytes: int) -> bytes:
        start = self.at
        if size_bytes > len(self._data) - start:
            raise ValueError("impossible length")
        self.at = start + size_bytes
        return self._data[start : self.at]

    def _integer(self, bits: int) -> int:
        value = self.varint()
        value = value >> 1 ^ -(value & 1)
        if not -1 << bits - 1 <= value < 1 << bits - 1:
            raise ValueError("number out of range")
        return value

    def varint(self) -> int:
        data, at = self._data, self.at
        value = data[at]
        if value < 128:
            self.at = at + 1
            return value
        value &= 127
        shift = 7
        while True:
            at += 1
            byte = data[at]
            value |= (byte & 127) << shift
            if byte < 128:
                self.at = at + 1
                return value
            shift += 7
            if shift > 63:
                raise ValueError("number too long")

    def byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]
