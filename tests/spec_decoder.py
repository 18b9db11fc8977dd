"""A second decoder of latent payloads, written from docs/format.md alone and sharing no code with the package.

It is slow, computes in 64-bit integers, and follows the numbered steps of the section "Latent payload".
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
STRAIGHT = ((0, -1), (0, 1), (-1, 0), (1, 0))
KNIGHT = ((-1, -2), (-1, 2), (1, -2), (1, 2), (-2, -1), (-2, 1), (2, -1), (2, 1))
WIDE = ((-1, -3), (-1, 3), (1, -3), (1, 3), (-3, -1), (-3, 1), (3, -1), (3, 1))
NEAR: tuple[tuple[tuple[int, int], ...], ...] = ((), DIAGONAL, STRAIGHT, STRAIGHT + DIAGONAL)
FAR: tuple[tuple[tuple[int, int], ...], ...] = ((), WIDE, KNIGHT, KNIGHT)
PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))
KINDS = ("blind", "coarse.1", "coarse.2", "coarse.3", "fine.1", "fine.2", "fine.3")


class SpecError(ValueError):
    """A payload or a model that a reader must refuse."""


@dataclass(frozen=True)
class SpecModel:
    arrays: Mapping[str, NDArray]
    groups: tuple[int, ...]
    width: int
    context_width: int
    blocks: int
    far: int

    @property
    def latents(self) -> int:
        return sum(self.groups)

    def ints(self, name: str) -> Ints:
        array = self.arrays[name]
        assert array.dtype.kind in "iu", name
        return array.astype(np.int64)

    def scaled(self, name: str, values: Ints, at: Any = ...) -> Ints:
        """The values times the multiplier of that name."""
        shift = int(self.arrays[f"{name}.shift"][0])
        return (values * self.ints(f"{name}.mantissa")[at] + 2 ** (shift - 1)) >> shift

    def whole(self, name: str) -> Ints:
        """A weight of two halves."""
        high, low = np.split(self.ints(name), 2)
        return 128 * high + low


@lru_cache(maxsize=2)
def read_model(data: bytes) -> SpecModel:
    """Raises SpecError for a model that a reader must refuse."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    head = json.loads(header["__metadata__"]["zippy_batch"])
    require(head["format"] == 2, "format")
    a = head["architecture"]
    sizes = (a["width"], a["context_width"], a["synthesis_blocks"], a["far_latents"])
    model = SpecModel(load(data), tuple(a["groups"]), *sizes)
    require(model.latents == a["latents"], "groups")
    require(all(1 <= size <= 1024 for size in (*sizes, a["latents"], *model.groups)), "sizes")
    require(model.far <= model.latents, "far_latents")
    check_arrays(model)
    check_bounds(model)
    return model


def require(condition: object, what: str) -> None:
    if not condition:
        raise SpecError(what)


def kind_inputs(model: SpecModel, parity: int) -> int:
    return (len(NEAR[parity]) + 1) * model.latents + len(FAR[parity]) * model.far


def parity_of(kind: str) -> int:
    return 0 if kind == "blind" else int(kind[-1])


Form = tuple[str, tuple[int, ...]]


def multiplier_arrays(name: str, *shape: int) -> dict[str, Form]:
    return {f"{name}.mantissa": ("int32", shape), f"{name}.shift": ("int8", (1,))}


def static_arrays(name: str, outputs: int) -> dict[str, Form]:
    return {
        f"{name}.spatial": ("int32", (outputs, 73)),
        f"{name}.level": ("int32", (outputs, 12)),
        f"{name}.bias": ("int32", (outputs,)),
    }


def layer_arrays(name: str, outputs: int, inputs: int) -> dict[str, Form]:
    return {
        f"{name}.weight": ("int8", (outputs, inputs)),
        f"{name}.bias": ("int32", (outputs,)),
        **multiplier_arrays(f"{name}.scale", outputs),
    }


