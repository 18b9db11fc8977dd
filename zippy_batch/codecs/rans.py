"""Integers and integer tables <-> bytes: range asymmetric numeral systems, one lane per image.

A lane is a last-in-first-out stack of symbols: the encoder pushes them in reverse, the decoder pops them in order. The
first lane's state starts at a checksum of the image's symbols (the low 12 bits of the CRC-32 of all its residuals as
little-endian int16, in coding order), the others' at 0. The decoder must end at just these states with no byte left: a
wrong table, a wrong model or a damaged byte ends elsewhere. That check costs next to nothing, because the first pushed
symbols lift a state of 0 to about 2^16 as well.

    push (start, freq):  while x >= freq << 16: emit low byte, x >>= 8
                         x = (x // freq << 16) + x % freq + start
    pop:                 slot = x mod 2^16 finds the symbol
                         x = freq * (x >> 16) + slot - start
                         while x < 2^24 and bytes are left: x = x << 8 | next byte

A lane's bytes are the final state, most significant byte first (4 bytes, or as few as hold it when nothing was
emitted), then the emitted bytes in reverse order of emission. No lane begins with a zero byte. Not starting at 2^24,
as is usual, keeps the cost above the ideal code length at about 2 bytes per lane, checksum included.

Symbols are residuals. A table orders them 0, -1, 1, -2, 2, ... -radius, radius, escape; a residual beyond the radius
is coded as escape, then as one symbol of 16 bits: residual + 32768. Table 0 is no table: its residuals are certainly
0 and take no bits.

Push and pop exist twice: in NumPy, over the t-th symbol of every image at once, which is the reference; and compiled
by numba, image by image, which is what runs. Tests hold one against the other. Source: Duda 2013, arXiv:1311.2540.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.errors import DamagedRow
from zippy_batch.varint import read_varint, write_varint

PRECISION = 16
TOTAL = 1 << PRECISION
STATE_LOW = 1 << 24
STATE_BYTES = 4
RESIDUAL_LIMIT = 32767
CHECK_MASK = 0xFFF


@dataclass(frozen=True)
class Tables:
    """Integer frequency tables of all scale indices, flattened.

    cumulative holds for each table its 2 * radius + 3 cumulative frequencies, from 0 to 65536 (uint32); table i
    begins at offset[i]. Table 0 is empty.
    """

    cumulative: NDArray[np.uint32]
    offset: NDArray[np.int64]
    radius: NDArray[np.int64]

    @staticmethod
    def from_frequencies(frequencies: list[NDArray[np.int64]]) -> Tables:
        """One array per table from index 1 on: frequencies of 0, -1, 1, ..., radius, escape, each >= 1, adding up to
        65536.
        """
        cumulative, offset, radius = [], [0], [0]
        position = 0
        for i, f in enumerate(frequencies, start=1):
            if len(f) < 2 or len(f) % 2 or f.min() < 1 or f.sum() != TOTAL:
                raise ValueError(f"table {i}: needs an even number of frequencies >= 1 that add up to {TOTAL}")
            cumulative.append(np.concatenate([[0], np.cumsum(f)]))
            offset.append(position)
            radius.append((len(f) - 2) // 2)
            position += len(f) + 1
        flat = np.concatenate(cumulative).astype(np.uint32) if cumulative else np.zeros(0, np.uint32)
        return Tables(flat, np.array(offset, np.int64), np.array(radius, np.int64))

    def __len__(self) -> int:
        return len(self.offset)

    def symbols(self, residuals: NDArray[np.integer], tables: NDArray[np.integer]) -> NDArray[np.int64]:
        """Number of each residual's symbol in its table; the last one, escape, for those beyond the radius."""
        r, radius = np.asarray(residuals, np.int64), self.radius[tables]
        return np.where(np.abs(r) > radius, 2 * radius + 1, 2 * np.abs(r) - (r < 0))

    def bits(self, residuals: NDArray[np.integer], tables: NDArray[np.integer]) -> float:
        """Ideal code length of the residuals under their tables."""
        coded = tables > 0
        t = tables[coded]
        symbols = self.symbols(residuals[coded], t)
        at = self.offset[t] + symbols
        frequency = (self.cumulative[at + 1].astype(np.int64) - self.cumulative[at]) / TOTAL
        escapes = np.count_nonzero(symbols == 2 * self.radius[t] + 1)
        return float(-np.log2(frequency).sum() + PRECISION * escapes)


