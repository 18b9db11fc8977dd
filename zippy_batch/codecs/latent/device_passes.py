"""The passes of `passes.py` in PyTorch, for devices other than the processor: the same integers, in 64 bits throughout.

Tests hold the two against each other on the processor. Letters as in `passes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Place = Sequence[int]
Scale = tuple[Tensor, int]
"""Mantissas and the shift of an `int8.Multiplier`."""


def _scaled(x: Tensor, scale: Scale) -> Tensor:
    mantissa, shift = scale
    return (x.long() * mantissa.long() + (1 << (shift - 1))) >> shift


def _per_row(values: Tensor, rows: int) -> Tensor:
    """(N, G) -> (R, G): the same for all positions of an image."""
    return values.repeat_interleave(rows // len(values), 0)


def _per_row_scale(scale: Scale, rows: int) -> Scale:
    return _per_row(scale[0], rows), scale[1]


def _at(whole: Tensor, place: Place) -> Tensor:
    """(N, h, w, C) -> the view (N, h', w', C) of a visit's positions."""
    row, column, stride, _, rows, columns = place
    return whole[:, row::stride, column::stride][:, :rows, :columns]


def _neighbour(whole: Tensor, place: Place, offset: Tensor) -> Tensor:
    row, column, stride, spacing, rows, columns = place
    dy, dx = (int(d) * spacing for d in offset)
    reach = 3 * spacing
    padded = torch.nn.functional.pad(whole, (0, 0, reach, reach + stride, reach, reach + stride))
    return padded[:, reach + row + dy :: stride, reach + column + dx :: stride][:, :rows, :columns]