def context_arrays(model: SpecModel) -> dict[str, Form]:
    c = model.context_width
    wanted: dict[str, Form] = {}
    for kind in KINDS:
        name = f"context.{kind}"
        wanted |= static_arrays(f"{name}.static", c) | multiplier_arrays(f"{name}.shared.scale", c)
        wanted[f"{name}.depth"] = ("int32", (4 if "coarse" in kind else 0, c))
        if kind != "blind":
            wanted[f"{name}.shared.weight"] = ("int8", (c, kind_inputs(model, parity_of(kind))))
        for number, g in enumerate(model.groups):
            step = f"{name}.{number}"
            if number:
                wanted[f"{step}.own.weight"] = ("int8", (c, 2 * sum(model.groups[:number])))
            wanted[f"{step}.first.bias"] = ("int32", (c,))
            wanted |= multiplier_arrays(f"{step}.own.scale", c) | multiplier_arrays(f"{step}.first.scale", c)
            wanted |= layer_arrays(f"{step}.hidden", c, c) | layer_arrays(f"{step}.out", 2 * g, c)
    return wanted


def synthesis_arrays(model: SpecModel) -> dict[str, Form]:
    m, w = model.latents, model.width
    wanted = static_arrays("synthesis.static", w)
    wanted |= {"synthesis.first.weight": ("int8", (2 * w, m)), "synthesis.last.weight": ("int8", (384, w))}
    wanted |= multiplier_arrays("synthesis.first.scale", w) | multiplier_arrays("synthesis.last.scale", 192)
    wanted["synthesis.last.bias"] = ("int64", (192,))
    for block in range(model.blocks):
        name = f"synthesis.{block}"
        wanted |= {f"{name}.depthwise.taps": ("int16", (9, w)), f"{name}.depthwise.bias": ("int32", (w,))}
        wanted |= multiplier_arrays(f"{name}.depthwise.scale", w) | multiplier_arrays(f"{name}.gate.scale", w)
        wanted |= layer_arrays(f"{name}.expand", 2 * w, w) | layer_arrays(f"{name}.project", w, w)
    return wanted


def wanted_arrays(model: SpecModel) -> dict[str, Form]:
    m = model.latents
    require("entropy.radius" in model.arrays, "entropy.radius is missing")
    radius = model.arrays["entropy.radius"].astype(np.int64)
    require((radius >= 0).all(), "entropy.radius")
    wanted: dict[str, Form] = {
        "quality.level": ("int16", (100,)),
        "level.scale_offset": ("int16", (100, m)),
        "entropy.radius": ("int16", (64,)),
        "entropy.frequencies": ("uint16", (int((2 * radius[1:] + 2).sum()),)),
    }
    for name in ("level.to_sixteenths", "level.to_canvas", "level.to_synthesis"):
        wanted |= multiplier_arrays(name, 100, m)
    return wanted | context_arrays(model) | synthesis_arrays(model)


def check_arrays(model: SpecModel) -> None:
    for name, form in wanted_arrays(model).items():
        require(name in model.arrays, f"{name} is missing")
        require((str(model.arrays[name].dtype), model.arrays[name].shape) == form, f"{name} is not {form}")
    require(0 <= model.ints("quality.level").min() <= model.ints("quality.level").max() <= 704, "quality.level")


def within(model: SpecModel, name: str, limit: int) -> None:
    require(np.abs(model.ints(name)).max(initial=0) <= limit, f"{name}: beyond +-{limit}")


def check_bounds(model: SpecModel) -> None:
    """All sums and products stay within what a reader may compute them in."""
    for name in [n for n in model.arrays if n.startswith(("context.", "synthesis.", "level."))]:
        if name.endswith(".weight"):
            within(model, name, 64)
            require(128 * np.abs(model.ints(name)).sum(1).max() < 2**24, f"{name}: sums")
        if name.endswith(".mantissa"):
            of_edge = name.startswith(("synthesis.first.", "synthesis.last."))
            within(model, name, 2 ** (25 if of_edge else 30) - 1)
            require(model.ints(name).min() >= 0, f"{name}: negative")
        if name.endswith(".shift"):
            require(1 <= model.ints(name)[0] <= 46, name)
        if name.endswith((".static.spatial", ".static.level")):
            within(model, name, 2**30)
        if name.endswith((".static.bias", ".depth", ".first.bias")):
            within(model, name, 2**28)
        if name.endswith((".hidden.bias", ".out.bias")):
            rows = model.ints(name.replace("bias", "weight")).sum(1)
            require(np.abs(model.ints(name) + 128 * rows).max() < 2**30, name)
        if name.endswith((".expand.bias", ".project.bias", ".depthwise.bias")):
            within(model, name, 2**30 - 1)
        if name.endswith(".taps"):
            require(np.abs(model.ints(name)).sum(0).max() <= 2**14, name)
        if name.endswith((".shared.weight", ".own.weight")):
            largest = 128 * np.abs(model.ints(name)).sum(1)
            require(model.scaled(name.replace("weight", "scale"), largest).max() <= 2**28, f"{name}: scaled sums")
    for name in ("synthesis.first.weight", "synthesis.last.weight"):
        high, low = np.split(np.abs(model.ints(name)).sum(1), 2)
        require((128 * high + low).max() <= 2**21, f"{name}: sums")
    within(model, "synthesis.last.bias", 2**36 - 1)


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


