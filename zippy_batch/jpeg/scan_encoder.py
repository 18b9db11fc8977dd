"""Coefficients -> Huffman-coded JPEG scans, compiled by numba.

    coefficients --> tokenise_* --> tokens and how often each symbol comes --> write_tokens --> bytes of the scan

A token is a symbol of a Huffman table with the bits that follow it, or bits alone, or the end of a restart interval:

    bits 0..15 value, 16..20 how many bits of it, 21..28 symbol, 29..32 table (0..7), _BITS or _INTERVAL

What is written is what libjpeg writes, but for what `odd` says. Source: ITU-T T.81, Annexes F and G.

Letters: B blocks of all components, S components of a scan.
"""

from __future__ import annotations

import numba
import numpy as np

from zippy_batch.jpeg.scan_decoder import LONGEST_RUN

NO_CODE = -1
"""What is returned where a coefficient has no code."""

BLOCK_TOKENS = 5
"""Most tokens of one block, besides one for each coefficient that is not 0: DC, runs of 16 zeros, the end."""

_VALUE_BITS, _SYMBOL_AT, _TABLE_AT = 16, 21, 29
_BITS, _INTERVAL = 8, 9


@numba.njit(cache=True, nogil=True)
def _category(value):  # type: ignore[no-untyped-def]
    magnitude = abs(value)
    n = 0
    while magnitude:
        magnitude >>= 1
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _token(table, symbol, size, value):  # type: ignore[no-untyped-def]
    return np.int64(table) << _TABLE_AT | symbol << _SYMBOL_AT | size << _VALUE_BITS | value


@numba.njit(cache=True, nogil=True)
def _value_token(table, zeros, size, value):  # type: ignore[no-untyped-def]
    """The token of a value of `size` bits behind so many zeros."""
    if value < 0:
        value += (1 << size) - 1
    return _token(table, zeros << 4 | size, size, value)


@numba.njit(cache=True, nogil=True)
def tokenise_sequential(blocks, layout, per_interval, odd, tokens, frequency):  # type: ignore[no-untyped-def]
    """Tokens of a scan, of so many blocks in a restart interval or 0, whose layout is `markers.Layout`.

    blocks (B, 64) int16; blocks that have no place there are coded without a DC difference and without AC. odd (n, 2):
    blocks of the scan, ascending, and how many runs of 16 zeros stand before their end. Fills tokens, and adds to
    frequency (8, 256). Returns the number of tokens, or NO_CODE.
    """
    order, tables, _ = layout
    prediction = np.zeros(len(tables), np.int64)
    count = next_odd = largest = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            tokens[count] = np.int64(_INTERVAL) << _TABLE_AT
            count += 1
            prediction[:] = 0
        place, s = order[n, 0], order[n, 1]
        ac = tables[s, 1]
        dc = np.int64(blocks[place, 0]) if place >= 0 else prediction[s]
        size = _category(dc - prediction[s])
        largest = max(largest, size)
        tokens[count] = _value_token(tables[s, 0], 0, size & 15, dc - prediction[s])
        count += 1
        prediction[s] = dc
        before = 1
        for k in range(1, 64 if place >= 0 else 1):
            value = np.int64(blocks[place, k])
            if value:
                zeros = k - before
                while zeros > 15:
                    tokens[count] = _token(ac, 0xF0, 0, 0)
                    count += 1
                    zeros -= 16
                size = _category(value)
                largest = max(largest, size)
                tokens[count] = _value_token(ac, zeros, size & 15, value)
                count += 1
                before = k + 1
        if next_odd < len(odd) and odd[next_odd, 0] == n:
            for _ in range(min(odd[next_odd, 1], (64 - before) >> 4)):
                tokens[count] = _token(ac, 0xF0, 0, 0)
                count += 1
                before += 16
            next_odd += 1
        if before < 64:
            tokens[count] = _token(ac, 0, 0, 0)
            count += 1
    _count(tokens, count, frequency)
    return count if largest < 16 else NO_CODE


@numba.njit(cache=True, nogil=True)
def _count(tokens, count, frequency):  # type: ignore[no-untyped-def]
    for i in range(count):
        table = tokens[i] >> _TABLE_AT
        if table < _BITS:
            frequency[table, (tokens[i] >> _SYMBOL_AT) & 255] += 1


@numba.njit(cache=True, nogil=True)
def tokenise_dc(blocks, layout, per_interval, bits, tokens, frequency):  # type: ignore[no-untyped-def]
    """Tokens of a progressive scan of DC; bits are `high` and `low`: all bits from `low` on, or, where `high` is not
    0, bit `low` alone. As `tokenise_sequential`."""
    order, tables, _ = layout
    high, low = bits
    prediction = np.zeros(len(tables), np.int64)
    count = largest = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            tokens[count] = np.int64(_INTERVAL) << _TABLE_AT
            count += 1
            prediction[:] = 0
        place, s = order[n, 0], order[n, 1]
        dc = np.int64(blocks[place, 0]) >> low if place >= 0 else prediction[s]
        size = _category(dc - prediction[s])
        largest = max(largest, 0 if high else size)
        tokens[count] = (
            _token(_BITS, 0, 1, dc & 1) if high else _value_token(tables[s, 0], 0, size & 15, dc - prediction[s])
        )
        count += 1
        prediction[s] = dc
    _count(tokens, count, frequency)
    return count if largest < 16 else NO_CODE


