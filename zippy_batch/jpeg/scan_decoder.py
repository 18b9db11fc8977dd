"""Huffman-coded JPEG scans -> coefficients, compiled by numba.

    scan --> split_scan --> bytes without stuffing, restart intervals --> decode_* --> coefficients, and what is unusual

Every index is checked here, because numba does not: the bytes and the tables come from files that may be hostile.
Positions are in bits of the bytes without stuffing. Source: ITU-T T.81, Annexes F and G.

Letters: B blocks of all components, S components of a scan, I restart intervals, T tables.
"""

from __future__ import annotations

import numba
import numpy as np

from zippy_batch.jpeg.tables import PACKED

TRUNCATED, DAMAGED = -1, -2
"""What is wrong with a scan; 0 where nothing is."""
DISORDERED, FILLED = 1, 2
"""Restart markers out of order; fill bytes inside a scan."""

LONGEST_RUN = 32767
"""Blocks of one end-of-block run."""
MOST_CORRECTIONS = 937
"""Correction bits after which libjpeg ends an end-of-block run."""

_SPARE = 512
"""Zeros behind a scan: more than a block takes."""
_SHORT = 9
"""Bits of the codes that one look-up finds."""
_LIMIT, _OFFSET, _VALUES = 512, 512 + 17, 512 + 34
_LOOKUP = _VALUES + 256


@numba.njit(cache=True, nogil=True)
def split_scan(data, at, intervals):  # type: ignore[no-untyped-def]
    """The entropy-coded data from data[at] on, up to the marker that ends them or the last of so many intervals.

    Returns the bytes without stuffing and restart markers, followed by zeros; (I,) where each interval ends, in bits;
    how many intervals there are; and DISORDERED and FILLED.
    """
    size = len(data)
    clean = np.empty(size - at + _SPARE, np.uint8)
    stops = np.zeros(intervals, np.int64)
    n = found = flags = 0
    while at < size:
        byte = data[at]
        if byte != 0xFF:
            clean[n] = byte
            n += 1
            at += 1
            continue
        after = at + 1
        while after < size and data[after] == 0xFF:
            after += 1
        marker = data[after] if after < size else 0xFF
        restart = 0xD0 <= marker <= 0xD7 and found + 1 < intervals
        if marker != 0 and not restart:
            break
        if after > at + 1:
            flags |= FILLED
        if restart:
            stops[found] = 8 * n
            if marker != 0xD0 + (found & 7):
                flags |= DISORDERED
            found += 1
        else:
            clean[n] = 0xFF
            n += 1
        at = after + 1
    stops[found] = 8 * n
    clean[n : n + _SPARE] = 0
    return clean[: n + _SPARE], stops, found + 1, flags


@numba.njit(cache=True, nogil=True)
def open_scan(data, at, intervals, packed):  # type: ignore[no-untyped-def]
    """What `split_scan` returns, and `lookups` of packed tables."""
    return split_scan(data, at, intervals), lookups(packed)


@numba.njit(cache=True, nogil=True)
def close_scan(clean, stops, ends):  # type: ignore[no-untyped-def]
    """(I, 3) of each interval the bits that fill up its last byte, how many they are, and the whole bytes after it; and
    the bytes that the scan takes in a file, without restart markers."""
    out = np.empty((len(ends), 3), np.int64)
    for i in range(len(ends)):
        free = -ends[i] & 7
        out[i, 0] = clean[ends[i] >> 3] & ((1 << free) - 1)
        out[i, 1] = free
        out[i, 2] = (stops[i] - ends[i]) >> 3
    # what comes after the last interval is none of the scan's
    out[-1, 2] = 0
    used = (ends[-1] + 7) >> 3
    count = used
    for i in range(used):
        if clean[i] == 0xFF:
            count += 1
    return out, count


@numba.njit(cache=True, nogil=True)
def lookups(packed):  # type: ignore[no-untyped-def]
    """Packed tables (T, PACKED) -> (T, _LOOKUP) int64: length * 256 + value by the next _SHORT bits, or 0; per length
    the 16 bits after its last code, and its first value's number less its first code; the values."""
    out = np.zeros((packed.shape[0], _LOOKUP), np.int64)
    for t in range(packed.shape[0]):
        code, at = 0, 0
        for length in range(1, 17):
            out[t, _OFFSET + length] = at - code
            for _ in range(packed[t, length - 1]):
                if length <= _SHORT:
                    first = code << (_SHORT - length)
                    for i in range(first, min(1 << _SHORT, first + (1 << (_SHORT - length)))):
                        out[t, i] = (length << 8) | packed[t, min(PACKED - 1, 16 + at)]
                code += 1
                at += 1
            out[t, _LIMIT + length] = code << (16 - length)
            code <<= 1
        for i in range(256):
            out[t, _VALUES + i] = packed[t, 16 + i]
    return out


