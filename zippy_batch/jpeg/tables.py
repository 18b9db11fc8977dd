"""Huffman tables of JPEG files: those of segments, those of the standard, those that libjpeg's optimiser makes.

A table is a `Table`: bytes as a DHT segment has them. Tables are known by their key: class * 4 + destination, so that
0..3 are DC tables and 4..7 AC tables. Source: ITU-T T.81, B.2.4.2 and Annexes C and K.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.jpeg.faults import Malformed

Table = bytes
"""16 numbers of codes by length, then the values in the order of their codes, at most 256."""

EMPTY_TABLE: Table = bytes(16)
"""A table without codes: it stands for a table that follows from the coefficients."""

OPTIMISED, _AC = 32, 16
"""Bits of the kinds by which recipes call tables that they leave out."""

PACKED = 16 + 256
"""Bytes of a table that is padded with zeros, as compiled code takes it."""


def kind_of(key: int, optimised: bool) -> int:
    """How a recipe calls a table that is left out."""
    return key & 3 | (_AC if key >= 4 else 0) | (OPTIMISED if optimised else 0)


def key_of(kind: int) -> int:
    return (4 if kind & _AC else 0) + (kind & 3)


def is_kind(kind: int) -> bool:
    """Whether there is a table that is called so."""
    return kind & ~(OPTIMISED | _AC | 3) == 0 and bool(kind & OPTIMISED or key_of(kind) in STANDARD)


@lru_cache(maxsize=256)
def read_tables(body: bytes) -> tuple[tuple[int, Table], ...]:
    """Key and table of all tables in a DHT segment."""
    out, at = [], 0
    while at < len(body):
        kind, destination = body[at] >> 4, body[at] & 15
        end = at + 17 + sum(body[at + 1 : at + 17])
        if kind > 1 or destination > 3 or at + 17 > len(body) or end > len(body) or end - at > 1 + PACKED:
            raise Malformed("a Huffman table is malformed")
        table = body[at + 1 : end]
        if not _has_room(table[:16]):
            raise Malformed("a Huffman table has more codes than there are")
        out.append((kind * 4 + destination, table))
        at = end
    return tuple(out)


@lru_cache(maxsize=1024)
def _has_room(counts: bytes) -> bool:
    """Whether there are so many codes of these lengths."""
    return sum(count << (16 - length) for length, count in enumerate(counts, 1)) <= 1 << 16


def write_segment(tables: Sequence[tuple[int, Table]]) -> bytes:
    """A DHT segment of these tables, by key."""
    body = b"".join(bytes([key // 4 << 4 | key & 3]) + table for key, table in tables)
    return b"\xff\xc4" + (len(body) + 2).to_bytes(2, "big") + body


def pack(tables: Sequence[Table]) -> NDArray[np.uint8]:
    """(len(tables), PACKED)"""
    packed = b"".join(table.ljust(PACKED, b"\0") for table in tables)
    return np.frombuffer(packed, np.uint8).reshape(len(tables), PACKED)


def optimal(frequency: NDArray[np.int64]) -> dict[int, Table]:
    """The tables that libjpeg makes for symbols used so often (8, 256), by key; of those that are used at all."""
    tables, sizes = optimal_tables(frequency)
    return {key: tables[key, :size].tobytes() for key, size in enumerate(sizes.tolist()) if size > 16}


# ---- compiled ----


@numba.njit(cache=True, nogil=True)
def codes_of(packed):  # type: ignore[no-untyped-def]
    """Packed tables (T, PACKED) -> (T, 256) int64: code * 32 + length of every value, 0 where it has no code."""
    out = np.zeros((packed.shape[0], 256), np.int64)
    for t in range(packed.shape[0]):
        code, at = 0, 16
        for length in range(1, 17):
            for _ in range(packed[t, length - 1]):
                if at < PACKED:
                    out[t, packed[t, at]] = (code << 5) | length
                code += 1
                at += 1
            code <<= 1
    return out


@numba.njit(cache=True, nogil=True)
def optimal_tables(frequency):  # type: ignore[no-untyped-def]
    """Frequencies (T, 256) int64 -> packed tables (T, PACKED), and their sizes in bytes."""
    tables = np.zeros((len(frequency), PACKED), np.uint8)
    sizes = np.zeros(len(frequency), np.int64)
    for t in range(len(frequency)):
        if frequency[t].any():
            sizes[t] = _fill_optimal(frequency[t], tables[t])
    return tables, sizes


@numba.njit(cache=True, nogil=True)
def _fill_optimal(frequency, table):  # type: ignore[no-untyped-def]
    """Fill a packed table (PACKED,), zeros, as libjpeg makes it: T.81 K.2, where of equally rare symbols the one of the
    highest value is merged first, and one code of all ones is reserved. Returns its size in bytes."""
    size = _code_sizes(frequency)
    counts = np.zeros(max(18, size.max() + 2), np.int64)
    for symbol in range(257):
        if size[symbol]:
            counts[size[symbol]] += 1
    _shorten(counts)
    for length in range(1, 17):
        table[length - 1] = counts[length]
    at = 16
    for length in range(1, size.max() + 1):
        for symbol in range(256):
            if size[symbol] == length:
                table[at] = symbol
                at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _code_sizes(frequency):  # type: ignore[no-untyped-def]
    """(257,) length of each symbol's code, 0 where it is not used; symbol 256 is the reserved code. Lengths may be more
    than 16."""
    # a heap of frequency * 512 + 511 - symbol: the rarest first, of equally rare ones the highest symbol
    heap = np.empty(258, np.int64)
    heap[0] = 512 + 511 - 256
    count = 1
    for symbol in range(256):
        if frequency[symbol]:
            count = _put(heap, count, frequency[symbol] * 512 + 511 - symbol)
    # the tree's node of each symbol; leaves are 0..256, and a merged pair is its first symbol's
    node = np.arange(257)
    parent = np.full(514, -1, np.int64)
    made = 257
    while count > 1:
        first = heap[0]
        count = _take(heap, count)
        second = heap[0]
        count = _take(heap, count)
        symbol = 511 - (first & 511)
        parent[node[symbol]] = made
        parent[node[511 - (second & 511)]] = made
        node[symbol] = made
        made += 1
        count = _put(heap, count, ((first >> 9) + (second >> 9)) * 512 + 511 - symbol)
    depth = np.zeros(514, np.int64)
    for n in range(made - 2, -1, -1):
        if parent[n] >= 0:
            depth[n] = depth[parent[n]] + 1
    return depth[:257]


@numba.njit(cache=True, nogil=True)
def _put(heap, count, key):  # type: ignore[no-untyped-def]
    """Returns the new count."""
    i = count
    while i and heap[(i - 1) >> 1] > key:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = key
    return count + 1


@numba.njit(cache=True, nogil=True)
def _take(heap, count):  # type: ignore[no-untyped-def]
    """Removes heap[0], the least; returns the new count."""
    count -= 1
    key = heap[count]
    i = 0
    while 2 * i + 1 < count:
        child = 2 * i + 1
        if child + 1 < count and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = key
    return count


@numba.njit(cache=True, nogil=True)
def _shorten(counts):  # type: ignore[no-untyped-def]
    """Codes by length (17 or more,), in place: none of more than 16 bits (T.81 figure K.3), the reserved one gone."""
    # pairs of the longest move up, beside a split shorter one
    for length in range(len(counts) - 1, 16, -1):
        while counts[length] > 0:
            shorter = length - 2
            while counts[shorter] == 0:
                shorter -= 1
            counts[length] -= 2
            counts[length - 1] += 1
            counts[shorter + 1] += 2
            counts[shorter] -= 1
    length = 16
    while counts[length] == 0:
        length -= 1
    counts[length] -= 1


# ---- the standard's ----


def _tail(*rows: int) -> str:
    """Values that go up inside a row: first value, how many."""
    return bytes(v for row, n in zip(rows[::2], rows[1::2], strict=True) for v in range(row, row + n)).hex()


STANDARD: dict[int, Table] = {
    key: bytes.fromhex(table)
    for key, table in {
        # T.81 tables K.3 to K.6
        0: "00010501010101010100000000000000" + "000102030405060708090a0b",
        1: "00030101010101010101010000000000" + "000102030405060708090a0b",
        4: "0002010303020403050504040000017d"
        + "01020300041105122131410613516107227114328191a1082342b1c11552d1f0"
        + "2433627282090a161718191a25262728292a"
        + _tail(0x34, 7, 0x43, 8, 0x53, 8, 0x63, 8, 0x73, 8, 0x83, 8, 0x92, 9, 0xA2, 9, 0xB2, 9, 0xC2, 9, 0xD2, 9)
        + _tail(0xE1, 10, 0xF1, 10),
        5: "00020102040403040705040400010277"
        + "000102031104052131061241510761711322328108144291a1b1c109233352f0"
        + "156272d10a162434e125f11718191a262728292a"
        + _tail(0x35, 6, 0x43, 8, 0x53, 8, 0x63, 8, 0x73, 8, 0x82, 9, 0x92, 9, 0xA2, 9, 0xB2, 9, 0xC2, 9, 0xD2, 9)
        + _tail(0xE2, 9, 0xF2, 9),
    }.items()
}