def gather(
    canvas: Tensor, sizes: Tensor, place: Place, near: Tensor, far: Tensor, far_latents: int, out: Tensor
) -> None:
    seen = [_neighbour(canvas, place, offset) for offset in near]
    total = torch.stack([_neighbour(sizes, place, offset).long() for offset in near]).sum(0)
    mean = ((total + len(near) // 2) >> (2 if len(near) == 4 else 3)).to(torch.int8)
    beyond = [_neighbour(canvas[..., :far_latents], place, offset) for offset in far]
    out.copy_(torch.cat([*seen, mean, *beyond], -1).reshape(out.shape))


def share(sums: Tensor, scale: Scale, static: Tensor, level: Tensor, out: Tensor) -> None:
    total = static.long() + level.long()[:, None]
    if len(sums):
        total = total + _scaled(sums, scale).view(total.shape)
    out.copy_(total.reshape(out.shape))


def rectify(
    shared: Tensor,
    bias: Tensor,
    own: Tensor,
    own_scale: Scale,
    scale: Scale,
    out: Tensor,
) -> None:
    z = shared.long() + bias
    z = z + _scaled(own, own_scale) if len(own) else z
    out.copy_(_scaled(z, scale).clamp_(0, 255) - 128)


def rectify_sums(sums: Tensor, bias: Tensor, scale: Scale, out: Tensor) -> None:
    out.copy_(_scaled(sums.long() + bias, scale).clamp_(0, 255) - 128)


def predict(
    sums: Tensor,
    bias: Tensor,
    scale: Scale,
    level_scale: Scale,
    offset: Tensor,
    limits: tuple[int, int, int],
    mean: Tensor,
    index: Tensor,
) -> None:
    most, most_sixteenths, top = limits
    means, scales = _scaled(sums.long() + bias, scale).chunk(2, -1)
    means = _scaled(means.clamp(-most, most), _per_row_scale(level_scale, len(mean)))
    mean.copy_(means.clamp_(-most_sixteenths, most_sixteenths))
    index.copy_(((scales + _per_row(offset, len(mean)) + 8) >> 4).clamp_(0, top))


def quantise(
    y: Tensor, place: Place, start: int, mean: Tensor, index: Tensor, threshold: Tensor, limit: int, out: Tensor
) -> None:
    target = _at(y, place)[..., start : start + mean.shape[1]].reshape(mean.shape)
    distance = (target - mean) * 0.0625
    magnitude = distance.abs()
    up = threshold[index.long()]
    up = torch.where(magnitude < 1.5, up, 0.4 * up)
    whole = (magnitude + 0.5 - up).floor_().clamp_(0, limit) * distance.sign()
    out.copy_(whole * (index > 0))


def absorb(
    mean: Tensor,
    residual: Tensor,
    place: Place,
    start: int,
    to_canvas: Scale,
    y_hat: Tensor,
    canvas: Tensor,
    sizes: Tensor,
    own: Tensor,
) -> None:
    size = mean.shape[1]
    value = mean.long() + 16 * residual
    seen = _scaled(value, _per_row_scale(to_canvas, len(value))).clamp_(-127, 127)
    # a correctly rounded root lies far enough from a half for the result to be round(sqrt(127 * v))
    companded = (127 * seen.abs()).float().sqrt().add_(0.5).to(torch.int8)
    channels = slice(start, start + size)
    for whole, part in ((y_hat, value), (canvas, seen), (sizes, companded)):
        view = _at(whole, place)[..., channels]
        view.copy_(part.view(view.shape))
    own[:, 2 * start : 2 * start + size] = seen.to(torch.int8)
    own[:, 2 * start + size : 2 * start + 2 * size] = companded


def _halves(v: Tensor, high: Tensor, low: Tensor) -> None:
    top = (v + 128) >> 8
    high.copy_(top.reshape(high.shape))
    low.copy_((v - (top << 8)).reshape(low.shape))


def split_latents(y_hat: Tensor, scale: Scale, limit: int, high: Tensor, low: Tensor) -> None:
    _halves(_scaled(y_hat, (scale[0][:, None], scale[1])).clamp_(-limit, limit), high, low)


def split_stream(x: Tensor, limit: int, high: Tensor, low: Tensor) -> None:
    _halves(x.long().clamp(-limit, limit), high, low)


def _four_products(high: Tensor, low: Tensor) -> Tensor:
    """(rows, 2C) sums of both halves of the input with both halves of the weights -> (rows, C)."""
    width = high.shape[1] // 2
    high, low = high.long(), low.long()
    outer = high[:, :width] * 128 + high[:, width:]
    return (outer << 8) + low[:, :width] * 128 + low[:, width:]


def begin_stream(
    high: Tensor,
    low: Tensor,
    first: int,
    scale: Scale,
    static: Tensor,
    level: Tensor,
    limit: int,
    out: Tensor,
) -> None:
    row = torch.arange(first, first + len(out), device=out.device)
    n, p = row // static.shape[1], row % static.shape[1]
    given = static[n if len(static) > 1 else torch.zeros_like(n), p].long() + level[n].long()
    out.copy_((_scaled(_four_products(high, low), scale) + given).clamp_(-limit, limit))


def depthwise(x: Tensor, taps: Tensor, bias: Tensor, scale: Scale, out: Tensor) -> None:
    h, w = x.shape[1:3]
    padded = torch.nn.functional.pad(x.long(), (0, 0, 1, 1, 1, 1))
    total = bias.long().expand(x.shape).clone()
    for k, tap in enumerate(taps.long()):
        total += padded[:, k // 3 : k // 3 + h, k % 3 : k % 3 + w] * tap
    out.copy_(_scaled(total, scale).clamp_(-127, 127))


def gate(
    sums: Tensor,
    bias: Tensor,
    scale: Scale,
    limit: int,
    gate_scale: Scale,
    out: Tensor,
) -> None:
    a, b = _scaled(sums.long() + bias, scale).clamp_(-limit, limit).chunk(2, -1)
    out.copy_(_scaled(a.clamp(min=0) * b, gate_scale).clamp_(-127, 127))


def add_to_stream(sums: Tensor, bias: Tensor, scale: Scale, limit: int, x: Tensor) -> None:
    x.copy_((x.long() + _scaled(sums.long() + bias, scale)).clamp_(-limit, limit))


def _blocks(high: Tensor, low: Tensor, bias: Tensor, scale: Scale) -> Tensor:
    """(rows, 192) in sixteenths of a level."""
    return _scaled(_four_products(high, low) + bias, scale)


def _place_blocks(blocks: Tensor, first: int, grid: tuple[int, int], out: Tensor) -> None:
    """blocks (rows, 8, 8, channels) -> out (N, 8h, 8w, channels)."""
    h, w = grid
    row = torch.arange(first, first + len(blocks), device=out.device)
    out.view(len(out), h, 8, w, 8, -1)[row // (h * w), row // w % h, :, row % w] = blocks.to(torch.uint8)


def to_colour(
    high: Tensor,
    low: Tensor,
    first: int,
    bias: Tensor,
    scale: Scale,
    grid: tuple[int, int],
    out: Tensor,
) -> None:
    levels = ((_blocks(high, low, bias, scale) + 8) >> 4).clamp_(0, 255)
    _place_blocks(levels.view(-1, 3, 8, 8).permute(0, 2, 3, 1), first, grid, out)


def to_grey(
    high: Tensor,
    low: Tensor,
    first: int,
    bias: Tensor,
    scale: Scale,
    grid: tuple[int, int],
    out: Tensor,
) -> None:
    total = _blocks(high, low, bias, scale).view(-1, 3, 64).sum(1) + 24
    levels = total.div(48, rounding_mode="floor").clamp_(0, 255)
    _place_blocks(levels.view(-1, 8, 8, 1), first, grid, out)
