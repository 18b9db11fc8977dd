"""A second decoder of exact rows, written from docs/format.md alone and sharing no code with the package.

It is slow and follows the sections "JPEG header" and "Exact payload"; of what those refer to in "Latent payload" it
takes the reading in spec_decoder.py.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
class Ending:
    interval: int
    bits: int
    extra: bytes


@dataclass(frozen=True)
class Scan:
    form: int
    endings: tuple[Ending, ...]
    zeros: dict[int, int]
    stops: frozenset[int]
    left_out: tuple[LeftOut, ...]
    run: bytes

    @property
    def padding(self) -> int:
        return self.form & 1


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
    count = reader.byte(1)
    require(count <= 100 or count >= 128, "number of scans")
    scans = [read_scan_record(reader) for _ in range(count if count <= 100 else 1)]
    require(scans[0].run[:2] == b"\xff\xd8", "the first run does not begin a file")
    if count >= 128:
        scans += script_scans((count - 128) // 2, count % 2 == 1, scans[0])
    return Recipe(whole, tuple(scans), header[reader.at :])


def read_scan_record(reader: Reader) -> Scan:
    form = reader.byte(0, 31)
    endings, zeros, stops, left_out = [], {}, [], []
    place = 0
    for _ in range(reader.number() if form & 2 else 0):
        place += reader.number()
        bits = reader.byte()
        endings.append(Ending(place, bits, reader.take(reader.number())))
    place = 0
    for _ in range(reader.number() if form & 4 else 0):
        place += reader.number()
        zeros[place] = reader.byte()
    place = 0
    for _ in range(reader.number() if form & 8 else 0):
        place += reader.number()
        stops.append(place)
    for _ in range(reader.number()):
        at = reader.number()
        left_out.append(LeftOut(at, reader.take(reader.byte(0, 8))))
    require(len(left_out) <= 32, "segments left out")
    run = reader.take(reader.number())
    places = [part.at for part in left_out]
    require(places == sorted(places) and max(places, default=0) <= len(run), "positions of segments")
    return Scan(form, tuple(endings), zeros, frozenset(stops), tuple(left_out), run)


# ---- JPEG header: scan scripts ----

Bands = list[tuple[tuple[int, ...], int, int, int, int]]
"""Of each scan its components, Ss, Se, Ah and Al."""


def script_of(s: int, n: int) -> Bands:
    require(n in ((3,), (1, 3, 4), (3,), (3,))[s], "a script for another number of components")
    every = tuple(range(n))
    if s == 0:
        lines = "012 0 0 0 1, 0 1 5 0 2, 2 1 63 0 1, 1 1 63 0 1, 0 6 63 0 2, 0 1 63 2 1, 012 0 0 1 0, 2 1 63 1 0, "
        lines += "1 1 63 1 0, 0 1 63 1 0"
    elif s == 1:
        bands: Bands = [(every, 0, 0, 0, 1)]
        for first, last, high, low in ((1, 5, 0, 2), (6, 63, 0, 2), (1, 63, 2, 1)):
            bands += [((k,), first, last, high, low) for k in every]
        return [*bands, (every, 0, 0, 1, 0), *(((k,), 1, 63, 1, 0) for k in every)]
    else:
        lines = "012 0 0 0 0, " if s == 2 else "0 0 0 0 0, 1 0 0 0 0, 2 0 0 0 0, "
        lines += "0 1 8 0 2, 1 1 8 0 0, 2 1 8 0 0, 0 9 63 0 2, 0 1 63 2 1, 0 1 63 1 0, 1 9 63 0 0, 2 9 63 0 0"
    split = [line.split() for line in lines.split(", ")]
    return [(tuple(map(int, c)), int(a), int(b), int(high), int(low)) for c, a, b, high, low in split]


def script_scans(s: int, joined: bool, first: Scan) -> list[Scan]:
    """The scans after the first."""
    require(s <= 3, "there is no such script")
    state = State()
    opening = state.read(first.run, b"")
    assert state.frame is not None  # a scan has one
    components = state.frame.components
    destinations = [1] * len(components)
    for part in opening.parts:
        destinations[part.component] = part.dc
    scans = []
    for members, start, stop, high, low in script_of(s, len(components))[1:]:
        body = [len(members)]
        tables: list[int] = []
        for k in members:
            dc = destinations[k] if start == high == 0 else 0
            ac = destinations[k] if stop else 0
            body += [components[k].number, 16 * dc + ac]
            if start == high == 0:
                tables.append(OPTIMISED + dc)
            elif stop:
                tables.append(OPTIMISED + AC + ac)
        body += [start, stop, 16 * high + low]
        tables = list(dict.fromkeys(tables))
        groups = [tables] if joined and tables else [[name] for name in tables]
        run = b"\xff\xda" + (len(body) + 2).to_bytes(2, "big") + bytes(body)
        left_out = tuple(LeftOut(0, bytes(group)) for group in groups)
        scans.append(Scan(first.padding, (), {}, frozenset(), left_out, run))
    return scans


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


@dataclass(frozen=True)
class ScanHeader:
    parts: tuple[Part, ...]
    start: int
    stop: int
    high: int
    low: int


class State:
    """What the segments read so far have defined, but for Huffman tables."""

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.progressive = False
        self.scans = 0
        self.restart = 0
        self.quantisation: dict[int, tuple[int, ...]] = {}
        self.scanned: dict[int, tuple[int, ...]] = {}
        """Of each component that was in a scan: its quantisation table when its first one began."""
        self.bits: dict[tuple[int, int], int] = {}
        """Of each coefficient of each component that was in a scan: Al of the last one."""

    def read(self, run: bytes, following: bytes) -> ScanHeader:
        """Reads a run, and gives the scan that it ends with; following is what comes after that scan."""
        scan: ScanHeader | None = None
        for marker, body in segments(run):
            require(scan is None, "a run goes on after its scan header")
            reader = Reader(body)
            if marker in (0xC0, 0xC1, 0xC2):
                require(self.frame is None, "a second frame")
                self.frame = read_frame(reader)
                self.progressive = marker == 0xC2
            elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
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
        if scan is None:
            raise ValueError("a run without a scan header")
        assert self.frame is not None  # a scan has one
        self.scans += 1
        if self.scans == 1 and following:
            marker, body = first_segment(following)
            if marker == 0xDC and len(body) == 2:
                self.frame = replace(self.frame, height=int.from_bytes(body, "big"))
        check_size(self.frame)
        return scan

    def read_scan(self, reader: Reader) -> ScanHeader:
        frame = self.frame
        if frame is None:
            raise ValueError("a scan without a frame")
        numbers = [c.number for c in frame.components]
        parts = []
        for _ in range(reader.byte(1, len(numbers))):
            number, tables = reader.byte(), reader.byte()
            require(number in numbers, "a component that is not in the frame")
            parts.append(Part(numbers.index(number), tables >> 4, tables & 15))
        start, stop, bits = reader.byte(), reader.byte(), reader.byte()
        scan = ScanHeader(tuple(parts), start, stop, bits >> 4, bits & 15)
        if not self.progressive:
            scan = ScanHeader(tuple(parts), 0, 63, 0, 0)
        elif start or stop:
            require(1 <= start <= stop <= 63 and len(parts) == 1, "Ss and Se")
        require(scan.low <= 13 and scan.high in (0, scan.low + 1), "Ah and Al")
        for part in parts:
            table = frame.components[part.component].table
            require(table in self.quantisation, "no quantisation table")
            self.scanned.setdefault(part.component, self.quantisation[table])
            for number in range(scan.start, scan.stop + 1):
                before = self.bits.get((part.component, number), 0 if scan.high == 0 else -1)
                coded = (part.component, number) in self.bits
                require(coded == (scan.high > 0) and before == scan.high, "a scan out of its turn")
                self.bits[part.component, number] = scan.low
        return scan


def first_segment(data: bytes) -> tuple[int, bytes]:
    """(0, b"") where there is none."""
    try:
        return next(segments(data), (0, b""))
    except ValueError:
        return 0, b""


def segments(run: bytes) -> Iterator[tuple[int, bytes]]:
    alone = {0, 1, *range(0xD0, 0xD9), 255}
    at = 0
    while at + 1 < len(run):
        if run[at] != 255 or run[at + 1] in alone:
            at += 1
            continue
        if run[at + 1] == 0xD9:
            return
        reader = Reader(run[at + 2 :])
        yield run[at + 1], reader.take(reader.short() - 2)
        at += 2 + reader.at


def read_frame(reader: Reader) -> Frame:
    reader.byte(8, 8)
    height, width = reader.short(), reader.short()
    components = []
    for _ in range(reader.byte()):
        number, sampling = reader.byte(), reader.byte()
        components.append(Component(number, sampling >> 4, sampling & 15, reader.byte()))
        require(1 <= components[-1].h <= 4 and 1 <= components[-1].v <= 4, "sampling factors")
    require(len(components) in (1, 3, 4), "number of components")
    return Frame(height, width, tuple(components))


def check_size(frame: Frame) -> None:
    require(1 <= frame.height <= 4096 and 1 <= frame.width <= 4096, "size of the frame")
    coefficients = sum(64 * math.prod(frame.mcus) * c.h * c.v for c in frame.components)
    require(coefficients <= 67_108_864, "too many coefficients")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# ---- JPEG header: the file ----


@dataclass(frozen=True)
class Symbol:
    """A Huffman coded symbol of a table (`destination`, with AC added; none where that is negative), and the bits that
    follow it."""

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
    for number, scan in enumerate(recipe.scans):
        # what is left out are whole segments: the scan is known without them
        following = recipe.scans[number + 1].run if number + 1 < len(recipe.scans) else recipe.tail
        header = state.read(scan.run, following)
        intervals = scan_symbols(state, header, scan, coefficients)
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
        odd = {ending.interval: ending for ending in scan.endings}
        for n, interval in enumerate(intervals):
            if n:
                out += bytes([255, 0xD0 + (n - 1) % 8])
            out += entropy_coded(interval, codes, scan.padding, odd.get(n))
    return bytes(out) + recipe.tail


def read_tables(body: bytes, tables: dict[int, Table]) -> None:
    reader = Reader(body)
    while reader.at < len(body):
        name = reader.byte()
        bits = reader.take(16)
        tables[name] = bits, reader.take(sum(bits))


def scan_symbols(state: State, header: ScanHeader, scan: Scan, coefficients: Sequence[Ints]) -> list[list[Symbol]]:
    """Of each restart interval its symbols."""
    frame = state.frame
    assert frame is not None
    coder: SequentialCoder | DcCoder | AcCoder
    if not state.progressive:
        coder = SequentialCoder(scan)
    elif header.stop == 0:
        coder = DcCoder(header)
    else:
        coder = AcCoder(header, scan)
    intervals: list[list[Symbol]] = []
    block_number = 0
    for number, mcu in enumerate(scan_blocks(frame, header.parts)):
        if number == 0 or (state.restart and number % state.restart == 0):
            if intervals:
                intervals[-1] += coder.finish()
            intervals.append([])
            known: dict[int, int] = {}
        for part, row, column in mcu:
            array = coefficients[part.component]
            block = [known.get(part.component, 0)] + [0] * 63
            if row < array.shape[0] and column < array.shape[1]:
                block = array[row, column].tolist()
            intervals[-1] += coder.block(part, block, known.get(part.component), block_number)
            known[part.component] = block[0]
            block_number += 1
    intervals[-1] += coder.finish()
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


class SequentialCoder:
    def __init__(self, scan: Scan) -> None:
        self.scan = scan

    def block(self, part: Part, block: Sequence[int], before: int | None, number: int) -> Iterator[Symbol]:
        yield amplitude(part.dc, 0, block[0] - (before or 0))
        yield from ac_symbols(AC + part.ac, block, 1, self.scan.zeros.get(number, 0), Symbol(AC + part.ac, 0, 0, 0))

    def finish(self) -> list[Symbol]:
        return []


def ac_symbols(table: int, block: Sequence[int], first: int, more: int, end: Symbol | None) -> Iterator[Symbol]:
    """Values of a block from `first` on, odd zeros, and, where zeros are left, what stands for its end."""
    zeros = 0
    for value in block[first:]:
        if value == 0:
            zeros += 1
            continue
        for _ in range(zeros // 16):
            yield Symbol(table, 0xF0, 0, 0)
        yield amplitude(table, zeros % 16, value)
        zeros = 0
    for _ in range(min(more, zeros // 16)):
        yield Symbol(table, 0xF0, 0, 0)
        zeros -= 16
    if zeros and end is not None:
        yield end


class DcCoder:
    def __init__(self, header: ScanHeader) -> None:
        self.header = header

    def block(self, part: Part, block: Sequence[int], before: int | None, number: int) -> Iterator[Symbol]:
        value = block[0] >> self.header.low
        if self.header.high:
            yield Symbol(-1, 0, value & 1, 1)
        else:
            yield amplitude(part.dc, 0, value - ((before or 0) >> self.header.low))

    def finish(self) -> list[Symbol]:
        return []


class AcCoder:
    """AC coefficients of a progressive scan, and the run of ends that is not coded yet."""

    def __init__(self, header: ScanHeader, scan: Scan) -> None:
        self.header = header
        self.scan = scan
        self.table = AC + header.parts[0].ac
        self.run = 0
        self.corrections: list[Symbol] = []

    def block(self, part: Part, block: Sequence[int], before: int | None, number: int) -> Iterator[Symbol]:
        low = self.header.low
        band = [abs(v) >> low if v > 0 else -(abs(v) >> low) for v in block[self.header.start : self.header.stop + 1]]
        more = self.scan.zeros.get(number, 0)
        left: list[Symbol] | None
        if self.header.high:
            symbols, left = refinement(self.table, band, more)
        else:
            symbols = list(ac_symbols(self.table, band, 0, more, Symbol(-1, 0, 0, 0)))
            left = [] if symbols and symbols[-1].table < 0 else None
            symbols = symbols[:-1] if left is not None else symbols
        if symbols:
            yield from self.finish()
            yield from symbols
        if left is not None:
            self.run += 1
            self.corrections += left
        limit = math.inf if self.scan.form & 16 else 937
        if number in self.scan.stops or self.run == 32767 or len(self.corrections) > limit:
            yield from self.finish()

    def finish(self) -> list[Symbol]:
        """The run of ends, with the correction bits of its blocks."""
        symbols: list[Symbol] = []
        if self.run:
            size = self.run.bit_length() - 1
            symbols = [Symbol(self.table, 16 * size, self.run - 2**size, size), *self.corrections]
        self.run, self.corrections = 0, []
        return symbols


def refinement(table: int, band: Sequence[int], more: int) -> tuple[list[Symbol], list[Symbol] | None]:
    """What is coded of a block, and the correction bits that go with its end, None where it has no end."""
    symbols: list[Symbol] = []
    at = zeros = 0
    waiting: list[Symbol] = []
    """Correction bits since the last symbol; each run of 16 zeros takes those that it passes."""
    runs: list[list[Symbol]] = []
    for i, value in enumerate(band):
        if abs(value) > 1:
            waiting.append(Symbol(-1, 0, abs(value) & 1, 1))
        elif value == 0:
            zeros += 1
            if zeros == 16:
                runs.append(waiting)
                waiting, zeros = [], 0
                at = i + 1 if more and not any(abs(v) == 1 for v in band[i + 1 :]) else at
                if at == i + 1:
                    symbols += [s for run in runs for s in (Symbol(table, 0xF0, 0, 0), *run)]
                    runs, more = [], more - 1
        else:
            symbols += [s for run in runs for s in (Symbol(table, 0xF0, 0, 0), *run)]
            symbols += [Symbol(table, 16 * zeros + 1, int(value > 0), 1), *waiting]
            waiting, runs, zeros, at = [], [], 0, i + 1
    left = [s for run in runs for s in run] + waiting
    return symbols, left if at < len(band) else None


def amplitude(table: int, zeros: int, value: int) -> Symbol:
    size = abs(value).bit_length()
    require(size < 16, "a value that no code is for")
    return Symbol(table, 16 * zeros + size, value if value >= 0 else value + 2**size - 1, size)


def entropy_coded(
    symbols: Sequence[Symbol], codes: Mapping[int, Mapping[int, str]], padding: int, odd: Ending | None
) -> bytes:
    bits = []
    for symbol in symbols:
        if symbol.table >= 0:
            code = codes.get(symbol.table, {}).get(symbol.value)
            if code is None:
                raise ValueError("a symbol that has no code")
            bits.append(code)
        if symbol.count:
            bits.append(f"{symbol.extra:0{symbol.count}b}")
    text = "".join(bits)
    fill = f"{odd.bits:08b}" if odd else str(padding) * 8
    text += fill[8 - (-len(text) % 8) :]
    data = int(text or "0", 2).to_bytes(len(text) // 8, "big") + (odd.extra if odd else b"")
    return data.replace(b"\xff", b"\xff\0")


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


def plane_of(frame: Frame, k: int, blocks: tuple[int, int], steps: tuple[int, ...]) -> Plane:
    component = frame.components[k]
    rows, columns = blocks
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
    for number, scan in enumerate(recipe.scans):
        state.read(scan.run, recipe.scans[number + 1].run if number + 1 < len(recipe.scans) else recipe.tail)
    frame = state.frame
    assert frame is not None  # a scan has one
    require(len(state.scanned) == len(frame.components), "a component without a scan")
    count = len(frame.components)
    if count < 4:
        return decode_part(payload, frame, range(count), recipe.whole, state.scanned, arrays, architecture)
    reader = Reader(payload)
    first = reader.take(reader.number())
    parts = ((first, range(3)), (payload[reader.at :], range(3, 4)))
    found: list[Ints] = []
    for data, numbers in parts:
        found += decode_part(data, frame, numbers, recipe.whole, state.scanned, arrays, architecture)
    return found


def decode_part(
    payload: bytes,
    whole_frame: Frame,
    numbers: range,
    whole: bool,
    scanned: Mapping[int, tuple[int, ...]],
    arrays: Mapping[str, NDArray],
    architecture: Mapping[str, Any],
) -> list[Ints]:
    """Of these components of the frame, as if they were a file of their own."""
    components = tuple(whole_frame.components[k] for k in numbers)
    v, h = max(c.v for c in components), max(c.h for c in components)
    size = ceil_div(whole_frame.height * v, whole_frame.v_max), ceil_div(whole_frame.width * h, whole_frame.h_max)
    frame = Frame(*size, components)
    names = ("y", "cb", "cr")[: len(components)]
    planes = {}
    for name, k in zip(names, numbers, strict=True):
        rows, columns = whole_frame.blocks(k, whole)
        planes[name] = plane_of(frame, k - numbers[0], (rows, columns), scanned[k])
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
