"""What the integer networks do between their products, compiled for the processor.

Every function takes and fills NumPy arrays; `device_passes.py` has the same functions for other devices, and is their
reference in tests. All arithmetic is on integers, in 64 bits where a product needs them.

Sums of products come as int32, or as float32 that hold whole numbers.

Letters: N images, h w grid, P positions of a visit (h' * w'), R = N * P rows, M latents, C units, G channels of a
group. A scale is the mantissas and the shift of an `int8.Multiplier`, as a pair.
"""

# numba's compiled functions have no types that mypy knows
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _whole(total):
    """A sum, which int32 always holds, as int64: processors convert floats to 32 bits many at a time."""
    return np.int64(np.int32(total))


@_jit
def _scaled(value, mantissa, half, shift):
    """A value within 32 bits times a mantissa, shifted; it is faster to multiply 32 by 32 bits than 64 by 64."""
    return (np.int64(np.int32(value)) * np.int64(mantissa) + half) >> shift


@_jit
def gather(canvas, sizes, place, near, far, far_latents, out):
    """The neighbours of a visit's positions: what the shared layer sees.

    canvas, sizes (N, h, w, M) int8; place: row, column, stride, spacing, h', w'; near, far (offsets, 2) int64
    -> out (R, near * M + M + far * far_latents) int8: values, mean of sizes, values further away.
    """
    n_images, h, w, m = canvas.shape
    row, column, stride, spacing, rows, columns = place
    count = len(near)
    shift = 2 if count == 4 else 3
    total = np.empty(m, np.int32)
    for n in range(n_images):
        for r in range(rows):
            for c in range(columns):
                at = (n * rows + r) * columns + c
                total[:] = count >> 1
                for k in range(count):
                    y, x = row + r * stride + near[k, 0] * spacing, column + c * stride + near[k, 1] * spacing
                    if 0 <= y < h and 0 <= x < w:
                        for i in range(m):
                            out[at, k * m + i] = canvas[n, y, x, i]
                            total[i] += sizes[n, y, x, i]
                    else:
                        for i in range(m):
                            out[at, k * m + i] = 0
                for i in range(m):
                    out[at, count * m + i] = total[i] >> shift
                start = (count + 1) * m
                for k in range(len(far)):
                    y, x = row + r * stride + far[k, 0] * spacing, column + c * stride + far[k, 1] * spacing
                    inside = 0 <= y < h and 0 <= x < w
                    for i in range(far_latents):
                        out[at, start + k * far_latents + i] = canvas[n, y, x, i] if inside else 0


@_jit
def share(sums, scale, static, level, out):
    """sums (R, C) int32 (or (0, C) where nothing is seen), static (N or 1, P, C), level (N, C) int32
    -> out (R, C) int32.
    """
    mantissa, shift = scale
    n_images, width = level.shape
    positions = static.shape[1]
    half = np.int64(1) << (shift - 1)
    for n in range(n_images):
        of_size = n if len(static) > 1 else 0
        for p in range(positions):
            at = n * positions + p
            if len(sums):
                for i in range(width):
                    seen = _scaled(sums[at, i], mantissa[i], half, shift)
                    out[at, i] = static[of_size, p, i] + level[n, i] + seen
            else:
                for i in range(width):
                    out[at, i] = static[of_size, p, i] + level[n, i]


@_jit
def rectify(shared, bias, own, own_scale, scale, out):
    """shared (R, C) int32 plus bias (C,) int32 plus, where own has rows, own sums (R, C) int32
    -> out (R, C) int8: 0..255, less 128.
    """
    own_mantissa, own_shift = own_scale
    mantissa, shift = scale
    own_half, half = np.int64(1) << (own_shift - 1), np.int64(1) << (shift - 1)
    for r in range(shared.shape[0]):
        if len(own):
            for i in range(shared.shape[1]):
                z = shared[r, i] + bias[i] + _scaled(own[r, i], own_mantissa[i], own_half, own_shift)
                out[r, i] = min(max(_scaled(z, mantissa[i], half, shift), 0), 255) - 128
        else:
            for i in range(shared.shape[1]):
                z = np.int64(shared[r, i]) + bias[i]
                out[r, i] = min(max(_scaled(z, mantissa[i], half, shift), 0), 255) - 128


@_jit
def rectify_sums(sums, bias, scale, out):
    """sums (R, C) int32, bias (C,) int32 -> out (R, C) int8: 0..255, less 128."""
    mantissa, shift = scale
    half = np.int64(1) << (shift - 1)
    for r in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            z = _whole(sums[r, i]) + bias[i]
            out[r, i] = min(max(_scaled(z, mantissa[i], half, shift), 0), 255) - 128


