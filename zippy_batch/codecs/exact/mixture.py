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


@numba.njit(cache=True, nogil=True, inline="always")
def _output(accumulated, shift, k):  # type: ignore[no-untyped-def]
    s = shift[k]
    return min(OUT_LIMIT, max(-OUT_LIMIT, (np.int64(accumulated[k]) + (np.int64(1) << (s - 1))) >> s))


@numba.njit(cache=True, nogil=True)
def _prepare(accumulated, j, size, shift, step, octaves, unit, mu, slope, weight):  # type: ignore[no-untyped-def]
    """Fills mu, slope and weight of one coefficient; returns lo, hi and a value to begin a search at."""
    first = WEIGHT[min(255, max(0, _output(accumulated, shift, 2 * MIXTURE * size + j) + 128))]
    second = WEIGHT[min(255, max(0, _output(accumulated, shift, (2 * MIXTURE + 1) * size + j) + 128))]
    weight[0] = first
    weight[1] = ((65536 - first) * second) >> 16
    weight[2] = 65536 - first - weight[1]
    lo, hi, heaviest = 1 << 40, -1 << 40, 0
    for k in range(MIXTURE):
        mu[k] = ((_output(accumulated, shift, k * size + j) << unit) + 8 * step) // (16 * step)
        index = (_output(accumulated, shift, (MIXTURE + k) * size + j) + octaves + 8) >> 4
        index = min(SCALE_STEPS - 1, max(0, index - _LOW))
        slope[k] = SLOPE[index]
        lo = min(lo, (mu[k] >> 6) - RADIUS[index])
        hi = max(hi, (mu[k] >> 6) + RADIUS[index])
        if weight[k] > weight[heaviest]:
            heaviest = k
    lo = max(-VALUE_SPAN, min(VALUE_SPAN, lo))
    hi = max(-VALUE_SPAN, min(VALUE_SPAN, hi))
    return lo, hi, min(hi, max(lo, (mu[heaviest] + 32) >> 6))


@numba.njit(cache=True, nogil=True)
def _cumulative(x, lo, hi, mu, slope, weight, zero):  # type: ignore[no-untyped-def]
    """C(x) where zero is 0, else C'(x) with zero = C(1) - C(0)."""
    if x <= lo:
        return np.int64(0)
    if x > hi:
        return np.int64(ESCAPE)
    total = np.int64(0)
    for k in range(MIXTURE):
        at = (((64 * x - 32 - mu[k]) * slope[k]) >> 20) + _Z_LIMIT
        at = min(2 * _Z_LIMIT - 1, max(0, at))
        entry = at >> _ENTRY_BITS
        f = LOGISTIC[entry] + (((LOGISTIC[entry + 1] - LOGISTIC[entry]) * (at & 255)) >> _ENTRY_BITS)
        total += weight[k] * f
    c = ((total * (ESCAPE - (hi - lo + 1))) >> 40) + x - lo
    if zero:
        c = (c - (zero if x > 0 else 0)) * ESCAPE // (ESCAPE - zero)
    return c


@numba.njit(cache=True, nogil=True)
def _zero(lo, hi, mu, slope, weight):  # type: ignore[no-untyped-def]
    """Frequency of 0, where other values have some."""
    if lo >= 0 or hi <= 0:
        return np.int64(0)
    return _cumulative(1, lo, hi, mu, slope, weight, 0) - _cumulative(0, lo, hi, mu, slope, weight, 0)


@numba.njit(cache=True, nogil=True)
def intervals(accumulated, image, ends, first, shift, step, octaves, unit, values, start, frequency):  # type: ignore[no-untyped-def]
    """Frequency intervals of known values.

    accumulated (R, PARAMETERS * G) float32 integers of the coefficients first..first+G-1, and shift (PARAMETERS * G,)
    the powers of two that they are divided by; step, octaves and unit those of `Quantisers`; image (R,) numbers of the
    rows' images and ends (R,) of their blocks; values (R, G). Fills start (uint16) and frequency (uint16), both (R, G).
    What lies behind a block's end has a frequency of 0, and an escape the start ESCAPE.
    """
    mu, slope, weight = np.empty(MIXTURE, np.int64), np.empty(MIXTURE, np.int64), np.empty(MIXTURE, np.int64)
    size = values.shape[1]
    for r in range(values.shape[0]):
        n = image[r]
        for j in range(size):
            if first + j > ends[r]:
                start[r, j] = 0
                frequency[r, j] = 0
                continue
            lo, hi, _ = _prepare(accumulated[r], j, size, shift, step[n, j], octaves[n, j], unit[j], mu, slope, weight)
            zero = _zero(lo, hi, mu, slope, weight) if first + j == ends[r] and ends[r] else 0
            x = np.int64(values[r, j])
            if x < lo or x > hi:
                start[r, j] = ESCAPE
                frequency[r, j] = 1
            else:
                begin = _cumulative(x, lo, hi, mu, slope, weight, zero)
                start[r, j] = begin
                frequency[r, j] = _cumulative(x + 1, lo, hi, mu, slope, weight, zero) - begin


