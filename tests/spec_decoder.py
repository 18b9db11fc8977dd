"""A second decoder of latent payloads, written from docs/format.md alone and sharing no code with the package.

It is slow and follows the numbered steps of the section "Latent payload".
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))
DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
STRAIGHT = ((0, -1), (0, 1), (-1, 0), (1, 0))
NEIGHBOURS: tuple[tuple[tuple[int, int], ...], ...] = ((), DIAGONAL, STRAIGHT, STRAIGHT + DIAGONAL)


class SpecError(ValueError):
    """A payload or a model that a reader must refuse."""


@dataclass(frozen=True)
class SpecModel:
    arrays: Mapping[str, NDArray]
    groups: tuple[int, ...]
    blocks: int
    magnitudes: bool

    @property
    def latents(self) -> int:
        return sum(self.groups)

    def ints(self, name: str) -> Ints:
        array = self.arrays[name]
        assert array.dtype.kind in "iu", name
        return array.astype(np.int64)

    def floats(self, name: str) -> Floats:
        array = self.arrays[name]
        assert array.dtype == np.float32, name
        return array


@lru_cache(maxsize=2)
def read_model(data: bytes) -> SpecModel:
    """Raises SpecError for a model that a reader must refuse."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    head = json.loads(header["__metadata__"]["zippy_batch"])
    require(head["format"] == 1, "format")
    architecture = head["architecture"]
    magnitudes = architecture.get("magnitudes", False)
    require(isinstance(magnitudes, bool), "magnitudes")
    model = SpecModel(
        load(data),
        tuple(architecture["groups"]),
        architecture.get("synthesis_blocks", architecture["blocks"]),
        magnitudes,
    )
    require(model.latents == architecture["latents"], "groups")
    check_arrays(model, architecture["width"], architecture["context_width"])
    check_sums(model)
    return model


def require(condition: object, what: str) -> None:
    if not condition:
        raise SpecError(what)


def check_arrays(model: SpecModel, w: int, c: int) -> None:
    m = model.latents
    radius = model.arrays["entropy.radius"].astype(np.int64)
    require((radius >= 0).all(), "entropy.radius")
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "quality.level": ("int16", (100,)),
        "level.scale_offset": ("int16", (100, m)),
        "entropy.radius": ("int16", (64,)),
        "entropy.frequencies": ("uint16", (int((2 * radius[1:] + 2).sum()),)),
        "gain.synthesis": ("float32", (100, m)),
        "synthesis.static.level.weight": ("float32", (w, 12)),
    }
    for name in ("level.from_context", "level.to_context"):
        wanted |= {f"{name}.mantissa": ("int16", (100, m)), f"{name}.exponent": ("int8", (100, m))}
    for k, neighbours in enumerate(NEIGHBOURS):
        base = f"context.{k}.base"
        wanted |= {f"{base}.spatial": ("int16", (c, 73)), f"{base}.level": ("int16", (c, 12))}
        wanted |= {f"{base}.bias": ("int32", (c,)), f"{base}.shift": ("int8", (c,))}
        if neighbours:
            wanted[f"{base}.neighbours"] = ("int16", (c, len(neighbours) * m))
        if neighbours and model.magnitudes:
            wanted[f"{base}.neighbour_sizes"] = ("int16", (c, m))
        for number, g in enumerate(model.groups):
            step = f"context.{k}.{number}"
            wanted[f"{step}.own.bias"] = ("int32", (c,))
            if number:
                wanted[f"{step}.own.weight"] = ("int16", (c, sum(model.groups[:number])))
            if number and model.magnitudes:
                wanted[f"{step}.own.sizes"] = ("int16", (c, sum(model.groups[:number])))
            for layer, outputs in (("hidden", c), ("out", 2 * g)):
                wanted[f"{step}.{layer}.weight"] = ("int16", (outputs, c))
                wanted[f"{step}.{layer}.bias"] = ("int32", (outputs,))
                wanted[f"{step}.{layer}.shift"] = ("int8", (outputs,))
    layers = {"first": (w, m), "static.spatial": (w, 73), "last": (192, w)}
    for block in range(model.blocks):
        name = f"blocks.{block}"
        layers |= {f"{name}.expand": (2 * w, w), f"{name}.project": (w, w)}
        wanted[f"synthesis.{name}.depthwise.weight"] = ("float32", (w, 1, 3, 3))
        wanted[f"synthesis.{name}.depthwise.bias"] = ("float32", (w,))
    for name, shape in layers.items():
        wanted[f"synthesis.{name}.weight"] = ("float32", shape)
        wanted[f"synthesis.{name}.bias"] = ("float32", shape[:1])
    for name, form in wanted.items():
        require(name in model.arrays, f"{name} is missing")
        require((str(model.arrays[name].dtype), model.arrays[name].shape) == form, f"{name} is not {form}")
    ranges = {"quality.level": 704}
    for name in ("level.from_context", "level.to_context"):
        ranges |= {f"{name}.mantissa": 1023, f"{name}.exponent": 22}
    for name, most in ranges.items():
        require(model.arrays[name].min() >= 0 and model.arrays[name].max() <= most, f"{name} is out of its range")