@_jit
def predict(sums, bias, scale, level_scale, offset, limits, mean, index):
    """What the coder needs of a group: sums (R, 2G) int32, bias (2G,), scale (2G,)
    -> mean (R, G) int32 in sixteenths of a step, index (R, G) uint8 of the table.

    level_scale, offset (N, G): from units of a mean to sixteenths, and the scale that belongs to a gain, also in
    sixteenths; limits: of means in their own unit, of means in sixteenths, of indices.
    """
    mantissa, shift = scale
    level_mantissa, level_shift = level_scale
    n_images, size = offset.shape
    positions = len(mean) // n_images
    half, level_half = np.int64(1) << (shift - 1), np.int64(1) << (level_shift - 1)
    most, most_sixteenths, top = limits
    for n in range(n_images):
        for p in range(positions):
            r = n * positions + p
            for i in range(size):
                t = _scaled(_whole(sums[r, i]) + bias[i], mantissa[i], half, shift)
                t = min(max(t, -most), most)
                v = _scaled(t, level_mantissa[n, i], level_half, level_shift)
                mean[r, i] = min(max(v, -most_sixteenths), most_sixteenths)
                s = _scaled(_whole(sums[r, size + i]) + bias[size + i], mantissa[size + i], half, shift)
                index[r, i] = min(max((s + offset[n, i] + 8) >> 4, 0), top)


@_jit
def quantise(y, place, start, mean, index, threshold, limit, out):
    """y (N, h, w, M) float32 in sixteenths of a step -> out (R, G) int32: residuals that trade a little error for
    fewer bits. Magnitudes round up only above 1/2 + threshold, (tables,) float32; a certain 0 is 0.
    """
    n_images = y.shape[0]
    row, column, stride, _, rows, columns = place
    for n in range(n_images):
        for r in range(rows):
            for c in range(columns):
                at = (n * rows + r) * columns + c
                for i in range(mean.shape[1]):
                    k = index[at, i]
                    distance = (y[n, row + r * stride, column + c * stride, start + i] - mean[at, i]) * np.float32(
                        0.0625
                    )
                    magnitude = abs(distance)
                    up = threshold[k] if magnitude < 1.5 else np.float32(0.4) * threshold[k]
                    whole = min(np.int64(magnitude + np.float32(0.5) - up), limit)
                    out[at, i] = 0 if k == 0 else (whole if distance >= 0 else -whole)


@_jit
def absorb(mean, residual, place, start, to_canvas, y_hat, canvas, sizes, own):
    """A coded group -> the latents that it stands for, and what later steps see of them.

    mean, residual (R, G); to_canvas (N, G) scale -> y_hat (N, h, w, M) int32 in sixteenths, canvas, sizes
    (N, h, w, M) int8, own (R, 2M) int8: of each group its values, then its sizes.
    """
    mantissa, shift = to_canvas
    n_images, size = mantissa.shape
    row, column, stride, _, rows, columns = place
    half = np.int64(1) << (shift - 1)
    for n in range(n_images):
        for r in range(rows):
            for c in range(columns):
                at = (n * rows + r) * columns + c
                y, x = row + r * stride, column + c * stride
                values, seen = y_hat[n, y, x, start : start + size], canvas[n, y, x, start : start + size]
                for i in range(size):
                    value = mean[at, i] + 16 * residual[at, i]
                    values[i] = value
                    seen[i] = min(max(_scaled(value, mantissa[n, i], half, shift), -127), 127)
                companded = sizes[n, y, x, start : start + size]
                for i in range(size):
                    # a correctly rounded root lies far enough from a half for the result to be round(sqrt(127 * v))
                    companded[i] = np.int8(np.sqrt(np.float32(127 * abs(np.int32(seen[i])))) + np.float32(0.5))
                own[at, 2 * start : 2 * start + size] = seen
                own[at, 2 * start + size : 2 * start + 2 * size] = companded


@_jit
def split_latents(y_hat, scale, limit, high, low):
    """y_hat (N, P, M) int32 in sixteenths, scale (N, M) -> high, low (R, M) int8: 256 * high + low is the input of
    the synthesis."""
    mantissa, shift = scale
    n_images, positions, m = y_hat.shape
    half = np.int64(1) << (shift - 1)
    for n in range(n_images):
        for p in range(positions):
            for i in range(m):
                v = min(max(_scaled(y_hat[n, p, i], mantissa[n, i], half, shift), -limit), limit)
                top = (v + 128) >> 8
                high[n * positions + p, i] = top
                low[n * positions + p, i] = v - (top << 8)


@_jit
def split_stream(x, limit, high, low):
    """x (R, C) int16, clamped to +-limit -> high, low (R, C) int8 with x = 256 * high + low."""
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            v = min(max(np.int32(x[r, i]), -limit), limit)
            top = (v + 128) >> 8
            high[r, i] = top
            low[r, i] = v - (top << 8)