@numba.njit(cache=True, nogil=True)
def pop(accumulated, image, ends, first, shift, step, octaves, unit, data, begin, end, state, values):  # type: ignore[no-untyped-def]
    """Pop the values (R, G) of the coefficients first..first+G-1, those behind their block's end left as they are.

    data holds all images' bytes; begin and state (N,) are advanced in place.
    """
    low = np.uint64(1 << 24)
    mu, slope, weight = np.empty(MIXTURE, np.int64), np.empty(MIXTURE, np.int64), np.empty(MIXTURE, np.int64)
    size = values.shape[1]
    for r in range(values.shape[0]):
        n = image[r]
        x = state[n]
        at = begin[n]
        stop = end[n]
        for j in range(min(size, ends[r] - first + 1)):
            lo, hi, value = _prepare(
                accumulated[r], j, size, shift, step[n, j], octaves[n, j], unit[j], mu, slope, weight
            )
            slot = np.int64(x & np.uint64(65535))
            if slot == ESCAPE:
                x = x >> np.uint64(16)
                while x < low and at < stop:
                    x = (x << np.uint64(8)) | np.uint64(data[at])
                    at += 1
                values[r, j] = np.int64(x & np.uint64(65535)) - 32768
                x >>= np.uint64(16)
            else:
                zero = _zero(lo, hi, mu, slope, weight) if first + j == ends[r] and ends[r] else 0
                # the value whose interval holds the slot: bracket it from the likely one, then halve
                left, begun = value, _cumulative(value, lo, hi, mu, slope, weight, zero)
                right, after = value, begun
                reach = 1
                if begun <= slot:
                    while after <= slot:
                        left, begun = right, after
                        right = min(hi + 1, right + reach)
                        after = _cumulative(right, lo, hi, mu, slope, weight, zero)
                        reach *= 2
                else:
                    while begun > slot:
                        right, after = left, begun
                        left = max(lo, left - reach)
                        begun = _cumulative(left, lo, hi, mu, slope, weight, zero)
                        reach *= 2
                while right - left > 1:
                    middle = (left + right) >> 1
                    c = _cumulative(middle, lo, hi, mu, slope, weight, zero)
                    if c <= slot:
                        left, begun = middle, c
                    else:
                        right, after = middle, c
                values[r, j] = left
                x = np.uint64(after - begun) * (x >> np.uint64(16)) + np.uint64(slot - begun)
            while x < low and at < stop:
                x = (x << np.uint64(8)) | np.uint64(data[at])
                at += 1
        state[n] = x
        begin[n] = at


@numba.njit(cache=True, nogil=True)
def _weigh_ends(accumulated, shift, weight):  # type: ignore[no-untyped-def]
    """Fills the weights (ENDS,) of a block's ends; returns their sum."""
    most = np.int64(-OUT_LIMIT)
    for i in range(ENDS):
        weight[i] = _output(accumulated, shift, i)
        most = max(most, weight[i])
    total = np.int64(0)
    for i in range(ENDS):
        weight[i] = EXPONENTIAL[min(len(EXPONENTIAL) - 1, most - weight[i])]
        total += weight[i]
    return total


@numba.njit(cache=True, nogil=True)
def end_intervals(accumulated, shift, values, start, frequency):  # type: ignore[no-untyped-def]
    """As `intervals`, of the ends of blocks: accumulated (R, ENDS), values, start and frequency (R, 1)."""
    weight = np.empty(ENDS, np.int64)
    for r in range(values.shape[0]):
        total = _weigh_ends(accumulated[r], shift, weight)
        value = np.int64(values[r, 0])
        before = np.int64(0)
        for i in range(value):
            before += weight[i]
        begin = before * (65536 - ENDS) // total + value
        start[r, 0] = begin
        frequency[r, 0] = (before + weight[value]) * (65536 - ENDS) // total + value + 1 - begin


@numba.njit(cache=True, nogil=True)
def pop_ends(accumulated, image, shift, data, begin, end, state, values):  # type: ignore[no-untyped-def]
    """As `pop`, of the ends of blocks: accumulated (R, ENDS), values (R, 1)."""
    low = np.uint64(1 << 24)
    weight = np.empty(ENDS, np.int64)
    for r in range(values.shape[0]):
        n = image[r]
        x = state[n]
        slot = np.int64(x & np.uint64(65535))
        total = _weigh_ends(accumulated[r], shift, weight)
        value = np.int64(0)
        before, begun = weight[0], np.int64(0)
        after = before * (65536 - ENDS) // total + 1
        while after <= slot:
            value += 1
            before += weight[value]
            begun, after = after, before * (65536 - ENDS) // total + value + 1
        values[r, 0] = value
        x = np.uint64(after - begun) * (x >> np.uint64(16)) + np.uint64(slot - begun)
        while x < low and begin[n] < end[n]:
            x = (x << np.uint64(8)) | np.uint64(data[begin[n]])
            begin[n] += 1
        state[n] = x


@numba.njit(cache=True, nogil=True)
def push(image, values, start, frequency, escape, state, out, at):  # type: ignore[no-untyped-def]
    """Push rows, last first: values int16, start and frequency uint16, all (R, G); state (N,) uint64. escape is the
    start of escapes, or -1 where there are none. Writes bytes to out from at[n] on, which is advanced in place; each
    push emits two at most, an escape four."""
    for r in range(values.shape[0] - 1, -1, -1):
        n = image[r]
        x = state[n]
        place = at[n]
        for j in range(values.shape[1] - 1, -1, -1):
            f = np.uint64(frequency[r, j])
            if f == 0:
                continue
            if start[r, j] == escape:
                while x >= np.uint64(65536):
                    out[place] = x & np.uint64(255)
                    place += 1
                    x >>= np.uint64(8)
                x = (x << np.uint64(16)) + np.uint64(np.int64(values[r, j]) + 32768)
            while x >= f << np.uint64(16):
                out[place] = x & np.uint64(255)
                place += 1
                x >>= np.uint64(8)
            x = ((x // f) << np.uint64(16)) + x % f + np.uint64(start[r, j])
        state[n] = x
        at[n] = place