@numba.njit(cache=True, nogil=True)
def _window(clean, at):  # type: ignore[no-untyped-def]
    """The 32 bits from `at` on."""
    i = np.uintp(at >> 3)
    found = np.int64(clean[i]) << 32 | np.int64(clean[i + np.uintp(1)]) << 24 | np.int64(clean[i + np.uintp(2)]) << 16
    found |= np.int64(clean[i + np.uintp(3)]) << 8 | np.int64(clean[i + np.uintp(4)])
    return (found >> (8 - (at & 7))) & 0xFFFFFFFF


@numba.njit(cache=True, nogil=True)
def _code(window, lookup, t):  # type: ignore[no-untyped-def]
    """length * 256 + value of the code that a window begins with, or 0."""
    entry = lookup[t, np.uintp(window >> (32 - _SHORT))]
    length, peek = _SHORT + 1, window >> 16
    while entry == 0 and length < 17:
        if peek < lookup[t, _LIMIT + length]:
            index = min(255, max(0, lookup[t, _OFFSET + length] + (peek >> (16 - length))))
            entry = (length << 8) | lookup[t, _VALUES + index]
        length += 1
    return entry


@numba.njit(cache=True, nogil=True)
def _amplitude(window, length, size):  # type: ignore[no-untyped-def]
    """The value whose `size` bits follow a code of `length` bits."""
    value = (window >> (32 - length - size)) & ((1 << size) - 1)
    if size and value < 1 << (size - 1):
        value -= (1 << size) - 1
    return value


@numba.njit(cache=True, nogil=True)
def _note(notes, block, value):  # type: ignore[no-untyped-def]
    """notes[0, 0] counts them; there is room for one of each block."""
    notes[0, 0] += 1
    notes[notes[0, 0], 0] = block
    notes[notes[0, 0], 1] = value


# ---- sequential scans ----


@numba.njit(cache=True, nogil=True)
def decode_sequential(clean, stops, lookup, layout, per_interval, out, frequency):  # type: ignore[no-untyped-def]
    """Decode a scan, of so many blocks in a restart interval or 0, whose layout is `markers.Layout`.

    lookup (8, _LOOKUP) of the DC tables 0..3 and the AC tables 4..7; out (B, 64) int16, zeros, or of no block: then
    nothing is kept. Adds to frequency (8, 256) how often each symbol comes. Returns the status; whether blocks outside
    the picture are all alike (no DC difference, no AC); (I,) where each interval ends; and notes: blocks of the scan
    and how many runs of 16 zeros stand before their end.
    """
    order, tables, _ = layout
    prediction = np.zeros(len(tables), np.int64)
    ends = np.zeros(len(stops), np.int64)
    notes = np.zeros((len(order) + 1, 2), np.int64)
    plain, status = True, 0
    at = interval = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            ends[interval] = at
            at = stops[interval]
            interval += 1
            prediction[:] = 0
        place, s = np.int64(order[n, 0]) if len(out) else -1, order[n, 1]
        dc, ac = tables[s, 0], tables[s, 1]
        before = prediction[s]
        at, prediction[s] = _dc(clean, at, lookup, dc, before, frequency)
        if place >= 0:
            out[place, 0] = prediction[s]
        k, last, runs = 1, 0, 0
        ended = at < 0
        while k < 64 and not ended:
            window = _window(clean, at)
            entry = _code(window, lookup, ac)
            length, symbol = entry >> 8, entry & 255
            size = symbol & 15
            frequency[ac, symbol] += 1
            at += length + size
            if size:
                k += symbol >> 4
                if place >= 0 and k < 64:
                    out[place, k] = _amplitude(window, length, size)
                last = k
                k += 1
                runs = 0
            elif symbol == 0xF0:
                k += 16
                runs += 1
            else:
                # a symbol that is not 0 is a run of blocks, which only progressive scans have
                ended = True
                if symbol or length == 0:
                    at = DAMAGED
        if at < 0 or k > 64 or at > stops[interval]:
            status = DAMAGED if at < 0 or k > 64 else TRUNCATED
            break
        if order[n, 2] and (last or prediction[s] != before):
            plain = False
        if runs:
            _note(notes, n, runs)
    ends[interval] = at
    return status, plain, ends, notes