@_jit
def begin_stream(high, low, first, scale, static, level, limit, out):
    """Sums of both halves of the input with both halves of the weights, (rows, 2C) int32 each, for the rows from first
    on; static (N or 1, P, C), level (N, C) int32 -> out (rows, C) int16.
    """
    mantissa, shift = scale
    width = out.shape[1]
    positions = static.shape[1]
    half = np.int64(1) << (shift - 1)
    for r in range(out.shape[0]):
        n, p = (first + r) // positions, (first + r) % positions
        of_size = n if len(static) > 1 else 0
        for i in range(width):
            outer = _whole(high[r, i]) * 128 + _whole(high[r, width + i])
            inner = _whole(low[r, i]) * 128 + _whole(low[r, width + i])
            v = (((outer << 8) + inner) * mantissa[i] + half) >> shift
            out[r, i] = min(max(v + static[of_size, p, i] + level[n, i], -limit), limit)


@_jit
def depthwise(x, taps, bias, scale, out):
    """x (N, h, w, C) int16, taps (9, C) int16, row by row -> out (N, h, w, C) int8, zeros around the grid."""
    mantissa, shift = scale
    n_images, h, w, width = x.shape
    half = np.int64(1) << (shift - 1)
    total = np.empty(width, np.int32)
    for n in range(n_images):
        for r in range(h):
            for c in range(w):
                for i in range(width):
                    total[i] = bias[i]
                for k in range(9):
                    y, z = r + k // 3 - 1, c + k % 3 - 1
                    if 0 <= y < h and 0 <= z < w:
                        for i in range(width):
                            total[i] += np.int32(x[n, y, z, i]) * np.int32(taps[k, i])
                for i in range(width):
                    out[n, r, c, i] = min(max(_scaled(total[i], mantissa[i], half, shift), -127), 127)


@_jit
def gate(sums, bias, scale, limit, gate_scale, out):
    """sums (R, 2C) int32, bias (2C,) -> a, b within +-limit -> max(a, 0) * b -> out (R, C) int8."""
    mantissa, shift = scale
    gate_mantissa, gate_shift = gate_scale
    width = out.shape[1]
    half, gate_half = np.int64(1) << (shift - 1), np.int64(1) << (gate_shift - 1)
    for r in range(out.shape[0]):
        for i in range(width):
            a = _scaled(_whole(sums[r, i]) + bias[i], mantissa[i], half, shift)
            b = _scaled(_whole(sums[r, width + i]) + bias[width + i], mantissa[width + i], half, shift)
            a, b = min(max(a, 0), limit), min(max(b, -limit), limit)
            out[r, i] = min(max(_scaled(a * b, gate_mantissa[i], gate_half, gate_shift), -127), 127)


@_jit
def add_to_stream(sums, bias, scale, limit, x):
    """sums (R, C) int32, bias (C,) are added to x (R, C) int16."""
    mantissa, shift = scale
    half = np.int64(1) << (shift - 1)
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            v = x[r, i] + _scaled(_whole(sums[r, i]) + bias[i], mantissa[i], half, shift)
            x[r, i] = min(max(v, -limit), limit)


@_jit
def to_colour(high, low, first, bias, scale, grid, out):
    """Sums as of `begin_stream` for 192 outputs, in the order colour, row, column: the blocks from first on of
    out (N, 8h, 8w, 3) uint8.
    """
    mantissa, shift = scale
    h, w = grid
    half = np.int64(1) << (shift - 1)
    levels = np.empty(192, np.uint8)
    for r in range(high.shape[0]):
        n, y, x = (first + r) // (h * w), (first + r) // w % h * 8, (first + r) % w * 8
        for i in range(192):
            outer = _whole(high[r, i]) * 128 + _whole(high[r, 192 + i])
            inner = _whole(low[r, i]) * 128 + _whole(low[r, 192 + i])
            v = (((outer << 8) + inner + bias[i]) * mantissa[i] + half) >> shift
            levels[i] = min(max((v + 8) >> 4, 0), 255)
        for i in range(8):
            for j in range(8):
                for k in range(3):
                    out[n, y + i, x + j, k] = levels[64 * k + 8 * i + j]


@_jit
def to_grey(high, low, first, bias, scale, grid, out):
    """As `to_colour`, the mean of the three colours: blocks of out (N, 8h, 8w) uint8."""
    mantissa, shift = scale
    h, w = grid
    half = np.int64(1) << (shift - 1)
    total = np.empty(64, np.int64)
    for r in range(high.shape[0]):
        n, y, x = (first + r) // (h * w), (first + r) // w % h * 8, (first + r) % w * 8
        total[:] = 24
        for k in range(0, 192, 64):
            for i in range(64):
                outer = _whole(high[r, k + i]) * 128 + _whole(high[r, 192 + k + i])
                inner = _whole(low[r, k + i]) * 128 + _whole(low[r, 192 + k + i])
                total[i] += (((outer << 8) + inner + bias[k + i]) * mantissa[k + i] + half) >> shift
        for i in range(64):
            out[n, y + i // 8, x + i % 8] = np.uint32(min(max(total[i], 0), 48 * 255)) // np.uint32(48)
