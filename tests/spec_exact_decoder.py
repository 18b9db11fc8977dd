"""A second decoder of exact rows, written from docs/format.md alone and sharing no code with the package.

It is slow and follows the sections "JPEG header" and "Exact payload"; of what those refer to in "Latent payload" it
takes the reading in spec_decoder.py.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spec_decoder import Ints, Lane, hat, require, resc, spatial_features

AC = 16
OPTIMISED = 32
KNOTS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 42, 63)
SEEN: dict[str, tuple[str, ...]] = {"cb": (), "cr": ("cb",), "y": ("cb", "cr")}
TYPES = {"bias": "int32", "shift": "int8", "unit": "int8"}

Table = tuple[bytes, bytes]
"""Of a Huffman table: the 16 numbers of codes of each length, and the values in the order of their codes."""


# ---- JPEG header: the recipe ----


@dataclass(frozen=True)
class LeftOut:
    at: int
    tables: bytes


@dataclass(frozen=True)
class Scan:
    padding: int
    left_out: tuple[LeftOut, ...]
    run: bytes


@dataclass(frozen=True)
class Recipe:
    whole: bool
    scans: tuple[Scan, ...]
    tail: bytes


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        require(self.at + count <= len(self.data), "the data end too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self, low: int = 0, high: int = 255) -> int:
        value = self.take(1)[0]
        require(low <= value <= high, f"{value} is not {low} to {high}")
        return value

    def short(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def number(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 5 bytes")


def read_recipe(header: bytes) -> Recipe:
    reader = Reader(header)
    reader.byte(1, 1)
    whole = reader.byte(0, 1) == 1
    scans = []
    for _ in range(reader.byte(1, 3)):
        padding = reader.byte(0, 1)
        left_out = []
        for _ in range(reader.number()):
            at = reader.number()
            left_out.append(LeftOut(at, reader.take(reader.byte())))
        run = reader.take(reader.number())
        places = [part.at for part in left_out]
        require(places == sorted(places) and max(places, default=0) <= len(run), "positions of segments")
        scans.append(Scan(padding, tuple(left_out), run))
    return Recipe(whole, tuple(scans), header[reader.at :])


# ---- JPEG header: what the runs say ----


@dataclass(frozen=True)
class Component:
    number: int
    h: int
    v: int
    table: int


@dataclass(frozen=True)
class Frame:
    height: int
    width: int
    components: tuple[Component, ...]

    @property
    def h_max(self) -> int:
        return max(c.h for c in self.components)

    @property
    def v_max(self) -> int:
        return max(c.v for c in self.components)

    @property
    def mcus(self) -> tuple[int, int]:
        return ceil_div(self.height, 8 * self.v_max), ceil_div(self.width, 8 * self.h_max)

    def size(self, k: int) -> tuple[int, int]:
        """Height and width of a component in its own pixels."""
        c = self.components[k]
        return ceil_div(self.height * c.v, self.v_max), ceil_div(self.width * c.h, self.h_max)

    def touched(self, k: int) -> tuple[int, int]:
        height, width = self.size(k)
        return ceil_div(height, 8), ceil_div(width, 8)

    def blocks(self, k: int, whole: bool) -> tuple[int, int]:
        if not whole or len(self.components) == 1:
            return self.touched(k)
        rows, columns = self.mcus
        return rows * self.components[k].v, columns * self.components[k].h


@dataclass(frozen=True)
class Part:
    """A component's part in a scan: its number in the frame, and its Huffman tables."""

    component: int
    dc: int
    ac: int