def lane_count(positions: int) -> int:
    """Lanes of an image of so many grid positions: 1 up to 2048 positions (about 360 x 360 px), at most 256."""
    return min(256, max(1, positions // 1024))


def _push_numpy(residuals, tables, lanes, book, out, capacity, length, state):  # type: ignore[no-untyped-def]
    """Push every coded residual, last first, the t-th of all images at once. out (N, lanes * capacity), length, state
    (N, lanes).
    """

    def push(rows, lane, start, frequency):  # type: ignore[no-untyped-def]
        x = state[rows, lane]
        full = x >= frequency << np.uint64(PRECISION)
        while full.any():
            at = rows[full]
            out[at, lane * capacity + length[at, lane]] = x[full] & np.uint64(255)
            length[at, lane] += 1
            x[full] >>= np.uint64(8)
            full = x >= frequency << np.uint64(PRECISION)
        state[rows, lane] = ((x // frequency) << np.uint64(PRECISION)) + x % frequency + start

    for t in range(residuals.shape[1] - 1, -1, -1):
        rows = np.flatnonzero(tables[:, t])
        if not len(rows):
            continue
        table, r, lane = tables[rows, t], residuals[rows, t].astype(np.int64), lanes[t]
        symbols = book.symbols(r, table)
        escaped = symbols == 2 * book.radius[table] + 1
        raw = (r[escaped] + 32768).astype(np.uint64)
        push(rows[escaped], lane, raw, np.ones(len(raw), np.uint64))
        at = book.offset[table] + symbols
        start = book.cumulative[at].astype(np.uint64)
        push(rows, lane, start, book.cumulative[at + 1].astype(np.uint64) - start)


def _pop_numpy(tables, lanes, book, data, begin, end, state, residuals):  # type: ignore[no-untyped-def]
    """Pop the residuals of one step, the t-th of all images at once; begin and state (N, lanes) are advanced in
    place.
    """

    def settle(rows, lane, x):  # type: ignore[no-untyped-def]
        low = (x < np.uint64(STATE_LOW)) & (begin[rows, lane] < end[rows, lane])
        while low.any():
            x[low] = (x[low] << np.uint64(8)) | data[begin[rows[low], lane]].astype(np.uint64)
            begin[rows[low], lane] += 1
            low = (x < np.uint64(STATE_LOW)) & (begin[rows, lane] < end[rows, lane])
        state[rows, lane] = x

    residuals[:] = 0
    for t in range(tables.shape[1]):
        rows = np.flatnonzero(tables[:, t])
        if not len(rows):
            continue
        table, lane = tables[rows, t], lanes[t]
        x = state[rows, lane]
        slot = x & np.uint64(TOTAL - 1)
        at = book.offset[table].copy()
        later = book.cumulative[at + 1] <= slot
        while later.any():
            at += later
            later = book.cumulative[at + 1] <= slot
        start = book.cumulative[at].astype(np.uint64)
        settle(
            rows, lane, (book.cumulative[at + 1].astype(np.uint64) - start) * (x >> np.uint64(PRECISION)) + slot - start
        )
        symbol = at - book.offset[table]
        residuals[rows, t] = np.where(symbol & 1, -((symbol + 1) >> 1), symbol >> 1)
        escaped = rows[symbol > 2 * book.radius[table]]
        x = state[escaped, lane]
        residuals[escaped, t] = (x & np.uint64(TOTAL - 1)).astype(np.int64) - 32768
        settle(escaped, lane, x >> np.uint64(PRECISION))


@numba.njit(cache=True, nogil=True)
def _push_compiled(residuals, tables, lanes, cumulative, offset, radius, out, capacity, length, state):  # type: ignore[no-untyped-def]
    for n in range(residuals.shape[0]):
        for t in range(residuals.shape[1] - 1, -1, -1):
            table = tables[n, t]
            if table == 0:
                continue
            lane = lanes[t]
            r = np.int64(residuals[n, t])
            size = radius[table]
            x = state[n, lane]
            at = lane * capacity + length[n, lane]
            if r > size or r < -size:
                symbol = 2 * size + 1
                while x >= np.uint64(65536):
                    out[n, at] = x & np.uint64(255)
                    at += 1
                    x >>= np.uint64(8)
                x = (x << np.uint64(16)) + np.uint64(r + 32768)
            elif r >= 0:
                symbol = 2 * r
            else:
                symbol = -2 * r - 1
            base = offset[table] + symbol
            start = np.uint64(cumulative[base])
            frequency = np.uint64(cumulative[base + 1]) - start
            while x >= frequency << np.uint64(16):
                out[n, at] = x & np.uint64(255)
                at += 1
                x >>= np.uint64(8)
            state[n, lane] = ((x // frequency) << np.uint64(16)) + x % frequency + start
            length[n, lane] = at - lane * capacity


@numba.njit(cache=True, nogil=True)
def _pop_compiled(tables, lanes, cumulative, offset, radius, data, begin, end, state, residuals):  # type: ignore[no-untyped-def]
    low = np.uint64(16777216)
    for n in range(tables.shape[0]):
        for t in range(tables.shape[1]):
            table = tables[n, t]
            if table == 0:
                residuals[n, t] = 0
                continue
            lane = lanes[t]
            x = state[n, lane]
            at = begin[n, lane]
            stop = end[n, lane]
            slot = x & np.uint64(65535)
            base = offset[table]
            symbol = 0
            while np.uint64(cumulative[base + symbol + 1]) <= slot:
                symbol += 1
            start = np.uint64(cumulative[base + symbol])
            x = (np.uint64(cumulative[base + symbol + 1]) - start) * (x >> np.uint64(16)) + slot - start
            while x < low and at < stop:
                x = (x << np.uint64(8)) | np.uint64(data[at])
                at += 1
            r = np.int64(symbol >> 1)
            if symbol > 2 * radius[table]:
                r = np.int64(x & np.uint64(65535)) - 32768
                x >>= np.uint64(16)
                while x < low and at < stop:
                    x = (x << np.uint64(8)) | np.uint64(data[at])
                    at += 1
            elif symbol & 1:
                r = -r - 1
            residuals[n, t] = r
            state[n, lane] = x
            begin[n, lane] = at


def _join_lanes(lanes: list[bytes]) -> bytes:
    """Lengths of all lanes but the last as varints, then the lanes."""
    return b"".join([*(write_varint(len(lane)) for lane in lanes[:-1]), *lanes])


def _split_lanes(payload: bytes, count: int) -> list[tuple[int, int]]:
    """(begin, end) of each lane in the payload; DamagedRow where the lengths do not fit."""
    lengths, at = [], 0
    try:
        for _ in range(count - 1):
            length, at = read_varint(payload, at)
            lengths.append(length)
    except ValueError as error:
        raise DamagedRow(f"payload: lane lengths: {error}") from None
    spans = []
    for length in lengths:
        spans.append((at, at + length))
        at += length
    if at > len(payload):
        raise DamagedRow(f"payload: lanes need {at} bytes, found {len(payload)}")
    return [*spans, (at, len(payload))]


def lane_bytes(state: int, emitted: bytes) -> bytes:
    """A lane from its final state and the bytes in the order in which they were emitted."""
    size = STATE_BYTES if emitted else (state.bit_length() + 7) // 8
    return state.to_bytes(size, "big") + emitted[::-1]


def encode(
    residuals: NDArray[np.int32],
    tables: NDArray[np.uint8],
    lanes: NDArray[np.int64],
    book: Tables,
    compiled: bool = True,
) -> list[bytes]:
    """Residuals and table indices (N, T), in decoding order, lane of each (T,) -> N payloads.

    Residuals must be 0 where the table is 0 and within +-32767 elsewhere.
    """
    count = int(lanes.max()) + 1 if len(lanes) else 1
    coded = max(int(np.count_nonzero(tables[:, lanes == k], axis=1).max(initial=0)) for k in range(count))
    capacity = 4 * coded + 8
    n = len(residuals)
    out = np.empty((n, count * capacity), np.uint8)
    length = np.zeros((n, count), np.int64)
    state = np.zeros((n, count), np.uint64)
    state[:, 0] = [zlib.crc32(r) & CHECK_MASK for r in residuals.astype("<i2")]
    if compiled:
        _push_compiled(
            residuals, tables, lanes, book.cumulative, book.offset, book.radius, out, capacity, length, state
        )
    else:
        _push_numpy(residuals, tables, lanes, book, out, capacity, length, state)
    emitted = out.reshape(n, count, capacity)
    return [
        _join_lanes([lane_bytes(int(state[i, k]), emitted[i, k, : length[i, k]].tobytes()) for k in range(count)])
        for i in range(n)
    ]


class Decoder:
    """Pops residuals from a batch of payloads, step by step, then checks that nothing is left."""

    def __init__(self, payloads: list[bytes], lanes: int, book: Tables, compiled: bool = True) -> None:
        self._book = book
        self._compiled = compiled
        n = len(payloads)
        self._begin = np.zeros((n, lanes), np.int64)
        self._end = np.zeros((n, lanes), np.int64)
        self._state = np.zeros((n, lanes), np.uint64)
        self._check = [0] * n
        self.damage: dict[int, str] = {}
        position = 0
        for i, payload in enumerate(payloads):
            try:
                spans = _split_lanes(payload, lanes)
            except DamagedRow as error:
                self.damage[i] = str(error)
                spans = [(0, 0)] * lanes
            for k, (begin, end) in enumerate(spans):
                if begin < end and payload[begin] == 0:
                    self.damage[i] = "payload: a lane begins with a zero byte"
                head = min(end, begin + STATE_BYTES)
                self._state[i, k] = int.from_bytes(payload[begin:head], "big")
                self._begin[i, k] = position + head
                self._end[i, k] = position + end
            position += len(payload)
        self._data = np.frombuffer(b"".join(payloads) or b"\0", np.uint8)

    def pop(self, tables: NDArray[np.uint8], lanes: NDArray[np.int64]) -> NDArray[np.int32]:
        """Table indices (N, T) of the next symbols and the lane of each (T,) -> residuals (N, T)."""
        out = np.empty(tables.shape, np.int32)
        book = self._book
        streams = (self._data, self._begin, self._end, self._state, out)
        if self._compiled:
            _pop_compiled(tables, lanes, book.cumulative, book.offset, book.radius, *streams)
        else:
            _pop_numpy(tables, lanes, book, *streams)
        self._check = [zlib.crc32(r, c) for r, c in zip(out.astype("<i2"), self._check, strict=True)]
        return out

    def finish(self) -> dict[int, str]:
        """Image index -> what is wrong, for every image whose states or bytes did not end where they should."""
        expected = np.zeros_like(self._state)
        expected[:, 0] = [c & CHECK_MASK for c in self._check]
        bad = np.flatnonzero((self._state != expected).any(1) | (self._begin != self._end).any(1))
        for i in bad:
            self.damage.setdefault(int(i), "payload: symbols do not add up (damaged bytes, or not this model)")
        return self.damage