@numba.njit(cache=True, nogil=True)
def tokenise_ac(blocks, layout, per_interval, band, unusual, tokens, frequency):  # type: ignore[no-untyped-def]
    """Tokens of a progressive scan of AC coefficients of one component: band is the first and the last of them and
    the lowest bit. unusual: odd as for `tokenise_sequential`; (n,) blocks, ascending, after which a run of
    ends stops; and the correction bits after which it does."""
    odd, breaks, _ = unusual
    first, last, low = band
    order, table = layout[0], layout[1][0, 1]
    count = run = next_odd = next_break = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            count = _end_run(table, run, tokens, count)
            run = 0
            tokens[count] = np.int64(_INTERVAL) << _TABLE_AT
            count += 1
        place = order[n, 0]
        runs = 0
        if next_odd < len(odd) and odd[next_odd, 0] == n:
            runs = odd[next_odd, 1]
            next_odd += 1
        run, count, ended = _ac(blocks, place, table, first, last, low, runs, run, tokens, count)
        if count < 0:
            return NO_CODE
        stop = next_break < len(breaks) and breaks[next_break] == n
        if stop:
            next_break += 1
        if ended:
            run += 1
            if run == LONGEST_RUN or stop:
                count = _end_run(table, run, tokens, count)
                run = 0
    count = _end_run(table, run, tokens, count)
    _count(tokens, count, frequency)
    return count


@numba.njit(cache=True, nogil=True)
def _end_run(table, run, tokens, count):  # type: ignore[no-untyped-def]
    """The end of so many blocks; returns the number of tokens."""
    if run == 0:
        return count
    size = _category(run) - 1
    tokens[count] = _token(table, size << 4, size, run - (1 << size))
    return count + 1


@numba.njit(cache=True, nogil=True)
def _ac(blocks, place, table, first, last, low, runs, run, tokens, count):  # type: ignore[no-untyped-def]
    """A block after `run` that end; returns how many those still are, the number of tokens, and whether it has an
    end."""
    before = first
    for k in range(first, last + 1):
        value = np.int64(blocks[place, k])
        magnitude = abs(value) >> low
        if magnitude == 0:
            continue
        count = _end_run(table, run, tokens, count)
        run = 0
        zeros = k - before
        while zeros > 15:
            tokens[count] = _token(table, 0xF0, 0, 0)
            count += 1
            zeros -= 16
        size = _category(magnitude)
        if size > 15:
            return 0, NO_CODE, False
        tokens[count] = _value_token(table, zeros, size, magnitude if value > 0 else -magnitude)
        count += 1
        before = k + 1
    for _ in range(min(runs, (last + 1 - before) >> 4)):
        count = _end_run(table, run, tokens, count)
        run = 0
        tokens[count] = _token(table, 0xF0, 0, 0)
        count += 1
        before += 16
    return run, count, before <= last


@numba.njit(cache=True, nogil=True)
def refine_ac(blocks, layout, per_interval, band, unusual, tokens, frequency):  # type: ignore[no-untyped-def]
    """Tokens of a progressive scan that codes bit `low` of AC coefficients whose higher bits are known. As
    `tokenise_ac`."""
    odd, breaks, most = unusual
    first, last, low = band
    order, table = layout[0], layout[1][0, 1]
    # a run's token stands before the correction bits of its blocks, and is written when its length is known
    count = run = corrections = place_of_run = next_odd = next_break = 0
    for n in range(len(order)):
        if per_interval and n and n % per_interval == 0:
            _end_run(table, run, tokens, place_of_run)
            run = corrections = 0
            tokens[count] = np.int64(_INTERVAL) << _TABLE_AT
            count += 1
        place = order[n, 0]
        runs = 0
        if next_odd < len(odd) and odd[next_odd, 0] == n:
            runs = odd[next_odd, 1]
            next_odd += 1
        before, added = _refine(blocks, place, table, first, last, low, runs, tokens, count)
        if added > count:
            _end_run(table, run, tokens, place_of_run)
            run = corrections = 0
        count = added
        if before <= last:
            if run == 0:
                place_of_run = count
                count += 1
            run += 1
            added = _corrections(blocks, place, before, last, low, tokens, count)
            corrections += added & 63
            count += added >> 6
        stop = next_break < len(breaks) and breaks[next_break] == n
        if stop:
            next_break += 1
        if stop or run == LONGEST_RUN or corrections > most:
            _end_run(table, run, tokens, place_of_run)
            run = corrections = 0
    _end_run(table, run, tokens, place_of_run)
    _count(tokens, count, frequency)
    return count