class State:
    """What the segments read so far have defined, but for Huffman tables."""

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.restart = 0
        self.quantisation: dict[int, tuple[int, ...]] = {}
        self.scanned: dict[int, tuple[int, ...]] = {}
        """Of each component that was in a scan: its quantisation table then."""

    def read(self, run: bytes) -> tuple[Part, ...]:
        """Reads a run, and gives the components of the scan that it ends with."""
        scan: tuple[Part, ...] = ()
        for marker, body in segments(run):
            require(not scan, "a run goes on after its scan header")
            reader = Reader(body)
            if marker in (0xC0, 0xC1):
                require(self.frame is None, "a second frame")
                self.frame = read_frame(reader)
            elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                raise ValueError("a frame of another kind")
            elif marker == 0xDB:
                while reader.at < len(body):
                    name = reader.byte()
                    steps = tuple(reader.short() if name & 16 else reader.byte() for _ in range(64))
                    require(min(steps) > 0, "a quantisation step of 0")
                    self.quantisation[name & 15] = steps
            elif marker == 0xDD:
                self.restart = reader.short()
            elif marker == 0xDA:
                scan = self.read_scan(reader)
        require(scan, "a run without a scan header")
        return scan

    def read_scan(self, reader: Reader) -> tuple[Part, ...]:
        frame = self.frame
        if frame is None:
            raise ValueError("a scan without a frame")
        numbers = [c.number for c in frame.components]
        parts = []
        for _ in range(reader.byte(1, len(numbers))):
            number, tables = reader.byte(), reader.byte()
            require(number in numbers, "a component that is not in the frame")
            k = numbers.index(number)
            table = frame.components[k].table
            require(k not in self.scanned, "a component's second scan")
            require(table in self.quantisation, "no quantisation table")
            self.scanned[k] = self.quantisation[table]
            parts.append(Part(k, tables >> 4, tables & 15))
        return tuple(parts)


def segments(run: bytes) -> Iterator[tuple[int, bytes]]:
    reader = Reader(run)
    while reader.at < len(run):
        reader.byte(255, 255)
        marker = reader.byte()
        while marker == 255:
            marker = reader.byte()
        if marker != 0xD8:
            yield marker, reader.take(reader.short() - 2)


def read_frame(reader: Reader) -> Frame:
    reader.byte(8, 8)
    height, width = reader.short(), reader.short()
    require(1 <= height <= 4096 and 1 <= width <= 4096, "size of the frame")
    components = []
    for _ in range(reader.byte()):
        number, sampling = reader.byte(), reader.byte()
        components.append(Component(number, sampling >> 4, sampling & 15, reader.byte()))
        require(1 <= components[-1].h <= 4 and 1 <= components[-1].v <= 4, "sampling factors")
    require(len(components) in (1, 3), "number of components")
    frame = Frame(height, width, tuple(components))
    coefficients = sum(64 * math.prod(frame.mcus) * c.h * c.v for c in components)
    require(coefficients <= 50_331_648, "too many coefficients")
    return frame


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# ---- JPEG header: the file ----


@dataclass(frozen=True)
class Symbol:
    """A Huffman coded symbol of a table (`destination`, with AC added), and the bits that follow it."""

    table: int
    value: int
    extra: int
    count: int


def rebuild_file(jpeg_header: bytes, coefficients: Sequence[Ints]) -> bytes:
    """The JPEG file of an exact row. Raises ValueError for a recipe that a reader must refuse."""
    recipe = read_recipe(jpeg_header)
    state = State()
    tables = dict(standard_tables())
    out = bytearray()
    for scan in recipe.scans:
        # what is left out are whole segments: the scan is known without them
        parts = state.read(scan.run)
        assert state.frame is not None  # a scan has one
        intervals = [
            [symbol for mcu in interval for symbol in mcu]
            for interval in scan_symbols(state.frame, parts, state.restart, coefficients)
        ]
        used = {s.table: Counter[int]() for interval in intervals for s in interval}
        for interval in intervals:
            for symbol in interval:
                used[symbol.table][symbol.value] += 1
        run = bytearray()
        at = 0
        for left_out in scan.left_out:
            run += scan.run[at : left_out.at] + table_segment(left_out.tables, used)
            at = left_out.at
        run += scan.run[at:]
        for marker, body in segments(bytes(run)):
            if marker == 0xC4:
                read_tables(body, tables)
        codes = {name: codes_of(table) for name, table in tables.items()}
        out += run
        for number, interval in enumerate(intervals):
            if number:
                out += bytes([255, 0xD0 + (number - 1) % 8])
            out += entropy_coded(interval, codes, scan.padding)
    return bytes(out) + recipe.tail


def read_tables(body: bytes, tables: dict[int, Table]) -> None:
    reader = Reader(body)
    while reader.at < len(body):
        name = reader.byte()
        bits = reader.take(16)
        tables[name] = bits, reader.take(sum(bits))


