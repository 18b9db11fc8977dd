"""Coefficients <-> rANS states under mixtures of three logistic distributions, in integers.

For every coefficient the network gives eight numbers (`network.PARAMETERS`): three means, three scales, two logits.
They become

    mu     = mean * unit / step                          in 1/64 of a quantisation step
    scale  = 2^(index / 8 - 5) steps, index 0..112       (in octaves: scale + log2(unit / step))
    weight = T[l1], (1 - T[l1]) * T[l2], the rest        in 1/65536, T the logistic function

and the cumulative frequencies of the values lo..hi around the means and of an escape, which add up to 65536:

    C(lo) = 0,   C(x) = floor((65535 - W) * sum_k weight_k F((x - 1/2 - mu_k) / scale_k)) + x - lo,   C(hi + 1) = 65535

with W = hi - lo + 1 and F the logistic function again, from a table, linear in between. No value between lo and hi has
a frequency of 0. A value outside is coded as escape, then as one symbol of 16 bits: value + 32768.

The last coefficient of a block is known not to be 0, and its distribution is without it: with z = C(1) - C(0),

    C'(x) = floor((C(x) - (z where x > 0)) * 65535 / (65535 - z))

What the end of a block is coded with is simpler: 64 logits, one per place (`end_intervals`). States and bytes are those
of `rans.py`, one lane per image.

The kernels exist twice: compiled by numba, which is what runs, and in Python integers (`distribution`,
`end_distribution`), which is the reference. Tests hold one against the other. Source: Salimans et al. 2017,
arXiv:1701.05517 (discretised logistic mixtures).

Letters: R rows, each a block of some image; G coefficients of a group; N images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from zippy_batch.codecs.exact.features import log2_steps
from zippy_batch.codecs.exact.network import ENDS, MIXTURE, SCALE_OCTAVES

OUT_LIMIT = 8191
"""Largest magnitude of the network's integer outputs."""
MEAN_BITS, SCALE_BITS, LOGIT_BITS, END_BITS = 10, 7, 4, 5
"""Outputs are real values times 2^this: means in units, scales in octaves, logits, logits of ends."""
UNIT_BITS = 10
"""Units are powers of two up to 2^UNIT_BITS."""
VALUE_SPAN = 1100
"""lo and hi stay within +-VALUE_SPAN: what an 8-bit picture has at a step of 1."""
ESCAPE = 65535
"""Start of the escape's interval, which has a frequency of 1."""

_LOW = round(SCALE_OCTAVES[0] * 8)
SCALE_STEPS = round(SCALE_OCTAVES[1] * 8) - _LOW + 1
_SCALE = np.exp2((np.arange(SCALE_STEPS) + _LOW) / 8)
# F's table has 64 entries per unit of its argument z, -16..16; z comes in 2^-14
_ENTRY_BITS, _Z_LIMIT = 8, 16 << 14
# no entry of these tables is so near to a half that the last bits of a library's exp could turn its rounding
LOGISTIC = np.rint((1 << 24) / (1 + np.exp(-(np.arange(2049) - 1024) / 64))).astype(np.int64)
LOGISTIC[0], LOGISTIC[-1] = 0, 1 << 24
WEIGHT = np.rint(65536 / (1 + np.exp(-(np.arange(256) - 128) / 16))).astype(np.int64)
SLOPE = np.rint(np.exp2(28.0) / _SCALE).astype(np.int64)
"""z in 2^-14 = distance in 1/64 steps * SLOPE[scale index] >> 20."""
RADIUS = np.ceil(10 * _SCALE).astype(np.int64) + 2
"""How far lo and hi reach from a mean."""
EXPONENTIAL = np.rint((1 << 20) * np.exp(-np.arange(512) / 32)).astype(np.int64)
"""Weight of an end whose logit lies so far below the largest, in 1/32."""