def check_sums(model: SpecModel) -> None:
    """Every sum of the context model is exact in float32."""

    def magnitude(name: str, limit: int) -> Ints:
        return np.abs(model.ints(name)).sum(1) * limit

    def check(name: str, total: Ints, shift: Ints) -> None:
        require(shift.min() >= 1 and shift.max() <= 22, f"{name}: shifts")
        require((total + 2**shift).max() < 2**24, f"{name}: sums")

    for k, neighbours in enumerate(NEIGHBOURS):
        name = f"context.{k}.base"
        base = np.abs(model.ints(f"{name}.bias")) + magnitude(f"{name}.spatial", 256) + magnitude(f"{name}.level", 256)
        if neighbours:
            base += magnitude(f"{name}.neighbours", 511)
        if neighbours and model.magnitudes:
            base += magnitude(f"{name}.neighbour_sizes", 511 * len(neighbours))
        for group in range(len(model.groups)):
            step = f"context.{k}.{group}"
            own = np.abs(model.ints(f"{step}.own.bias"))
            if group:
                own += magnitude(f"{step}.own.weight", 511)
            if group and model.magnitudes:
                own += magnitude(f"{step}.own.sizes", 511)
            check(f"{step}.own", base + own, model.ints(f"{name}.shift"))
            for layer in ("hidden", "out"):
                total = magnitude(f"{step}.{layer}.weight", 2047) + np.abs(model.ints(f"{step}.{layer}.bias"))
                check(f"{step}.{layer}", total, model.ints(f"{step}.{layer}.shift"))


# ---- steps 1 and 2 ----


def grid(height: int, width: int) -> tuple[int, int]:
    return (height + 7) // 8, (width + 7) // 8


def hat(v: int, count: int, step: int) -> list[int]:
    return [max(0, step - abs(v - step * k)) for k in range(count)]


def size_on_scale(n: int) -> int:
    o = n.bit_length() - 1
    return 16 * o + 16 * n // 2**o - 16