def scan_symbols(
    frame: Frame, parts: Sequence[Part], restart: int, coefficients: Sequence[Ints]
) -> list[list[list[Symbol]]]:
    """Of each restart interval, of each MCU: its symbols."""
    intervals: list[list[list[Symbol]]] = []
    predictions: dict[int, int] = {}
    for number, mcu in enumerate(scan_blocks(frame, parts)):
        if number == 0 or (restart and number % restart == 0):
            intervals.append([])
            predictions = {part.component: 0 for part in parts}
        symbols: list[Symbol] = []
        for part, row, column in mcu:
            array = coefficients[part.component]
            prediction = predictions[part.component]
            block = [prediction] + [0] * 63
            if row < array.shape[0] and column < array.shape[1]:
                block = array[row, column].tolist()
            symbols += block_symbols(block, prediction, part)
            predictions[part.component] = block[0]
        intervals[-1].append(symbols)
    return intervals


def scan_blocks(frame: Frame, parts: Sequence[Part]) -> Iterator[list[tuple[Part, int, int]]]:
    if len(parts) == 1:
        rows, columns = frame.touched(parts[0].component)
        yield from ([(parts[0], row, column)] for row in range(rows) for column in range(columns))
        return
    rows, columns = frame.mcus
    for row in range(rows):
        for column in range(columns):
            mcu = []
            for part in parts:
                c = frame.components[part.component]
                mcu += [(part, row * c.v + y, column * c.h + x) for y in range(c.v) for x in range(c.h)]
            yield mcu


