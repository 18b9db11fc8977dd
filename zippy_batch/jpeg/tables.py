"""Huffman tables of JPEG files: those of segments, those of the standard, those that libjpeg's optimiser makes.

Tables are known by their key: class * 4 + destination, so that 0..3 are DC tables and 4..7 AC tables. Source: ITU-T
T.81, B.2.4.2 and Annex K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zippy_batch.jpeg import huffman


class Malformed(Exception):
    """Headers that are not those of a file that can be rebuilt; the message says why."""


@dataclass(frozen=True, eq=False)
class Table:
    """Codes per length (16,), and values in code order."""

    counts: NDArray[np.int64]
    values: NDArray[np.uint8]

    def to_bytes(self) -> bytes:
        return self.counts.astype(np.uint8).tobytes() + self.values.tobytes()


def read_tables(body: bytes) -> list[tuple[int, Table]]:
    """Key and table of all tables in a DHT segment."""
    out, at = [], 0
    while at < len(body):
        kind, destination = body[at] >> 4, body[at] & 15
        counts = np.frombuffer(body[at + 1 : at + 17], np.uint8).astype(np.int64)
        total = int(counts.sum())
        if kind > 1 or destination > 3 or len(counts) < 16 or total > 256 or at + 17 + total > len(body):
            raise Malformed("a Huffman table is malformed")
        if (counts * 2.0 ** -np.arange(1, 17)).sum() > 1:
            raise Malformed("a Huffman table has more codes than there are")
        values = np.frombuffer(body[at + 17 : at + 17 + total], np.uint8)
        out.append((kind * 4 + destination, Table(counts, values)))
        at += 17 + total
    return out


def write_segment(tables: Sequence[tuple[int, Table]]) -> bytes:
    """A DHT segment of these tables, by key."""
    body = b"".join(bytes([key // 4 << 4 | key & 3]) + table.to_bytes() for key, table in tables)
    return b"\xff\xc4" + (len(body) + 2).to_bytes(2, "big") + body


def optimal(frequency: NDArray[np.int64]) -> Table:
    """The table that libjpeg makes for symbols used so often (256,)."""
    counts, values, n = huffman.optimal_table(frequency)
    return Table(counts, values[:n])


def _standard(counts: str, values: str) -> Table:
    lengths = np.frombuffer(bytes.fromhex(counts), np.uint8).astype(np.int64)
    return Table(lengths, np.frombuffer(bytes.fromhex(values), np.uint8))


def _tail(*rows: int) -> str:
    """Values that go up inside a row: first value, how many."""
    return bytes(v for row, n in zip(rows[::2], rows[1::2], strict=True) for v in range(row, row + n)).hex()


STANDARD = {
    # T.81 tables K.3 to K.6
    0: _standard("00010501010101010100000000000000", "000102030405060708090a0b"),
    1: _standard("00030101010101010101010000000000", "000102030405060708090a0b"),
    4: _standard(
        "0002010303020403050504040000017d",
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f0"
        + "2433627282090a161718191a25262728292a"
        + _tail(0x34, 7, 0x43, 8, 0x53, 8, 0x63, 8, 0x73, 8, 0x83, 8, 0x92, 9, 0xA2, 9, 0xB2, 9, 0xC2, 9, 0xD2, 9)
        + _tail(0xE1, 10, 0xF1, 10),
    ),
    5: _standard(
        "00020102040403040705040400010277",
        "000102031104052131061241510761711322328108144291a1b1c109233352f0"
        + "156272d10a162434e125f11718191a262728292a"
        + _tail(0x35, 6, 0x43, 8, 0x53, 8, 0x63, 8, 0x73, 8, 0x82, 9, 0x92, 9, 0xA2, 9, 0xB2, 9, 0xC2, 9, 0xD2, 9)
        + _tail(0xE2, 9, 0xF2, 9),
    ),
}
EMPTY_TABLE = Table(np.zeros(16, np.int64), np.zeros(0, np.uint8))
