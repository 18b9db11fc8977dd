"""Huffman-coded JPEG scans <-> coefficients, compiled by numba.

Every index is checked here, because numba does not: the bytes and the tables come from files that may be hostile.
Source: ITU-T T.81, Annexes C, F and K.

Letters: B blocks of all components, S components of a scan.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

TABLE_COLUMNS = 9
"""A scan's components are rows of: horizontal and vertical blocks in an MCU, width and height of the grid in blocks,
first block, DC table, AC table (0..3), width and height of what the picture covers."""

# return values of `decode_scan`
TRUNCATED, BAD_CODE, BAD_VALUE, NO_RESTART = -1, -2, -3, -4


@numba.njit(cache=True, nogil=True)
def decoder_table(counts, values):  # type: ignore[no-untyped-def]
    """Codes per length (16,) and their values (256,) -> (3, 17) int64: largest code of each length or -1, index of its
    first value, its first code; and a table (256,) of length * 256 + value for codes of up to eight bits, else 0."""
    lengths = np.full((3, 17), -1, np.int64)
    short = np.zeros(256, np.int64)
    code, k = 0, 0
    for length in range(1, 17):
        n = counts[length - 1]
        lengths[1, length] = k
        lengths[2, length] = code
        for _ in range(n):
            if length <= 8:
                first = code << (8 - length)
                for i in range(first, min(256, first + (1 << (8 - length)))):
                    short[i] = (length << 8) | values[min(k, 255)]
            code += 1
            k += 1
        if n:
            lengths[0, length] = code - 1
        code <<= 1
    return lengths, short


@numba.njit(cache=True, nogil=True)
def decode_scan(data, at, components, mcus_high, mcus_wide, restart, lengths, short, values, out):  # type: ignore[no-untyped-def]
    """Decode a scan that begins at data[at].

    components (S, TABLE_COLUMNS); lengths (8, 3, 17), short (8, 256) and values (8, 256) of the DC tables 0..3 and the
    AC tables 4..7; out (B, 64) int16, zeros. Returns the position after the scan (or a negative reason), whether blocks
    outside the picture are all alike (no DC difference, no AC), and the padding bits: 1 all ones, 0 all zeros, 2 none.
    """
    count = len(components)
    prediction = np.zeros(count, np.int64)
    size = len(data)
    window = np.uint64(0)
    bits = 0
    plain = True
    padding = 2
    marker = 0
    total = mcus_high * mcus_wide
    for mcu in range(total):
        if restart and mcu and mcu % restart == 0:
            # the rest of a byte is padding, then the marker
            rest = np.int64(window & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))
            if bits >= 8:
                return NO_RESTART, plain, padding
            if bits:
                kind = 1 if rest == (1 << bits) - 1 else (0 if rest == 0 else 3)
                padding = kind if padding in (2, kind) else 3
            if at + 1 >= size or data[at] != 0xFF or data[at + 1] != 0xD0 + marker:
                return NO_RESTART, plain, padding
            at += 2
            marker = (marker + 1) & 7
            bits = 0
            prediction[:] = 0
        row, column = mcu // mcus_wide, mcu % mcus_wide
        for s in range(count):
            h, v = components[s, 0], components[s, 1]
            for b in range(h * v):
                y, x = row * v + b // h, column * h + b % h
                block = components[s, 4] + y * components[s, 2] + x
                outside = y >= components[s, 8] or x >= components[s, 7]
                k = 0
                while k < 64:
                    table = components[s, 5] if k == 0 else 4 + components[s, 6]
                    # a code has up to 16 bits and up to 15 more follow it
                    while bits < 32 and at < size:
                        byte = data[at]
                        if byte == 0xFF:
                            if at + 1 >= size or data[at + 1] != 0:
                                break
                            at += 1
                        at += 1
                        window = (window << np.uint64(8)) | np.uint64(byte)
                        bits += 8
                    # beyond the data there are ones, which are checked when bits are taken
                    if bits >= 16:
                        peek = np.int64((window >> np.uint64(bits - 16)) & np.uint64(0xFFFF))
                    else:
                        peek = np.int64((window << np.uint64(16 - bits)) & np.uint64(0xFFFF)) | ((1 << (16 - bits)) - 1)
                    entry = short[table, peek >> 8]
                    if entry:
                        length, symbol = entry >> 8, entry & 255
                    else:
                        length = 1
                        while length <= 16 and (peek >> (16 - length)) > lengths[table, 0, length]:
                            length += 1
                        if length > 16:
                            return (TRUNCATED if bits < 16 else BAD_CODE), plain, padding
                        index = lengths[table, 1, length] + (peek >> (16 - length)) - lengths[table, 2, length]
                        if index < 0 or index > 255:
                            return BAD_CODE, plain, padding
                        symbol = np.int64(values[table, index])
                    category = symbol & 15
                    if k == 0 and symbol > 15:
                        return BAD_VALUE, plain, padding
                    if bits < length + category:
                        return TRUNCATED, plain, padding
                    bits -= length
                    if k:
                        if category == 0 and symbol != 0xF0:
                            # end of block; runs without a value other than of 16 zeros are not sequential JPEG
                            if symbol:
                                return BAD_VALUE, plain, padding
                            break
                        k += symbol >> 4
                        if k > 63:
                            return BAD_VALUE, plain, padding
                    if category:
                        bits -= category
                        value = np.int64((window >> np.uint64(bits)) & np.uint64((1 << category) - 1))
                        if value < 1 << (category - 1):
                            value -= (1 << category) - 1
                        if outside:
                            plain = False
                        if k == 0:
                            prediction[s] += value
                            if prediction[s] > 32767 or prediction[s] < -32767:
                                return BAD_VALUE, plain, padding
                        else:
                            out[block, k] = value
                    if k == 0:
                        out[block, 0] = prediction[s]
                    k += 1
    # bytes taken ahead of the last code are given back
    while bits >= 8:
        at -= 1
        if data[at] == 0 and data[at - 1] == 0xFF:
            at -= 1
        bits -= 8
        window >>= np.uint64(8)
    if bits:
        rest = np.int64(window & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))
        kind = 1 if rest == (1 << bits) - 1 else (0 if rest == 0 else 3)
        padding = kind if padding in (2, kind) else 3
    return at, plain, padding


@numba.njit(cache=True, nogil=True)
def _category(value):  # type: ignore[no-untyped-def]
    magnitude = abs(value)
    n = 0
    while magnitude:
        magnitude >>= 1
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def encode_scan(coefficients, components, mcus_high, mcus_wide, restart, codes, lengths, frequency, padding, out):  # type: ignore[no-untyped-def]
    """Encode a scan into out, or, where out is empty, only count its symbols in frequency (8, 256).

    coefficients (B, 64); blocks outside a component's grid are coded without a DC difference and without AC. codes and
    lengths (8, 256) of the DC tables 0..3 and the AC tables 4..7; padding: the bit that bytes are filled with. Returns
    the bytes written, or -1 where a coefficient has no code.
    """
    count = len(components)
    counting = len(out) == 0
    prediction = np.zeros(count, np.int64)
    window = np.uint64(0)
    bits, at, marker = 0, 0, 0
    total = mcus_high * mcus_wide
    for mcu in range(total + 1):
        if mcu == total or (restart and mcu and mcu % restart == 0):
            if not counting and bits:
                free = 8 - bits
                byte = np.int64((window << np.uint64(free)) & np.uint64(255))
                if padding:
                    byte |= (1 << free) - 1
                out[at] = byte
                at += 1
                if byte == 0xFF:
                    out[at] = 0
                    at += 1
            bits = 0
            prediction[:] = 0
            if mcu == total:
                break
            if not counting:
                out[at] = 0xFF
                out[at + 1] = 0xD0 + marker
                at += 2
                marker = (marker + 1) & 7
        row, column = mcu // mcus_wide, mcu % mcus_wide
        for s in range(count):
            h, v = components[s, 0], components[s, 1]
            for b in range(h * v):
                y, x = row * v + b // h, column * h + b % h
                outside = y >= components[s, 3] or x >= components[s, 2]
                block = 0 if outside else components[s, 4] + y * components[s, 2] + x
                last = 0
                if not outside:
                    last = 63
                    while last > 0 and coefficients[block, last] == 0:
                        last -= 1
                k = run = 0
                # the end-of-block symbol comes as one more turn, where the last coefficient is not the 64th
                while k < 64:
                    value = np.int64(0)
                    if k == 0:
                        if not outside:
                            value = np.int64(coefficients[block, 0]) - prediction[s]
                            prediction[s] += value
                        table = components[s, 5]
                        symbol = category = _category(value)
                        k = 1
                    else:
                        table = 4 + components[s, 6]
                        if k > last:
                            symbol = category = 0
                            k = 64
                        else:
                            value = np.int64(coefficients[block, k])
                            if value == 0 and run < 15:
                                run += 1
                                k += 1
                                continue
                            category = _category(value)
                            symbol = (run << 4) | category
                            run = 0
                            k += 1
                    if category > 15:
                        return -1
                    if counting:
                        frequency[table, symbol] += 1
                        continue
                    length = lengths[table, symbol]
                    if length == 0:
                        return -1
                    window = (window << np.uint64(length)) | np.uint64(codes[table, symbol])
                    if value < 0:
                        value += (1 << category) - 1
                    window = (window << np.uint64(category)) | np.uint64(value)
                    bits += length + category
                    while bits >= 8:
                        bits -= 8
                        byte = np.int64((window >> np.uint64(bits)) & np.uint64(255))
                        out[at] = byte
                        at += 1
                        if byte == 0xFF:
                            out[at] = 0
                            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def optimal_table(frequency):  # type: ignore[no-untyped-def]
    """Frequencies (256,) -> codes per length (16,) and values in code order (256,) with their number, as libjpeg makes
    them: T.81 K.2, where of equally rare symbols the one of the highest value is merged first, and one code of all ones
    is reserved.
    """
    symbols = np.empty(257, np.int64)
    weight = np.empty(257, np.int64)
    n = 0
    for i in range(256):
        if frequency[i]:
            symbols[n], weight[n] = i, frequency[i]
            n += 1
    symbols[n], weight[n] = 256, 1
    n += 1
    size = np.zeros(n, np.int64)
    following = np.full(n, -1, np.int64)
    while True:
        first = second = -1
        for i in range(n):
            if weight[i] and (first < 0 or weight[i] <= weight[first]):
                first = i
        for i in range(n):
            if weight[i] and i != first and (second < 0 or weight[i] <= weight[second]):
                second = i
        if second < 0:
            break
        weight[first] += weight[second]
        weight[second] = 0
        i = first
        while True:
            size[i] += 1
            if following[i] < 0:
                break
            i = following[i]
        following[i] = second
        i = second
        while i >= 0:
            size[i] += 1
            i = following[i]
    longest = max(17, size.max() + 1)
    lengths = np.zeros(longest + 1, np.int64)
    for i in range(n):
        lengths[size[i]] += 1
    # no code of more than 16 bits: pairs of the longest move up, beside a split shorter one
    for length in range(longest, 16, -1):
        while lengths[length] > 0:
            shorter = length - 2
            while lengths[shorter] == 0:
                shorter -= 1
            lengths[length] -= 2
            lengths[length - 1] += 1
            lengths[shorter + 1] += 2
            lengths[shorter] -= 1
    length = 16
    while length > 0 and lengths[length] == 0:
        length -= 1
    lengths[length] -= 1
    values = np.zeros(256, np.uint8)
    k = 0
    for length in range(1, longest + 1):
        for i in range(n - 1):
            if size[i] == length:
                values[k] = symbols[i]
                k += 1
    return lengths[1:17], values, k


def codes(counts: NDArray[np.integer], values: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes per length (16,) and values in code order -> code and length (256,) of every value; length 0: no code."""
    code, length = np.zeros(256, np.int64), np.zeros(256, np.int64)
    _fill_codes(np.asarray(counts, np.int64), np.asarray(values, np.uint8), code, length)
    return code, length


@numba.njit(cache=True, nogil=True)
def _fill_codes(counts, values, code, length):  # type: ignore[no-untyped-def]
    following, k = 0, 0
    for n in range(1, 17):
        for _ in range(counts[n - 1]):
            if k < len(values):
                code[values[k]] = following
                length[values[k]] = n
            following += 1
            k += 1
        following <<= 1