def block_symbols(block: Sequence[int], prediction: int, part: Part) -> Iterator[Symbol]:
    yield amplitude(part.dc, 0, block[0] - prediction)
    zeros = 0
    for value in block[1:]:
        if value == 0:
            zeros += 1
            continue
        for _ in range(zeros // 16):
            yield Symbol(AC + part.ac, 0xF0, 0, 0)
        yield amplitude(AC + part.ac, zeros % 16, value)
        zeros = 0
    if zeros:
        yield Symbol(AC + part.ac, 0, 0, 0)


def amplitude(table: int, zeros: int, value: int) -> Symbol:
    size = abs(value).bit_length()
    require(size < 16, "a value that no code is for")
    return Symbol(table, 16 * zeros + size, value if value >= 0 else value + 2**size - 1, size)


def entropy_coded(symbols: Sequence[Symbol], codes: Mapping[int, Mapping[int, str]], padding: int) -> bytes:
    bits = []
    for symbol in symbols:
        code = codes.get(symbol.table, {}).get(symbol.value)
        if code is None:
            raise ValueError("a symbol that has no code")
        bits.append(code)
        if symbol.count:
            bits.append(f"{symbol.extra:0{symbol.count}b}")
    text = "".join(bits)
    text += str(padding) * (-len(text) % 8)
    return int(text or "0", 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def codes_of(table: Table) -> dict[int, str]:
    bits, values = table
    codes = {}
    code = at = 0
    for length, count in enumerate(bits, 1):
        for value in values[at : at + count]:
            codes[value] = f"{code:0{length}b}"
            code += 1
        at += count
        code *= 2
    return codes


def table_segment(names: bytes, used: Mapping[int, Mapping[int, int]]) -> bytes:
    body = b""
    for name in names:
        require(name & ~(3 | AC | OPTIMISED) == 0, "a table of another kind")
        destination = name & (3 | AC)
        if name & OPTIMISED:
            bits, values = optimised_table(used.get(destination, {}))
        else:
            require(destination in standard_tables(), "K.3.3 has no such table")
            bits, values = standard_tables()[destination]
        body += bytes([destination]) + bits + values
    return b"\xff\xc4" + (len(body) + 2).to_bytes(2, "big") + body


def optimised_table(used: Mapping[int, int]) -> Table:
    trees = {**used, 256: 1}
    members = {number: [number] for number in trees}
    lengths = dict.fromkeys(trees, 0)
    while len(trees) > 1:
        first = min(trees, key=lambda n: (trees[n], -n))
        second = min(trees.keys() - {first}, key=lambda n: (trees[n], -n))
        trees[first] += trees.pop(second)
        members[first] += members.pop(second)
        for number in members[first]:
            lengths[number] += 1
    bits = [0] * (max(16, *lengths.values()) + 1)
    for length in lengths.values():
        bits[length] += 1
    bits[0] = 0
    for length in range(len(bits) - 1, 16, -1):
        while bits[length]:
            shorter = length - 2
            while bits[shorter] == 0:
                shorter -= 1
            bits[length] -= 2
            bits[length - 1] += 1
            bits[shorter + 1] += 2
            bits[shorter] -= 1
    longest = max((length for length in range(1, 17) if bits[length]), default=0)
    if longest:
        bits[longest] -= 1
    values = sorted(used, key=lambda n: (lengths[n], n))
    return bytes(bits[1:17]), bytes(values)


@lru_cache(maxsize=1)
def standard_tables() -> dict[int, Table]:
    """T.81 K.3.3: its four tables, by destination, with AC added."""
    categories = bytes(range(12))
    return {
        0: (bytes.fromhex("00010501010101010100000000000000"), categories),
        1: (bytes.fromhex("00030101010101010101010000000000"), categories),
        AC: (
            bytes.fromhex("0002010303020403050504040000017d"),
            bytes.fromhex(
                "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728"
                "292a3435363738393a434445464748494a535455565758595a636465666768696a737475767778797a83848586878889"
                "8a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2"
                "e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
            ),
        ),
        AC + 1: (
            bytes.fromhex("00020102040403040705040400010277"),
            bytes.fromhex(
                "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a26"
                "2728292a35363738393a434445464748494a535455565758595a636465666768696a737475767778797a828384858687"
                "88898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9da"
                "e2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
            ),
        ),
    }


# ---- Model files ----


def group_inputs(first: int, stop: int) -> int:
    return 2 * (stop - first) + max(0, min(stop, 15) - first)


def check_model(arrays: Mapping[str, NDArray], architecture: Mapping[str, Any]) -> None:
    """Raises ValueError for a model that a reader must refuse."""
    for plane, others in SEEN.items():
        form = architecture["luma" if plane == "y" else "chroma"]
        groups, state = form["groups"], form["state"]
        require(min(groups) > 0 and sum(groups) == 64 and len(groups) == len(form["stages"]), "groups")
        require(all(1 <= stages <= 3 for stages in [*form["stages"], form["end_stages"]]), "stages")
        require(all(1 <= width <= 4096 for width in [state, *form["hidden"]]), "widths")
        require(1 <= len(form["hidden"]) <= 8, "hidden")
        # nothing would tell its later stages of the earlier: it has no taps
        require(form["stages"][-1] == 1, "stages of the last group")
        starts = [0, *accumulate(groups)]
        matrices = {"static": 87, "ends": 144} | {f"seen.{other}": 143 + 16 for other in others}
        matrices |= {f"taps.{g}": 9 * group_inputs(*starts[g : g + 2]) for g in range(len(groups) - 1)}
        wanted: dict[str, tuple[int, ...]] = {f"state.{name}": (state, inputs) for name, inputs in matrices.items()}
        wanted |= {"state.bias": (state,), "state.shift": (state,), "unit": (64,)}
        sums: list[tuple[str, list[str], int]] = [("state", list(wanted)[: len(matrices)], 256)]
        steps = [(f"ends.{t}", 64) for t in range(form["end_stages"])]
        steps += [(f"{g}.{t}", 8 * size) for g, size in enumerate(groups) for t in range(form["stages"][g])]
        for step, outputs in steps:
            before = state
            layers = [(f"{step}.hidden.{i}", width) for i, width in enumerate(form["hidden"])]
            for layer, width in [*layers, (f"{step}.out", outputs)]:
                wanted |= {f"{layer}.weight": (width, before), f"{layer}.bias": (width,), f"{layer}.shift": (width,)}
                sums.append((layer, [f"{layer}.weight"], 255))
                before = width
        for name, shape in wanted.items():
            require(f"{plane}.{name}" in arrays, f"{plane}.{name} is missing")
            found = arrays[f"{plane}.{name}"]
            kind = TYPES.get(name.split(".")[-1], "int16")
            require((str(found.dtype), found.shape) == (kind, shape), f"{plane}.{name} is not {kind} {shape}")
        unit = arrays[f"{plane}.unit"]
        require(unit.min() >= 0 and unit.max() <= 10, f"{plane}.unit is out of its range")
        for name, weights, limit in sums:
            shift = arrays[f"{plane}.{name}.shift"].astype(np.int64)
            require(shift.min() >= 1 and shift.max() <= 22, f"{plane}.{name}: shifts")
            total = np.abs(arrays[f"{plane}.{name}.bias"].astype(np.int64)) + 2**shift
            for weight in weights:
                total = total + limit * np.abs(arrays[f"{plane}.{weight}"].astype(np.int64)).sum(1)
            require(total.max() < 2**24, f"{plane}.{name}: sums")


# ---- Exact payload, steps 1 to 3 ----


@dataclass(frozen=True)
class Plane:
    """A component with what its recipe says of it, and later its coefficients and ends."""

    component: Component
    steps: tuple[int, ...]
    static: Ints
    coefficients: Ints
    ends: Ints

    @property
    def shape(self) -> tuple[int, int]:
        return self.ends.shape[0], self.ends.shape[1]


def log(q: int) -> int:
    return round(128 * math.log2(q))


def plane_of(frame: Frame, k: int, whole: bool, steps: tuple[int, ...]) -> Plane:
    component = frame.components[k]
    rows, columns = frame.blocks(k, whole)
    needed = frame.touched(k)
    height, width = frame.size(k)
    spatial = spatial_features(
        8 * rows if rows > needed[0] else height,
        8 * columns if columns > needed[1] else width,
        len(frame.components) == 1,
    )
    level = [2 * v for v in hat(min(sum(map(log, steps[:10])) // 10, 896), 8, 128)]
    down = min(2, component.v // min(c.v for c in frame.components))
    across = min(2, component.h // min(c.h for c in frame.components))
    static = np.zeros((rows, columns, 87), np.int64)
    static[..., :73] = spatial
    static[..., 73:81] = level
    for r in range(rows):
        for s in range(columns):
            static[r, s, 81 + 2 * (r % down) + s % across] = 256
    static[..., 85] = 256 if down > 1 else 0
    static[..., 86] = 256 if across > 1 else 0
    return Plane(component, steps, static, np.zeros((rows, columns, 64), np.int64), np.zeros((rows, columns), np.int64))


@lru_cache(maxsize=1)
def sizes() -> Ints:
    return np.array([round(28 * math.log2(1 + v / 4)) for v in range(2048)], np.int64)


def coefficient_inputs(plane: Plane, first: int, stop: int) -> Ints:
    v = np.clip(plane.coefficients[..., first:stop] * np.array(plane.steps[first:stop], np.int64), -2047, 2047)
    size = sizes()[np.abs(v)]
    linear = np.clip(v // 4, -255, 255)[..., : max(0, 15 - first)]
    return np.concatenate([size * np.sign(v), linear, size], -1)


def end_inputs(plane: Plane) -> Ints:
    e = plane.ends
    inputs = []
    for p, k, n in zip((-1, *KNOTS[:-1]), KNOTS, (*KNOTS[1:], 64), strict=True):
        inputs.append(np.clip(np.minimum(256 * (e - p) // (k - p), 256 * (n - e) // (n - k)), 0, 256))
    return np.stack(inputs, -1)


# ---- Exact payload, steps 4 to 9 ----


def decode_coefficients(
    payload: bytes, jpeg_header: bytes, arrays: Mapping[str, NDArray], architecture: Mapping[str, Any]
) -> list[Ints]:
    """Of each component of the frame (rows, columns, 64). Raises ValueError where the check of step 9 fails."""
    check_model(arrays, architecture)
    recipe = read_recipe(jpeg_header)
    state = State()
    for scan in recipe.scans:
        state.read(scan.run)
    frame = state.frame
    assert frame is not None  # a scan has one
    require(len(state.scanned) == len(frame.components), "a component without a scan")
    names = ("y", "cb", "cr")[: len(frame.components)]
    planes = {name: plane_of(frame, k, recipe.whole, state.scanned[k]) for k, name in enumerate(names)}
    lane = Lane(payload)
    for name in ("cb", "cr", "y"):
        if name in planes:
            form = architecture["luma" if name == "y" else "chroma"]
            PlaneDecoder(name, planes, arrays, form, lane).decode()
    found = [planes[name].coefficients for name in names]
    crc = zlib.crc32(b"".join(array.astype("<i2").tobytes() for array in found))
    require(lane.at == len(lane.rest), "the payload has bytes left")
    require(lane.x == crc & 0xFFFFFF, "the payload ends in another state")
    return found


class PlaneDecoder:
    def __init__(
        self,
        name: str,
        planes: Mapping[str, Plane],
        arrays: Mapping[str, NDArray],
        form: Mapping[str, Any],
        lane: Lane,
    ) -> None:
        self.name = name
        self.planes = planes
        self.plane = planes[name]
        self.arrays = arrays
        self.form = form
        self.lane = lane

    def ints(self, name: str) -> Ints:
        return self.arrays[f"{self.name}.{name}"].astype(np.int64)

    def decode(self) -> None:
        plane = self.plane
        sums = self.ints("state.bias") + plane.static @ self.ints("state.static").T
        for other in (name for name in SEEN[self.name] if name in self.planes):
            sums = sums + self.seen(self.planes[other]) @ self.ints(f"state.seen.{other}").T
        count = self.form["end_stages"]
        for t in range(count):
            if t:
                outputs = self.outputs(f"ends.{t}", sums + self.near("ends", end_inputs(plane), count, t))
            else:
                outputs = self.outputs("ends.0", sums)
            for r, s in self.blocks(count, t):
                plane.ends[r, s] = self.pop_end(outputs[r, s].tolist())
        sums = sums + self.near("ends", end_inputs(plane), count, count)
        first = 0
        units = self.ints("unit").tolist()
        groups = self.form["groups"]
        for g, size in enumerate(groups):
            count = self.form["stages"][g]
            for t in range(count):
                known = sums
                if t:
                    known = sums + self.near(f"taps.{g}", coefficient_inputs(plane, first, first + size), count, t)
                outputs = self.outputs(f"{g}.{t}", known)
                for r, s in self.blocks(count, t):
                    end = int(plane.ends[r, s])
                    o = outputs[r, s].reshape(8, size).T.tolist()
                    for number in range(first, min(first + size, end + 1)):
                        last = number == end and number > 0
                        value = self.pop_coefficient(o[number - first], plane.steps[number], units[number], last)
                        plane.coefficients[r, s, number] = value
            if g + 1 < len(groups):
                inputs = coefficient_inputs(plane, first, first + size)
                sums = sums + self.near(f"taps.{g}", inputs, count, count)
            first += size

    def seen(self, other: Plane) -> Ints:
        inputs = np.concatenate([coefficient_inputs(other, 0, 64), end_inputs(other)], -1)
        rows, columns = self.plane.shape
        here, there = self.plane.component, other.component
        r = np.minimum(np.arange(rows) * there.v // here.v, other.shape[0] - 1)
        s = np.minimum(np.arange(columns) * there.h // here.h, other.shape[1] - 1)
        return inputs[np.ix_(r, s)]

    def stages(self, count: int) -> Ints:
        r, s = np.indices(self.plane.shape)
        if count == 1:
            return np.zeros_like(r)
        if count == 2:
            return (r + s) % 2
        return np.where((r % 2 == 0) & (s % 2 == 0), 0, np.where((r % 2 == 1) & (s % 2 == 1), 1, 2))

    def blocks(self, count: int, t: int) -> list[list[int]]:
        """(r, s) of a stage's blocks in raster order."""
        return np.argwhere(self.stages(count) == t).tolist()

    def near(self, name: str, inputs: Ints, count: int, t: int) -> Ints:
        """What the blocks of the stages before `t` add to the sums."""
        rows, columns = self.plane.shape
        padded = np.pad(np.where((self.stages(count) < t)[..., None], inputs, 0), ((1, 1), (1, 1), (0, 0)))
        around = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
        return np.concatenate(around, -1) @ self.ints(f"state.{name}").T

    def outputs(self, step: str, sums: Ints) -> Ints:
        a = resc(sums, self.ints("state.shift"), -255, 255)
        layers = [(f"{step}.hidden.{i}", 0, 255) for i in range(len(self.form["hidden"]))]
        for layer, low, high in [*layers, (f"{step}.out", -8191, 8191)]:
            a = a @ self.ints(f"{layer}.weight").T + self.ints(f"{layer}.bias")
            a = resc(a, self.ints(f"{layer}.shift"), low, high)
        return a

    def pop(self, start: int, stop: int) -> None:
        self.lane.advance(stop - start, self.lane.x % 65536 - start)

    def pop_end(self, o: Sequence[int]) -> int:
        weights = [end_weights()[min(511, max(o) - v)] for v in o]
        total = sum(weights)
        starts = [before * 65472 // total + i for i, before in enumerate([0, *accumulate(weights)])]
        slot = self.lane.x % 65536
        end = max(i for i in range(64) if starts[i] <= slot)
        self.pop(starts[end], starts[end + 1])
        return end

    def pop_coefficient(self, o: Sequence[int], q: int, unit: int, last: bool) -> int:
        mixture = Mixture(o, q, unit, last)
        slot = self.lane.x % 65536
        if slot == 65535:
            self.pop(65535, 65536)
            return self.lane.pop_escaped()
        low, high = mixture.lo, mixture.hi
        while low < high:
            middle = (low + high + 1) // 2
            if mixture.start(middle) <= slot:
                low = middle
            else:
                high = middle - 1
        self.pop(mixture.start(low), mixture.start(low + 1))
        return low


@lru_cache(maxsize=1)
def end_weights() -> list[int]:
    return [round(2**20 * math.exp(-n / 32)) for n in range(512)]


@lru_cache(maxsize=1)
def logistic() -> list[int]:
    return [0, *(round(2**24 / (1 + math.exp(-(n - 1024) / 64))) for n in range(1, 2048)), 2**24]


def clamp(v: int, low: int, high: int) -> int:
    return min(max(v, low), high)


def share(n: int) -> int:
    return round(65536 / (1 + math.exp(-clamp(n, -128, 127) / 16)))


class Mixture:
    """Step 8: the intervals of a coefficient's values."""

    def __init__(self, o: Sequence[int], q: int, unit: int, last: bool) -> None:
        octaves = 128 * unit - log(q)
        self.mu = [(v * 2**unit + 8 * q) // (16 * q) for v in o[:3]]
        scales = [2.0 ** (clamp((v + octaves + 8) // 16 + 40, 0, 112) / 8 - 5) for v in o[3:6]]
        first = share(o[6])
        second = (65536 - first) * share(o[7]) // 65536
        self.weights = [first, second, 65536 - first - second]
        reach = [math.ceil(10 * s) + 2 for s in scales]
        self.lo = clamp(min(mu // 64 - r for mu, r in zip(self.mu, reach, strict=True)), -1100, 1100)
        self.hi = clamp(max(mu // 64 + r for mu, r in zip(self.mu, reach, strict=True)), -1100, 1100)
        self.slopes = [round(2**28 / s) for s in scales]
        self.zero = 0
        if last and self.lo < 0 < self.hi:
            self.zero = self.plain_start(1) - self.plain_start(0)

    def plain_start(self, x: int) -> int:
        if x <= self.lo:
            return 0
        if x > self.hi:
            return 65535
        total = 0
        for mu, slope, weight in zip(self.mu, self.slopes, self.weights, strict=True):
            z = clamp(((64 * x - 32 - mu) * slope // 2**20) + 2**18, 0, 2**19 - 1)
            n, rest = divmod(z, 256)
            a = logistic()
            total += weight * (a[n] + (a[n + 1] - a[n]) * rest // 256)
        return total * (65535 - (self.hi - self.lo + 1)) // 2**40 + x - self.lo

    def start(self, x: int) -> int:
        plain = self.plain_start(x)
        if self.zero and self.lo < x <= self.hi:
            return (plain - (self.zero if x > 0 else 0)) * 65535 // (65535 - self.zero)
        return plain