@numba.njit(cache=True, nogil=True)
def _dc(clean, at, lookup, dc, prediction, frequency):  # type: ignore[no-untyped-def]
    """Position (or what is wrong) and DC."""
    window = _window(clean, at)
    entry = _code(window, lookup, dc)
    length, size = entry >> 8, entry & 15
    frequency[dc, size] += 1
    prediction += _amplitude(window, length, size)
    at += length + size
    if length == 0 or entry & 255 > 15 or abs(prediction) > 32767:
        at = DAMAGED
    return at, prediction


# ---- progressive scans ----


@numba.njit(cache=True, nogil=True)
def decode_dc(clean, stops, lookup, layout, per_interval, bits, out, frequency):  # type: ignore[no-untyped-def]
    """Decode DC coefficients; bits are `high` and `low`: all bits from `low` on, or, where `high` is not 0, bit `low`
    alone. As `decode_sequential`, without notes."""
    order, tables, _ = layout
    high, low = bits
    prediction = np.zeros(len(tables), np.int64)
    ends = np.zeros(len(stops), np.int64)
    plain, status = True, 0
    at = interval = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            ends[interval] = at
            at = stops[interval]
            interval += 1
            prediction[:] = 0
        place, s = order[n, 0], order[n, 1]
        before = prediction[s]
        if high:
            bit = _window(clean, at) >> 31
            at += 1
            out[place, 0] |= bit << low
            prediction[s] = bit
        else:
            at, prediction[s] = _dc(clean, at, lookup, tables[s, 0], before, frequency)
            if abs(prediction[s] << low) > 32767:
                at = DAMAGED
            out[place, 0] = prediction[s] << low
        if at < 0 or at > stops[interval]:
            status = at if at < 0 else TRUNCATED
            break
        if order[n, 2] and prediction[s] != before:
            plain = False
    ends[interval] = at
    return status, plain, ends


@numba.njit(cache=True, nogil=True)
def decode_ac(clean, stops, lookup, layout, per_interval, band, out, frequency):  # type: ignore[no-untyped-def]
    """Decode AC coefficients of one component for the first time: band is the first and last of them, and the lowest
    bit that is coded.

    out (B, 64) int16. As `decode_sequential`; further notes are of blocks after which a run of ends (T.81 G.1.2.2)
    stops before it has to, with whether it had to by libjpeg's rules, and whether one goes on longer than those allow.
    """
    first, last, low = band
    order, table = layout[0], layout[1][0, 1]
    ends = np.zeros(len(stops), np.int64)
    notes, breaks = np.zeros((len(order) + 1, 2), np.int64), np.zeros((len(order) + 1, 2), np.int64)
    at = interval = run = length = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            if run:
                return DAMAGED, ends, notes, breaks
            ends[interval] = at
            at = stops[interval]
            interval += 1
            length = 0
        if run:
            run -= 1
            continue
        place = order[n, 0]
        at, run, runs = _ac(clean, at, lookup, table, first, last, low, place, out, frequency)
        if at < 0 or at > stops[interval]:
            return at if at < 0 else TRUNCATED, ends, notes, breaks
        if runs:
            _note(notes, n, runs)
        if run:
            # this block ends where it begins, and might have belonged to the run before
            joins = 0 < length < LONGEST_RUN and runs == 0 and _is_empty(out, place, first, last)
            if joins:
                _note(breaks, n - 1, 0)
        length = run
        if run:
            run -= 1
    if run:
        return DAMAGED, ends, notes, breaks
    ends[interval] = at
    return 0, ends, notes, breaks


@numba.njit(cache=True, nogil=True)
def _is_empty(out, place, first, last):  # type: ignore[no-untyped-def]
    found = 0
    for k in range(first, last + 1):
        found |= out[place, k]
    return found == 0