@numba.njit(cache=True, nogil=True)
def _refine(blocks, place, table, first, last, low, runs, tokens, count):  # type: ignore[no-untyped-def]
    """The coded part of a block. Returns its first coefficient that is left, and the number of tokens."""
    before, zeros, k = first, 0, first
    while k <= last:
        value = np.int64(blocks[place, k])
        magnitude = abs(value) >> low
        if magnitude == 1:
            # runs of 16 zeros first, each with the correction bits that it passes
            for _ in range(zeros >> 4):
                before, count = _run(blocks, place, table, before, low, tokens, count)
            tokens[count] = _value_token(table, zeros & 15, 1, 1 if value > 0 else -1)
            count += 1 + (_corrections(blocks, place, before, k - 1, low, tokens, count + 1) >> 6)
            before, zeros = k + 1, 0
        elif magnitude == 0:
            zeros += 1
        k += 1
    for _ in range(min(runs, zeros >> 4)):
        before, count = _run(blocks, place, table, before, low, tokens, count)
    return before, count


@numba.njit(cache=True, nogil=True)
def _run(blocks, place, table, before, low, tokens, count):  # type: ignore[no-untyped-def]
    """A run of 16 zeros; returns the coefficient after it, and the number of tokens."""
    tokens[count] = _token(table, 0xF0, 0, 0)
    k, zeros = before, 0
    while zeros < 16:
        if abs(np.int64(blocks[place, k])) >> low == 0:
            zeros += 1
        k += 1
    return k, count + 1 + (_corrections(blocks, place, before, k - 1, low, tokens, count + 1) >> 6)


@numba.njit(cache=True, nogil=True)
def _corrections(blocks, place, first, last, low, tokens, count):  # type: ignore[no-untyped-def]
    """Bit `low` of those of these coefficients that have higher bits; returns tokens * 64 + bits."""
    bits = size = value = made = 0
    for k in range(first, last + 1):
        magnitude = abs(np.int64(blocks[place, k])) >> low
        if magnitude > 1:
            value = value << 1 | (magnitude & 1)
            size += 1
            bits += 1
            if size == 16:
                tokens[count + made] = _token(_BITS, 0, size, value)
                made += 1
                size = value = 0
    if size:
        tokens[count + made] = _token(_BITS, 0, size, value)
        made += 1
    return made << 6 | bits


@numba.njit(cache=True, nogil=True)
def write_tokens(tokens, codes, padding, endings, extra):  # type: ignore[no-untyped-def]
    """Bytes of a scan, uint8; of length 0 where a symbol has no code.

    codes (8, 256) as `tables.codes_of` makes them; padding: the bit that fills up the last byte of an interval, but
    for those in endings (n, 3), ascending: interval, bits, and how many bytes of extra follow.
    """
    bits = intervals = 0
    count = len(tokens)
    for i in range(count):
        table = tokens[i] >> _TABLE_AT
        bits += (tokens[i] >> _VALUE_BITS) & 31
        if table < _BITS:
            length = codes[table, (tokens[i] >> _SYMBOL_AT) & 255] & 31
            if length == 0:
                return np.empty(0, np.uint8)
            bits += length
        elif table == _INTERVAL:
            intervals += 1
    # every byte may be 0xFF, which takes two
    out = np.empty(bits // 4 + 4 * (intervals + 1) + 2 * len(extra), np.uint8)
    at = window = held = interval = next_ending = used = 0
    for i in range(count + 1):
        table = tokens[i] >> _TABLE_AT if i < count else _INTERVAL
        if table == _INTERVAL:
            odd = next_ending < len(endings) and endings[next_ending, 0] == interval
            fill = endings[next_ending, 1] if odd else (255 if padding else 0)
            at = _fill(out, at, window, held, fill)
            window = held = 0
            if odd:
                for _ in range(endings[next_ending, 2]):
                    at = _put(out, at, extra[used])
                    used += 1
                next_ending += 1
            if i < count:
                out[at] = 0xFF
                out[at + 1] = 0xD0 + (interval & 7)
                at += 2
                interval += 1
            continue
        if table < _BITS:
            code = codes[table, (tokens[i] >> _SYMBOL_AT) & 255]
            window = window << (code & 31) | code >> 5
            held += code & 31
        size = (tokens[i] >> _VALUE_BITS) & 31
        window = window << size | tokens[i] & 0xFFFF
        held += size
        while held >= 8:
            held -= 8
            at = _put(out, at, window >> held & 255)
        window &= 255
    return out[:at]


@numba.njit(cache=True, nogil=True)
def _put(out, at, byte):  # type: ignore[no-untyped-def]
    """A byte, stuffed; returns the position after it."""
    out[at] = byte
    if byte == 0xFF:
        out[at + 1] = 0
        return at + 2
    return at + 1


@numba.njit(cache=True, nogil=True)
def _fill(out, at, window, held, fill):  # type: ignore[no-untyped-def]
    """The last byte of an interval, with the low bits of `fill`; returns the position after it."""
    if held == 0:
        return at
    free = 8 - held
    return _put(out, at, (window << free | fill & ((1 << free) - 1)) & 255)