@dataclass(frozen=True)
class Quantisers:
    """What turns a group's outputs into distributions: per image and coefficient, from its quantisation step."""

    step: NDArray[np.int64]
    """(N, G) quantisation steps."""
    octaves: NDArray[np.int64]
    """(N, G) 128 * log2(unit / step)."""
    unit: NDArray[np.int64]
    """(G,) log2 of the units."""

    @property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """As the kernels want them."""
        return self.step, self.octaves, self.unit

    @staticmethod
    def of(steps: NDArray[np.integer], unit: NDArray[np.integer]) -> Quantisers:
        step: NDArray[np.int64] = np.array(steps, np.int64, order="C")
        units: NDArray[np.int64] = np.asarray(unit, np.int64)
        return Quantisers(step, (units << SCALE_BITS) - log2_steps(step), units)


def distribution(
    accumulated: NDArray[np.int64], shift: NDArray[np.int64], step: int, octaves: int, unit: int, not_zero: bool
) -> tuple[int, int, Callable[[int], int]]:
    """One coefficient's outputs (PARAMETERS,), before rescaling -> lo, hi and the cumulative frequency C(x), or, where
    it is known not to be 0, C'(x)."""
    out = [_rescale(int(a), int(s)) for a, s in zip(accumulated, shift, strict=True)]
    mu = [((m << unit) + 8 * step) // (16 * step) for m in out[:MIXTURE]]
    index = [max(0, min(SCALE_STEPS - 1, ((s + octaves + 8) >> 4) - _LOW)) for s in out[MIXTURE : 2 * MIXTURE]]
    first, second = (int(WEIGHT[max(0, min(255, v + 128))]) for v in out[2 * MIXTURE :])
    second = ((65536 - first) * second) >> 16
    weight = [first, second, 65536 - first - second]
    reach = [int(RADIUS[i]) for i in index]
    lo = max(-VALUE_SPAN, min(VALUE_SPAN, min((m >> 6) - r for m, r in zip(mu, reach, strict=True))))
    hi = max(-VALUE_SPAN, min(VALUE_SPAN, max((m >> 6) + r for m, r in zip(mu, reach, strict=True))))

    def cumulative(x: int) -> int:
        if x <= lo:
            return 0
        if x > hi:
            return ESCAPE
        total = 0
        for k in range(MIXTURE):
            z = ((64 * x - 32 - mu[k]) * int(SLOPE[index[k]])) >> 20
            at = max(0, min(2 * _Z_LIMIT - 1, z + _Z_LIMIT))
            entry, rest = at >> _ENTRY_BITS, at & 255
            f = int(LOGISTIC[entry]) + ((int(LOGISTIC[entry + 1] - LOGISTIC[entry]) * rest) >> _ENTRY_BITS)
            total += weight[k] * f
        return ((total * (ESCAPE - (hi - lo + 1))) >> 40) + x - lo

    def cumulative_not_zero(x: int) -> int:
        zero = cumulative(1) - cumulative(0)
        return (cumulative(x) - (zero if x > 0 else 0)) * ESCAPE // (ESCAPE - zero)

    return lo, hi, cumulative_not_zero if not_zero and lo < 0 < hi else cumulative


def end_distribution(accumulated: NDArray[np.int64], shift: NDArray[np.int64]) -> list[int]:
    """The outputs of a block's end (ENDS,), before rescaling -> ENDS + 1 cumulative frequencies, from 0 to 65536."""
    out = [_rescale(int(a), int(s)) for a, s in zip(accumulated, shift, strict=True)]
    weight = [int(EXPONENTIAL[min(len(EXPONENTIAL) - 1, max(out) - v)]) for v in out]
    return [sum(weight[:i]) * (65536 - ENDS) // sum(weight) + i for i in range(ENDS + 1)]


def _rescale(accumulated: int, shift: int) -> int:
    return max(-OUT_LIMIT, min(OUT_LIMIT, (accumulated + (1 << (shift - 1))) >> shift))


_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@dataclass(frozen=True)
class Scale:
    """What turns the sums of a step's last layer into its outputs: floor((sum + offset) * factor), clamped."""

    offset: NDArray[np.float32]
    """The bias and half of what is divided by."""
    factor: NDArray[np.float32]
    """2^-shift"""

    @property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As the kernels want them."""
        return self.offset, self.factor

    @staticmethod
    def of(bias: NDArray[np.integer], shift: NDArray[np.integer]) -> Scale:
        wide = np.asarray(shift, np.int64)
        return Scale((bias + (np.int64(1) << (wide - 1))).astype(np.float32), np.exp2(-wide).astype(np.float32))


@dataclass(frozen=True)
class Outputs:
    """What blocks are coded with."""

    sums: NDArray[np.float32]
    """(rows, outputs) of the last layer, without its bias."""
    scale: Scale


@_jit
def _rescale_row(sums, scale, out):  # type: ignore[no-untyped-def]
    offset, factor = scale
    most = np.float32(OUT_LIMIT)
    for i in range(len(sums)):
        out[i] = np.int32(min(most, max(-most, np.floor((sums[i] + offset[i]) * factor[i]))))


@_jit
def _component(mean, scale, step, octaves, unit):  # type: ignore[no-untyped-def]
    """mu, and the index of the scale."""
    # a correctly rounded quotient of numbers below 2^24 is never rounded up to a whole number
    mu = np.int64(np.floor(np.float64((np.int64(mean) << unit) + 8 * step) / np.float64(16 * step)))
    index = ((scale + octaves + 8) >> 4) - _LOW
    return mu, min(SCALE_STEPS - 1, max(0, index))


@_jit
def _prepare(out, j, size, step, octaves, unit):  # type: ignore[no-untyped-def]
    """Of one coefficient: mu, slope and weight of each component; lo, hi; and a value to begin a search at."""
    first = WEIGHT[min(255, max(0, out[2 * MIXTURE * size + j] + 128))]
    second = WEIGHT[min(255, max(0, out[(2 * MIXTURE + 1) * size + j] + 128))]
    second = ((65536 - first) * second) >> 16
    third = 65536 - first - second
    mu_1, index_1 = _component(out[j], out[3 * size + j], step, octaves, unit)
    mu_2, index_2 = _component(out[size + j], out[4 * size + j], step, octaves, unit)
    mu_3, index_3 = _component(out[2 * size + j], out[5 * size + j], step, octaves, unit)
    reach_1, reach_2, reach_3 = RADIUS[index_1], RADIUS[index_2], RADIUS[index_3]
    lo = min((mu_1 >> 6) - reach_1, (mu_2 >> 6) - reach_2, (mu_3 >> 6) - reach_3)
    hi = max((mu_1 >> 6) + reach_1, (mu_2 >> 6) + reach_2, (mu_3 >> 6) + reach_3)
    lo = max(-VALUE_SPAN, min(VALUE_SPAN, lo))
    hi = max(-VALUE_SPAN, min(VALUE_SPAN, hi))
    likely = mu_1 if first >= max(second, third) else mu_2 if second >= third else mu_3
    parts = (mu_1, SLOPE[index_1], first, mu_2, SLOPE[index_2], second, mu_3, SLOPE[index_3], third)
    return parts, lo, hi, min(hi, max(lo, (likely + 32) >> 6))


@_jit
def _share(distance, slope):  # type: ignore[no-untyped-def]
    """F in 2^-24, of a distance in 1/64 steps."""
    at = min(2 * _Z_LIMIT - 1, max(0, ((distance * slope) >> 20) + _Z_LIMIT))
    entry = at >> _ENTRY_BITS
    return LOGISTIC[entry] + (((LOGISTIC[entry + 1] - LOGISTIC[entry]) * (at & 255)) >> _ENTRY_BITS)


@_jit
def _cumulative(x, lo, hi, parts, zero):  # type: ignore[no-untyped-def]
    """C(x) where zero is 0, else C'(x) with zero = C(1) - C(0)."""
    if x <= lo:
        return np.int64(0)
    if x > hi:
        return np.int64(ESCAPE)
    mu_1, slope_1, first, mu_2, slope_2, second, mu_3, slope_3, third = parts
    at = 64 * x - 32
    total = first * _share(at - mu_1, slope_1) + second * _share(at - mu_2, slope_2)
    total += third * _share(at - mu_3, slope_3)
    c = ((total * (ESCAPE - (hi - lo + 1))) >> 40) + x - lo
    if zero:
        c = (c - (zero if x > 0 else 0)) * ESCAPE // (ESCAPE - zero)
    return c


@_jit
def _zero(lo, hi, parts):  # type: ignore[no-untyped-def]
    """Frequency of 0, where other values have some."""
    nothing = np.int64(0)
    if lo >= 0 or hi <= 0:
        return nothing
    return _cumulative(np.int64(1), lo, hi, parts, nothing) - _cumulative(nothing, lo, hi, parts, nothing)


@_jit
def intervals(sums, scale, where, first, how, coefficients, found, room):  # type: ignore[no-untyped-def]
    """Frequency intervals of known coefficients.

    sums (rows, PARAMETERS * G) of the coefficients first..first+G-1, and the arrays of `Scale` and of `Quantisers`;
    where: numbers of the blocks (rows,), and of all blocks their images and their ends (R,); coefficients (R, 64).
    found: starts and frequencies (uint16), which are filled in coding order from the one of a given number on; an
    escape has the start ESCAPE. Adds to room (N,) the bytes that `push` may take. Returns the number after the last.
    """
    rows, image, ends = where
    step, octaves, unit = how
    start, frequency, at = found
    size = len(unit)
    out = np.empty(sums.shape[1], np.int32)
    for p in range(len(rows)):
        r = rows[p]
        n, end = image[r], ends[r]
        _rescale_row(sums[p], scale, out)
        for j in range(min(size, end - first + 1)):
            parts, lo, hi, _ = _prepare(out, j, size, step[n, j], octaves[n, j], unit[j])
            x = np.int64(coefficients[r, first + j])
            room[n] += 2
            if x < lo or x > hi:
                start[at], frequency[at] = ESCAPE, 1
                room[n] += 2
            else:
                zero = _zero(lo, hi, parts) if first + j == end and end else np.int64(0)
                begin = _cumulative(x, lo, hi, parts, zero)
                start[at], frequency[at] = begin, _cumulative(x + 1, lo, hi, parts, zero) - begin
            at += 1
    return at


@_jit
def pop(sums, scale, where, first, how, lanes, coefficients):  # type: ignore[no-untyped-def]
    """Pop the coefficients first..first+G-1 of blocks, up to their ends, into coefficients (R, 64). As `intervals`;
    lanes: the bytes of all images, and of each (N,) where its next ones begin and end, and its state, which are
    advanced in place.
    """
    rows, image, ends = where
    step, octaves, unit = how
    data, begin, end, state = lanes
    low = np.uint64(1 << 24)
    size = len(unit)
    out = np.empty(sums.shape[1], np.int32)
    for p in range(len(rows)):
        r = rows[p]
        n = image[r]
        x, at, stop = state[n], begin[n], end[n]
        _rescale_row(sums[p], scale, out)
        for j in range(min(size, ends[r] - first + 1)):
            parts, lo, hi, value = _prepare(out, j, size, step[n, j], octaves[n, j], unit[j])
            slot = np.int64(x & np.uint64(65535))
            if slot == ESCAPE:
                x = x >> np.uint64(16)
                while x < low and at < stop:
                    x = (x << np.uint64(8)) | np.uint64(data[at])
                    at += 1
                value = np.int64(x & np.uint64(65535)) - 32768
                x >>= np.uint64(16)
            else:
                zero = _zero(lo, hi, parts) if first + j == ends[r] and ends[r] else np.int64(0)
                value, begun, after = _find(slot, value, lo, hi, parts, zero)
                x = np.uint64(after - begun) * (x >> np.uint64(16)) + np.uint64(slot - begun)
            coefficients[r, first + j] = value
            while x < low and at < stop:
                x = (x << np.uint64(8)) | np.uint64(data[at])
                at += 1
        state[n], begin[n] = x, at


@_jit
def _find(slot, value, lo, hi, parts, zero):  # type: ignore[no-untyped-def]
    """The value whose interval holds the slot, and that interval: bracketed from a likely one on, then halved."""
    left, right = value, min(hi + 1, value + 1)
    begun, after = _cumulative(left, lo, hi, parts, zero), _cumulative(right, lo, hi, parts, zero)
    reach = 1
    while after <= slot:
        left, begun = right, after
        right = min(hi + 1, right + reach)
        after = _cumulative(right, lo, hi, parts, zero)
        reach *= 2
    while begun > slot:
        right, after = left, begun
        left = max(lo, left - reach)
        begun = _cumulative(left, lo, hi, parts, zero)
        reach *= 2
    while right - left > 1:
        middle = (left + right) >> 1
        c = _cumulative(middle, lo, hi, parts, zero)
        if c <= slot:
            left, begun = middle, c
        else:
            right, after = middle, c
    return left, begun, after


@_jit
def _weigh_ends(sums, scale, out, weight):  # type: ignore[no-untyped-def]
    """Fills the weights (ENDS,) of a block's ends; returns their sum."""
    _rescale_row(sums, scale, out)
    most = np.int32(-OUT_LIMIT)
    for i in range(ENDS):
        most = max(most, out[i])
    total = np.int64(0)
    for i in range(ENDS):
        weight[i] = EXPONENTIAL[min(len(EXPONENTIAL) - 1, most - out[i])]
        total += weight[i]
    return total


@_jit
def end_intervals(sums, scale, where, found, room):  # type: ignore[no-untyped-def]
    """As `intervals`, of the ends of blocks: sums (rows, ENDS)."""
    rows, image, ends = where
    start, frequency, at = found
    out, weight = np.empty(ENDS, np.int32), np.empty(ENDS, np.int64)
    for p in range(len(rows)):
        total = _weigh_ends(sums[p], scale, out, weight)
        value = ends[rows[p]]
        before = np.int64(0)
        for i in range(value):
            before += weight[i]
        begin = before * (65536 - ENDS) // total + value
        start[at] = begin
        frequency[at] = (before + weight[value]) * (65536 - ENDS) // total + value + 1 - begin
        room[image[rows[p]]] += 2
        at += 1
    return at


@_jit
def pop_ends(sums, scale, where, lanes):  # type: ignore[no-untyped-def]
    """As `pop`, of the ends of blocks: sums (rows, ENDS)."""
    rows, image, ends = where
    data, begin, end, state = lanes
    low = np.uint64(1 << 24)
    out, weight = np.empty(ENDS, np.int32), np.empty(ENDS, np.int64)
    for p in range(len(rows)):
        n = image[rows[p]]
        x = state[n]
        slot = np.int64(x & np.uint64(65535))
        total = _weigh_ends(sums[p], scale, out, weight)
        value, before = np.int64(0), np.int64(0)
        # whether the next start, before * (65536 - ENDS) // total + value + 1, is at most the slot
        while value < ENDS - 1 and (before + weight[value]) * (65536 - ENDS) < (slot - value) * total:
            before += weight[value]
            value += 1
        begun = before * (65536 - ENDS) // total + value
        after = (before + weight[value]) * (65536 - ENDS) // total + value + 1
        ends[rows[p]] = value
        x = np.uint64(after - begun) * (x >> np.uint64(16)) + np.uint64(slot - begun)
        while x < low and begin[n] < end[n]:
            x = (x << np.uint64(8)) | np.uint64(data[begin[n]])
            begin[n] += 1
        state[n] = x


@_jit
def push(where, span, values, found, escape, lanes):  # type: ignore[no-untyped-def]
    """Push what `intervals` found of blocks, last first, coefficients span = first, number of each; values (R, 64) are
    those of escapes, and escape is the start of such, or -1 where there are none. found: as there, with the number
    after the last. lanes: of each image (N,) its state, bytes of all images, and where the next one of each goes, which
    are advanced in place; each push emits two bytes at most, an escape four. Returns the number of the first.
    """
    rows, image, ends = where
    first, size = span
    start, frequency, number = found
    state, out, at = lanes
    for p in range(len(rows) - 1, -1, -1):
        r = rows[p]
        n = image[r]
        x, place = state[n], at[n]
        for j in range(min(size, ends[r] - first + 1) - 1, -1, -1):
            number -= 1
            f = np.uint64(frequency[number])
            if start[number] == escape:
                while x >= np.uint64(65536):
                    out[place] = x & np.uint64(255)
                    place += 1
                    x >>= np.uint64(8)
                x = (x << np.uint64(16)) + np.uint64(np.int64(values[r, first + j]) + 32768)
            while x >= f << np.uint64(16):
                out[place] = x & np.uint64(255)
                place += 1
                x >>= np.uint64(8)
            x = ((x // f) << np.uint64(16)) + x % f + np.uint64(start[number])
        state[n], at[n] = x, place
    return number