def static_part(model: SpecModel, name: str, spatial: Ints, level: Ints) -> Ints:
    """spatial (..., 73), level (12,) -> (..., outputs)"""
    of_position = np.clip(resc(spatial @ model.ints(f"{name}.spatial").T, 16), -(2**28), 2**28)
    of_level = np.clip(resc(model.ints(f"{name}.level") @ level, 16), -(2**28), 2**28)
    return of_position + np.clip(of_level + model.ints(f"{name}.bias"), -(2**28), 2**28)


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


def resc(a: Ints, shift: Ints | int, low: int | None = None, high: int | None = None) -> Ints:
    # floor(a / 2^s + 1/2); shifts of negative int64 are floors
    one = np.int64(1)
    rounded = (2 * a + (one << np.int64(shift))) >> (np.int64(shift) + one)
    return rounded if low is None else np.clip(rounded, low, high)


@dataclass(frozen=True)
class Visit:
    kind: str
    level: int
    rows: range
    columns: range

    @property
    def parity(self) -> int:
        return parity_of(self.kind)


def visits(h: int, w: int) -> Iterator[Visit]:
    top = 0
    while (max(h, w) - 1) // 2**top > 1:
        top += 1
    yield Visit("blind", top, range(0, h, 2**top), range(0, w, 2**top))
    for level in range(top - 1, -1, -1):
        step = 2**level
        for parity in (1, 2, 3):
            i, j = PARITIES[parity]
            rows, columns = range(i * step, h, 2 * step), range(j * step, w, 2 * step)
            if rows and columns:
                yield Visit(f"{'coarse' if level else 'fine'}.{parity}", level, rows, columns)


def at_offset(whole: Ints, visit: Visit, offset: tuple[int, int]) -> Ints:
    """What `whole` (h, w, C) holds at each position of a visit plus an offset in steps of its level; 0 outside."""
    h, w, channels = whole.shape
    out = np.zeros((len(visit.rows), len(visit.columns), channels), np.int64)
    for a, r in enumerate(visit.rows):
        for b, s in enumerate(visit.columns):
            y, x = r + offset[0] * 2**visit.level, s + offset[1] * 2**visit.level
            if 0 <= y < h and 0 <= x < w:
                out[a, b] = whole[y, x]
    return out


def companded(values: Ints) -> Ints:
    """round(sqrt(127 |v|))"""
    return np.floor(np.sqrt(127 * np.abs(values)) + 0.5).astype(np.int64)