def axis(n: int) -> list[tuple[list[int], int]]:
    """Of each block: its hats, and the feature of its size."""
    blocks = []
    for t in range(0, n, 8):
        b = min(8, n - t)
        blocks.append((hat((2 * t + b) * 112 // (2 * n), 8, 16), 32 * (8 - b)))
    return blocks


def spatial_features(height: int, width: int, grey: bool) -> Ints:
    """(h, w, 73)"""
    s = min(max((size_on_scale(height) + size_on_scale(width)) // 2 - 64, 0), 80)
    image = [16 * v for v in hat(s, 6, 16)] + [256 if grey else 0]
    return np.array(
        [
            [
                [r * q for r in row_hats for q in column_hats] + [row_size, column_size, *image]
                for column_hats, column_size in axis(width)
            ]
            for row_hats, row_size in axis(height)
        ],
        np.int64,
    )


def level_features(model: SpecModel, quality: int) -> Ints:
    """(12,)"""
    return np.array([4 * v for v in hat(int(model.ints("quality.level")[quality - 1]), 12, 64)], np.int64)


# ---- steps 5 and 6 ----


@dataclass(frozen=True)
class Table:
    starts: list[int]
    frequencies: list[int]


def tables(model: SpecModel) -> list[Table | None]:
    frequencies: list[int] = model.ints("entropy.frequencies").tolist()
    found: list[Table | None] = [None]
    at = 0
    for radius in model.ints("entropy.radius")[1:].tolist():
        part = frequencies[at : at + 2 * radius + 2]
        at += len(part)
        require(sum(part) == 65536 and min(part) > 0, "entropy.frequencies")
        found.append(Table([0, *accumulate(part[:-1])], part))
    assert at == len(frequencies)
    return found


class Lane:
    def __init__(self, data: bytes) -> None:
        if data[:1] == b"\0":
            raise SpecError("a lane begins with a zero byte")
        self.x = int.from_bytes(data[:4], "big")
        self.rest = data[4:]
        self.at = 0

    def pop(self, starts: Sequence[int], frequencies: Sequence[int]) -> int:
        slot = self.x % 65536
        index = bisect_right(starts, slot) - 1
        self.advance(frequencies[index], slot - starts[index])
        return index

    def pop_escaped(self) -> int:
        slot = self.x % 65536
        self.advance(1, 0)
        return slot - 32768

    def advance(self, frequency: int, offset: int) -> None:
        self.x = frequency * (self.x // 65536) + offset
        while self.x < 2**24 and self.at < len(self.rest):
            self.x = 256 * self.x + self.rest[self.at]
            self.at += 1

    def residual(self, table: Table | None) -> int:
        if table is None:
            return 0
        index = self.pop(table.starts, table.frequencies)
        if index == len(table.starts) - 1:
            return self.pop_escaped()
        return index // 2 if index % 2 == 0 else -(index + 1) // 2


def split_lanes(payload: bytes, count: int) -> list[Lane]:
    at = 0
    lengths = []
    for _ in range(count - 1):
        length = shift = 0
        while True:
            if at >= len(payload) or shift > 28:
                raise SpecError("no length of a lane")
            byte = payload[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        lengths.append(length)
    if at + sum(lengths) > len(payload):
        raise SpecError("the lanes are longer than the payload")
    lengths.append(len(payload) - at - sum(lengths))
    lanes = []
    for length in lengths:
        lanes.append(Lane(payload[at : at + length]))
        at += length
    return lanes


# ---- steps 3, 4 and 7 ----


def resc(a: Ints, shift: Ints | int, low: int, high: int) -> Ints:
    # floor(a / 2^s + 1/2); shifts of negative int64 are floors
    one = np.int64(1)
    return np.clip((2 * a + (one << np.int64(shift))) >> (np.int64(shift) + one), low, high)


def decode(data: bytes, payload: bytes, height: int, width: int, grey: bool, quality: int) -> Ints:
    """The latents of an image in sixteenths, (h, w, M). Raises SpecError where the check of step 7 fails."""
    model = read_model(data)
    h, w = grid(height, width)
    spatial = spatial_features(height, width, grey)
    level = level_features(model, quality)
    all_tables = tables(model)
    lanes = split_lanes(payload, min(256, max(1, h * w // 1024)))
    y_hat = np.zeros((h, w, model.latents), np.int64)
    # one position wide, zero, around the grid
    canvas = np.zeros((h + 2, w + 2, model.latents), np.int64)
    crc = 0
    for parity, (top, left) in enumerate(PARITIES):
        rows, columns = np.arange(top, h, 2), np.arange(left, w, 2)
        cells = np.ix_(rows, columns)
        inside = np.ix_(rows + 1, columns + 1)
        base = spatial[cells] @ model.ints(f"context.{parity}.base.spatial").T
        base += model.ints(f"context.{parity}.base.level") @ level + model.ints(f"context.{parity}.base.bias")
        if NEIGHBOURS[parity]:
            around = [canvas[np.ix_(rows + 1 + dy, columns + 1 + dx)] for dy, dx in NEIGHBOURS[parity]]
            base += np.concatenate(around, -1) @ model.ints(f"context.{parity}.base.neighbours").T
            if model.magnitudes:
                base += np.abs(around).sum(0) @ model.ints(f"context.{parity}.base.neighbour_sizes").T
        first = 0
        for group, size in enumerate(model.groups):
            name = f"context.{parity}.{group}"
            own = model.ints(f"{name}.own.bias")
            if group:
                own = canvas[inside][..., :first] @ model.ints(f"{name}.own.weight").T + own
            if group and model.magnitudes:
                own = np.abs(canvas[inside][..., :first]) @ model.ints(f"{name}.own.sizes").T + own
            a = resc(base + own, model.ints(f"context.{parity}.base.shift"), 0, 2047)
            for layer, low, high in (("hidden", 0, 2047), ("out", -8191, 8191)):
                a = a @ model.ints(f"{name}.{layer}.weight").T + model.ints(f"{name}.{layer}.bias")
                a = resc(a, model.ints(f"{name}.{layer}.shift"), low, high)
            here = (quality - 1, slice(first, first + size))
            mu = a[..., :size] * model.ints("level.from_context.mantissa")[here]
            mu = resc(mu, model.ints("level.from_context.exponent")[here], -8191, 8191)
            table = np.clip((a[..., size:] + model.ints("level.scale_offset")[here] + 8) // 16, 0, 63)
            residuals = np.array(
                [
                    lanes[p % len(lanes)].residual(all_tables[t])
                    for p, numbers in enumerate(table.reshape(-1, size).tolist())
                    for t in numbers
                ],
                np.int64,
            )
            crc = zlib.crc32(residuals.astype("<i2").tobytes(), crc)
            value = mu + 16 * residuals.reshape(mu.shape)
            scaled = np.clip(value, -8191, 8191) * model.ints("level.to_context.mantissa")[here]
            channels = np.arange(first, first + size)
            y_hat[np.ix_(rows, columns, channels)] = value
            canvas[np.ix_(rows + 1, columns + 1, channels)] = resc(
                scaled, model.ints("level.to_context.exponent")[here], -511, 511
            )
            first += size
    for number, lane in enumerate(lanes):
        if lane.at != len(lane.rest):
            raise SpecError(f"lane {number} has bytes left")
        if lane.x != (0 if number else crc & 0xFFF):
            raise SpecError(f"lane {number} ends in another state")
    return y_hat


# ---- step 8 ----


def linear(model: SpecModel, name: str, x: Floats) -> Floats:
    return x @ model.floats(f"{name}.weight").T + model.floats(f"{name}.bias")


def depthwise(model: SpecModel, name: str, x: Floats) -> Floats:
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    weight = model.floats(f"{name}.weight")
    out = np.broadcast_to(model.floats(f"{name}.bias"), x.shape).copy()
    for dy in range(3):
        for dx in range(3):
            out += weight[:, 0, dy, dx] * padded[dy : dy + h, dx : dx + w]
    return out


def synthesise(data: bytes, y_hat: Ints, height: int, width: int, grey: bool, quality: int) -> Bytes:
    """The pixels of an image: (height, width, 3), or (height, width) for a grey one."""
    model = read_model(data)
    h, w, _ = y_hat.shape
    y: Floats = y_hat.astype(np.float32) / np.float32(16) * model.floats("gain.synthesis")[quality - 1]
    spatial: Floats = spatial_features(height, width, grey).astype(np.float32) / np.float32(256)
    level: Floats = level_features(model, quality).astype(np.float32) / np.float32(256)
    x: Floats = linear(model, "synthesis.first", y) + linear(model, "synthesis.static.spatial", spatial)
    x = x + model.floats("synthesis.static.level.weight") @ level
    for block in range(model.blocks):
        name = f"synthesis.blocks.{block}"
        a, b = np.split(linear(model, f"{name}.expand", depthwise(model, f"{name}.depthwise", x)), 2, -1)
        gated: Floats = np.clip(a, 0, 6) * np.clip(b, -6, 6)
        x = x + linear(model, f"{name}.project", gated)
    out = linear(model, "synthesis.last", x).reshape(h, w, 3, 8, 8)
    image = out.transpose(0, 3, 1, 4, 2).reshape(8 * h, 8 * w, 3)[:height, :width]
    if grey:
        image = image.mean(-1)
    return np.clip(np.floor((image + 0.5) * 255 + 0.5), 0, 255).astype(np.uint8)
