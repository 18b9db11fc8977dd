"""Unsigned LEB128: seven bits a byte, low first, the top bit set on all but the last."""

from __future__ import annotations

MAX_BYTES = 5
"""Most bytes of a number that is read: a longer one is damage."""


def write_varint(value: int) -> bytes:
    """value >= 0 -> 1 byte or more."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at data[at], and the position after it; ValueError where it is cut short or longer than MAX_BYTES."""
    value = 0
    for i in range(MAX_BYTES):
        if at + i >= len(data):
            raise ValueError("a number is cut short")
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError(f"a number of more than {MAX_BYTES} bytes")