def seen_by(model: SpecModel, visit: Visit, canvas: Ints) -> Ints:
    """What a visit's positions see of those coded before."""
    near = [at_offset(canvas, visit, offset) for offset in NEAR[visit.parity]]
    far = [at_offset(canvas[..., : model.far], visit, offset) for offset in FAR[visit.parity]]
    sizes = (np.sum([companded(v) for v in near], 0) + len(near) // 2) // len(near)
    return np.concatenate([*near, sizes, *far], -1)


def predict(model: SpecModel, name: str, shared: Ints, own: Ints) -> tuple[Ints, Ints]:
    """The sums of a group's means and of its scales."""
    z = shared + model.ints(f"{name}.first.bias")
    if own.shape[-1]:
        z = z + model.scaled(f"{name}.own.scale", own @ model.ints(f"{name}.own.weight").T)
    a = np.clip(model.scaled(f"{name}.first.scale", z), 0, 255)
    sums = a @ model.ints(f"{name}.hidden.weight").T + model.ints(f"{name}.hidden.bias")
    b = np.clip(model.scaled(f"{name}.hidden.scale", sums), 0, 255)
    sums = b @ model.ints(f"{name}.out.weight").T + model.ints(f"{name}.out.bias")
    mean, scale = np.split(model.scaled(f"{name}.out.scale", sums), 2, -1)
    return np.clip(mean, 1 - 2**23, 2**23 - 1), scale


def decode(data: bytes, payload: bytes, height: int, width: int, grey: bool, quality: int) -> Ints:
    """The latents of an image in sixteenths, (h, w, M). Raises SpecError where the check of step 7 fails."""
    model = read_model(data)
    h, w = grid(height, width)
    spatial = spatial_features(height, width, grey)
    level = level_features(model, quality)
    all_tables = tables(model)
    lanes = split_lanes(payload, min(256, max(1, h * w // 1024)))
    y_hat = np.zeros((h, w, model.latents), np.int64)
    canvas = np.zeros((h, w, model.latents), np.int64)
    crc = 0
    for visit in visits(h, w):
        cells = np.ix_(visit.rows, visit.columns)
        name = f"context.{visit.kind}"
        shared = static_part(model, f"{name}.static", spatial[cells], level)
        if "coarse" in visit.kind:
            shared = shared + model.ints(f"{name}.depth")[min(visit.level, 4) - 1]
        if visit.parity:
            sums = seen_by(model, visit, canvas) @ model.ints(f"{name}.shared.weight").T
            shared = shared + model.scaled(f"{name}.shared.scale", sums)
        own = np.zeros((*shared.shape[:2], 0), np.int64)
        first = 0
        for group, size in enumerate(model.groups):
            mean, scale = predict(model, f"{name}.{group}", shared, own)
            here = (quality - 1, slice(first, first + size))
            mu = np.clip(model.scaled("level.to_sixteenths", mean, here), 1 - 2**19, 2**19 - 1)
            table = np.clip((scale + model.ints("level.scale_offset")[here] + 8) // 16, 0, 63)
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
            seen = np.clip(model.scaled("level.to_canvas", value, here), -127, 127)
            channels = np.ix_(visit.rows, visit.columns, range(first, first + size))
            y_hat[channels], canvas[channels] = value, seen
            own = np.concatenate([own, seen, companded(seen)], -1)
            first += size
    for number, lane in enumerate(lanes):
        if lane.at != len(lane.rest):
            raise SpecError(f"lane {number} has bytes left")
        if lane.x != (0 if number else crc & 0xFFF):
            raise SpecError(f"lane {number} ends in another state")
    return y_hat


# ---- step 8 ----


def depthwise(model: SpecModel, name: str, v: Ints) -> Ints:
    h, w, _ = v.shape
    padded = np.pad(v, ((1, 1), (1, 1), (0, 0)))
    taps = model.ints(f"{name}.taps")
    sums = model.ints(f"{name}.bias")
    for d in range(3):
        for e in range(3):
            sums = sums + taps[3 * d + e] * padded[d : d + h, e : e + w]
    return np.clip(model.scaled(f"{name}.scale", sums), -127, 127)


def linear(model: SpecModel, name: str, x: Ints) -> Ints:
    sums = x @ model.ints(f"{name}.weight").T + model.ints(f"{name}.bias")
    return model.scaled(f"{name}.scale", sums)


def synthesise(data: bytes, y_hat: Ints, height: int, width: int, grey: bool, quality: int) -> Bytes:
    """The pixels of an image: (height, width, 3), or (height, width) for a grey one."""
    model = read_model(data)
    h, w, _ = y_hat.shape
    top = 32639
    y = np.clip(model.scaled("level.to_synthesis", y_hat, quality - 1), -top, top)
    static = static_part(
        model, "synthesis.static", spatial_features(height, width, grey), level_features(model, quality)
    )
    v = model.scaled("synthesis.first.scale", y @ model.whole("synthesis.first.weight").T) + static
    v = np.clip(v, -top, top)
    for block in range(model.blocks):
        name = f"synthesis.{block}"
        a, b = np.split(linear(model, f"{name}.expand", depthwise(model, f"{name}.depthwise", v)), 2, -1)
        gated = np.clip(model.scaled(f"{name}.gate.scale", np.clip(a, 0, 1536) * np.clip(b, -1536, 1536)), -127, 127)
        v = np.clip(v + linear(model, f"{name}.project", gated), -top, top)
    sums = v @ model.whole("synthesis.last.weight").T + model.ints("synthesis.last.bias")
    out = model.scaled("synthesis.last.scale", sums).reshape(h, w, 3, 8, 8)
    samples = out.transpose(0, 3, 1, 4, 2).reshape(8 * h, 8 * w, 3)[:height, :width]
    levels = (samples.sum(-1) + 24) // 48 if grey else (samples + 8) // 16
    return np.clip(levels, 0, 255).astype(np.uint8)