@numba.njit(cache=True, nogil=True)
def _ac(clean, at, lookup, table, first, last, low, place, out, frequency):  # type: ignore[no-untyped-def]
    """Returns the position (or what is wrong), how many blocks end here, this one included, or 0 where it has no end
    of its own, and the runs of zeros before that."""
    k, runs = first, 0
    while k <= last:
        window = _window(clean, at)
        entry = _code(window, lookup, table)
        if entry == 0:
            return DAMAGED, 0, 0
        length, symbol = entry >> 8, entry & 255
        zeros, size = symbol >> 4, symbol & 15
        frequency[table, symbol] += 1
        if size:
            k += zeros
            value = _amplitude(window, length, size) * (1 << low)
            if k > last or abs(value) > 32767:
                return DAMAGED, 0, 0
            out[place, k] = value
            at += length + size
            k += 1
            runs = 0
        elif zeros == 15:
            at += length
            k += 16
            runs += 1
            if k > last + 1:
                return DAMAGED, 0, 0
        else:
            extra = (window >> (32 - length - zeros)) & ((1 << zeros) - 1)
            return at + length + zeros, (1 << zeros) + extra, runs
    return at, 0, runs


@numba.njit(cache=True, nogil=True)
def refine_ac(clean, stops, lookup, layout, per_interval, band, out, frequency):  # type: ignore[no-untyped-def]
    """Decode bit `low` of AC coefficients whose higher bits are known; as `decode_ac`."""
    first, last, low = band
    order, table = layout[0], layout[1][0, 1]
    ends = np.zeros(len(stops), np.int64)
    notes, breaks = np.zeros((len(order) + 1, 2), np.int64), np.zeros((len(order) + 1, 2), np.int64)
    at = interval = run = length = corrections = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            if run:
                return DAMAGED, ends, notes, breaks
            ends[interval] = at
            at = stops[interval]
            interval += 1
            length = 0
        place = order[n, 0]
        k = first
        if run == 0:
            at, run, k, runs, added = _refine(clean, at, lookup, table, first, last, low, place, out, frequency)
            if at < 0 or at > stops[interval]:
                return at if at < 0 else TRUNCATED, ends, notes, breaks
            if runs:
                _note(notes, n, runs)
            joins = run and 0 < length < LONGEST_RUN and runs == 0 and not added
            if joins:
                _note(breaks, n - 1, corrections > MOST_CORRECTIONS)
            length = run
            corrections = 0
        if run:
            begin = at
            at = _correct(clean, at, k, last, low, place, out)
            corrections += at - begin
            run -= 1
            if run and corrections > MOST_CORRECTIONS:
                breaks[0, 1] = 1
            if at > stops[interval]:
                return TRUNCATED, ends, notes, breaks
    if run:
        return DAMAGED, ends, notes, breaks
    ends[interval] = at
    return 0, ends, notes, breaks


@numba.njit(cache=True, nogil=True)
def _refine(clean, at, lookup, table, first, last, low, place, out, frequency):  # type: ignore[no-untyped-def]
    """The coded part of a block. Returns the position (or what is wrong), how many blocks end here, the first
    coefficient that is left, the runs of zeros before that, and whether a coefficient was added."""
    k, runs, added = first, 0, False
    while k <= last:
        window = _window(clean, at)
        entry = _code(window, lookup, table)
        if entry == 0:
            return DAMAGED, 0, k, 0, False
        length, symbol = entry >> 8, entry & 255
        zeros, size = symbol >> 4, symbol & 15
        frequency[table, symbol] += 1
        if size > 1:
            return DAMAGED, 0, k, 0, False
        if size == 0 and zeros != 15:
            extra = (window >> (32 - length - zeros)) & ((1 << zeros) - 1)
            return at + length + zeros, (1 << zeros) + extra, k, runs, added
        at += length + size
        while k <= last:
            if out[place, k]:
                at = _correct(clean, at, k, k, low, place, out)
            else:
                zeros -= 1
                if zeros < 0:
                    break
            k += 1
        if size:
            if k > last:
                return DAMAGED, 0, k, 0, False
            positive = (window >> (31 - length)) & 1
            out[place, k] = (1 << low) if positive else -(1 << low)
            runs, added = 0, True
        else:
            if zeros >= 0:
                return DAMAGED, 0, k, 0, False
            runs += 1
        k += 1
    return at, 0, k, runs, added


@numba.njit(cache=True, nogil=True)
def _correct(clean, at, first, last, low, place, out):  # type: ignore[no-untyped-def]
    """Read the next bit of those of these coefficients that are not 0; returns the position."""
    for k in range(first, last + 1):
        value = out[place, k]
        if value:
            if (clean[at >> 3] >> (7 - (at & 7))) & 1:
                out[place, k] = value + (1 << low) if value > 0 else value - (1 << low)
            at += 1
    return at
