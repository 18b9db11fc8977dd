"""JPEG file <-> header recipe and quantised coefficients, bit for bit.

    file = headers, scan, headers, scan, ..., tail
    recipe = the file without its scans, and without Huffman tables that follow from the coefficients

so that files of one size, quality and encoder have the same recipe, however much their pictures differ. Huffman tables
are left out where they are those of T.81 K.3, or those that libjpeg's optimiser makes for the coefficients. `parse`
rebuilds the file and compares: what it returns is proved.

Handled are 8-bit sequential Huffman files (SOF0, SOF1) of one or three components. Source: ITU-T T.81, Annex B.

    recipe   version (1), flags (bit 0: all blocks of all MCUs are kept), number of scans, per scan:
               bit that pads bytes (0, 1), number of table segments left out, each:
                 position in the run, number of tables, per table: bits 0..3 id, bit 4 AC, bit 5 optimised
               length of the run, run: the bytes before the scan, its own header included
             the bytes after the last scan
    Numbers are LEB128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zippy_batch.errors import DamagedRow, ZippyError
from zippy_batch.jpeg import huffman
from zippy_batch.rans import varint

VERSION = 1
MAX_SIDE = 4096
MAX_COEFFICIENTS = 3 * MAX_SIDE * MAX_SIDE
MAX_SCANS = 3
MAX_MCU_BLOCKS = 10
_OPTIMISED, _AC = 32, 16

Coefficients = tuple[NDArray[np.int16], ...]
"""Per component (blocks_high, blocks_wide, 64) in zigzag order, DC absolute."""


class Unrebuildable(ZippyError):
    """Why a file cannot be rebuilt bit for bit from its coefficients."""


@dataclass(frozen=True, eq=False)
class Component:
    horizontal: int
    vertical: int
    """Sampling factors 1..4."""
    blocks_high: int
    blocks_wide: int
    table: NDArray[np.uint16]
    """(64,) quantisation steps in zigzag order, 1..65535."""


@dataclass(frozen=True, eq=False)
class Frame:
    height: int
    width: int
    components: tuple[Component, ...]
    """One, or three."""

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Of the components' coefficients."""
        return [(c.blocks_high, c.blocks_wide, 64) for c in self.components]


@dataclass(frozen=True, eq=False)
class JpegImage:
    frame: Frame
    header: bytes
    """The recipe."""
    coefficients: Coefficients


@dataclass
class _Part:
    """A component as SOF says it."""

    id: int
    horizontal: int
    vertical: int
    quantiser: int
    real: tuple[int, int] = (0, 0)
    """Height and width in blocks of what the picture covers."""
    whole: tuple[int, int] = (0, 0)
    """Of all MCUs of an interleaved scan."""
    table: NDArray[np.uint16] | None = None
    """Taken when its scan begins."""


@dataclass(frozen=True)
class _Scan:
    """A scan header: per component its index in the frame and its DC and AC tables."""

    parts: tuple[tuple[int, int, int], ...]


@dataclass
class _Table:
    """A Huffman table: codes per length, values in code order."""

    counts: NDArray[np.int64]
    values: NDArray[np.uint8]

    def bytes(self) -> bytes:
        return self.counts.astype(np.uint8).tobytes() + self.values.tobytes()


def _standard(counts: str, values: str) -> _Table:
    return _Table(
        np.frombuffer(bytes.fromhex(counts), np.uint8).astype(np.int64), np.frombuffer(bytes.fromhex(values), np.uint8)
    )


def _tail(*rows: int) -> str:
    """Values of T.81 K.3 that go up inside a row: first value, how many."""
    return bytes(v for row, n in zip(rows[::2], rows[1::2], strict=True) for v in range(row, row + n)).hex()


STANDARD = {
    # T.81 tables K.3 to K.6: class * 4 + id
    0: _standard("00010501010101010100000000000000", "000102030405060708090a0b"),
    1: _standard("00030101010101010101010000000000", "000102030405060708090a0b"),
    4: _standard(
        "0002010303020403050504040000017d",
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f0"
        + "2433627282090a161718191a25262728292a"
        + _tail(0x34, 7, 0x43, 8, 0x53, 8, 0x63, 8, 0x73, 8, 0x83, 8, 0x92, 9, 0xA2, 9, 0xB2, 9, 0xC2, 9, 0xD2, 9)
        + _tail(0xE1, 10, 0xF1, 10),
    ),
    5: _standard(
        "00020102040403040705040400010277",
        "000102031104052131061241510761711322328108144291a1b1c109233352f0"
        + "156272d10a162434e125f11718191a262728292a"
        + _tail(0x35, 6, 0x43, 8, 0x53, 8, 0x63, 8, 0x73, 8, 0x82, 9, 0x92, 9, 0xA2, 9, 0xB2, 9, 0xC2, 9, 0xD2, 9)
        + _tail(0xE2, 9, 0xF2, 9),
    ),
}
_EMPTY = _Table(np.zeros(16, np.int64), np.zeros(0, np.uint8))


class _Malformed(Exception):
    """Headers that are not those of a file that can be rebuilt."""


@dataclass
class _Headers:
    """What the marker segments met so far say."""

    quantisers: dict[int, NDArray[np.uint16]] = field(default_factory=dict)
    huffman: dict[int, _Table] = field(default_factory=lambda: dict(STANDARD))
    """class * 4 + id; Motion JPEG files leave out the standard ones."""
    restart: int = 0
    size: tuple[int, int] = (0, 0)
    parts: list[_Part] = field(default_factory=list)
    scanned: set[int] = field(default_factory=set)
    ended: bool = False

    def read(self, data: bytes, at: int, segments: list[tuple[int, int]] | None = None) -> tuple[int, _Scan | None]:
        """Read marker segments from `at`. Returns the position after a scan header, and the scan; or the end of data
        or of the image. Appends the (start, end) of table segments to `segments`."""
        while at < len(data):
            start = at
            while at < len(data) and data[at] == 0xFF:
                at += 1
            if at == start or at >= len(data):
                self.ended = True
                return start, None
            marker = data[at]
            at += 1
            if marker == 0xD9:
                self.ended = True
                return at, None
            if marker == 0xD8 or 0xD0 <= marker <= 0xD7 or marker in (0x00, 0x01):
                if marker != 0xD8 or start:
                    raise _Malformed("a marker stands where no marker may")
                continue
            end = at + int.from_bytes(data[at : at + 2], "big")
            if end < at + 2 or end > len(data):
                raise _Malformed("a segment runs past the end of the file")
            body = data[at + 2 : end]
            if marker == 0xDA:
                return end, self._scan(body)
            self._segment(marker, body)
            if marker == 0xC4 and segments is not None:
                segments.append((start, end))
            at = end
        self.ended = True
        return at, None

    def _segment(self, marker: int, body: bytes) -> None:
        if marker == 0xDB:
            self._read_quantisers(body)
        elif marker == 0xC4:
            for key, table in _huffman_tables(body):
                self.huffman[key] = table
        elif marker == 0xDD:
            if len(body) != 2:
                raise _Malformed("its restart interval is malformed")
            self.restart = int.from_bytes(body, "big")
        elif marker in (0xC0, 0xC1):
            self._frame(body)
        elif 0xC2 <= marker <= 0xCF:
            kinds = {0xC2: "a progressive JPEG", 0xC9: "an arithmetic-coded JPEG", 0xCA: "an arithmetic-coded JPEG"}
            raise _Malformed(kinds.get(marker, "a JPEG of a kind that is not sequential"))
        elif marker == 0xDC:
            raise _Malformed("its height is given after its scan")

    def _read_quantisers(self, body: bytes) -> None:
        at = 0
        while at < len(body):
            wide, key = body[at] >> 4, body[at] & 15
            size = 128 if wide else 64
            if wide > 1 or key > 3 or at + 1 + size > len(body):
                raise _Malformed("a quantisation table is malformed")
            table = np.frombuffer(body[at + 1 : at + 1 + size], ">u2" if wide else np.uint8).astype(np.uint16)
            if not table.all():
                raise _Malformed("a quantisation table has a step of 0")
            self.quantisers[key] = table
            at += 1 + size

    def _frame(self, body: bytes) -> None:
        if self.parts:
            raise _Malformed("a file with several frames")
        if len(body) < 6 or len(body) != 6 + 3 * body[5]:
            raise _Malformed("its frame header is malformed")
        height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        if body[0] != 8:
            raise _Malformed(f"a JPEG of {body[0]} bits per sample")
        if body[5] not in (1, 3):
            raise _Malformed(f"a JPEG of {body[5]} components")
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise _Malformed(f"a size of {width}x{height}, expected sides of 1..{MAX_SIDE}")
        parts = [_Part(body[i], body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in range(6, len(body), 3)]
        if len({p.id for p in parts}) < len(parts):
            raise _Malformed("two components of the same name")
        if any(not (1 <= p.horizontal <= 4 and 1 <= p.vertical <= 4) for p in parts):
            raise _Malformed("sampling factors outside 1..4")
        widest, tallest = max(p.horizontal for p in parts), max(p.vertical for p in parts)
        for p in parts:
            covered = _ceil(height * p.vertical, tallest), _ceil(width * p.horizontal, widest)
            p.real = (_ceil(covered[0], 8), _ceil(covered[1], 8))
            p.whole = (_ceil(height, 8 * tallest) * p.vertical, _ceil(width, 8 * widest) * p.horizontal)
            if len(parts) == 1:
                p.whole = p.real
        if sum(64 * p.whole[0] * p.whole[1] for p in parts) > MAX_COEFFICIENTS:
            raise _Malformed(f"more than {MAX_COEFFICIENTS} coefficients")
        self.size, self.parts = (height, width), parts

    def _scan(self, body: bytes) -> _Scan:
        if not body or len(body) != 4 + 2 * body[0] or body[-3:] != b"\0\x3f\0":
            raise _Malformed("a scan header is malformed or not sequential")
        parts = []
        for i in range(1, 1 + 2 * body[0], 2):
            known = [k for k, p in enumerate(self.parts) if p.id == body[i]]
            if not known or known[0] in self.scanned:
                raise _Malformed("a scan of an unknown or repeated component")
            k = known[0]
            self.scanned.add(k)
            table = self.quantisers.get(self.parts[k].quantiser)
            dc, ac = body[i + 1] >> 4, body[i + 1] & 15
            if table is None or dc > 3 or ac > 3:
                raise _Malformed("a scan without its tables")
            self.parts[k].table = table
            parts.append((k, dc, ac))
        blocks = sum(self.parts[k].horizontal * self.parts[k].vertical for k, _, _ in parts)
        if not parts or (len(parts) > 1 and blocks > MAX_MCU_BLOCKS):
            raise _Malformed("a scan of no component, or of MCUs of more than 10 blocks")
        return _Scan(tuple(parts))

    def frame(self, padded: bool) -> Frame:
        """The frame, once all scans are read."""
        if not self.parts or len(self.scanned) < len(self.parts):
            raise _Malformed("a file without all of its scans")
        components = []
        for p in self.parts:
            high, wide = p.whole if padded else p.real
            assert p.table is not None
            components.append(Component(p.horizontal, p.vertical, high, wide, p.table))
        return Frame(*self.size, tuple(components))

    def layout(self, scan: _Scan, padded: bool) -> tuple[NDArray[np.int64], int, int]:
        """`huffman.COLUMNS` of every component of a scan, in arrays of the whole MCUs or of the picture; and the MCUs'
        rows and columns."""
        single = len(scan.parts) == 1
        grids = [p.whole if padded else p.real for p in self.parts]
        begin = np.cumsum([0, *(high * wide for high, wide in grids)])
        rows = []
        for k, dc, ac in scan.parts:
            p, (high, wide) = self.parts[k], grids[k]
            h, v = (1, 1) if single else (p.horizontal, p.vertical)
            rows.append((h, v, wide, high, begin[k], dc, ac, p.real[1], p.real[0]))
        p = self.parts[scan.parts[0][0]]
        mcus = p.real if single else (p.whole[0] // p.vertical, p.whole[1] // p.horizontal)
        return np.array(rows, np.int64), *mcus


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _huffman_tables(body: bytes) -> list[tuple[int, _Table]]:
    """Class * 4 + id and table of all tables in a DHT segment."""
    out, at = [], 0
    while at < len(body):
        kind, key = body[at] >> 4, body[at] & 15
        counts = np.frombuffer(body[at + 1 : at + 17], np.uint8).astype(np.int64)
        total = int(counts.sum())
        if kind > 1 or key > 3 or len(counts) < 16 or total > 256 or at + 17 + total > len(body):
            raise _Malformed("a Huffman table is malformed")
        if (counts * 2.0 ** -np.arange(1, 17)).sum() > 1:
            raise _Malformed("a Huffman table has more codes than there are")
        out.append((kind * 4 + key, _Table(counts, np.frombuffer(body[at + 17 : at + 17 + total], np.uint8))))
        at += 17 + total
    return out


def _segment(tables: Sequence[tuple[int, _Table]]) -> bytes:
    """A DHT segment."""
    body = b"".join(bytes([key // 4 << 4 | key & 3]) + table.bytes() for key, table in tables)
    return b"\xff\xc4" + (len(body) + 2).to_bytes(2, "big") + body


def parse(data: bytes) -> JpegImage:
    """Read a file, and prove that `rebuild` returns it; Unrebuildable, with the reason, where it does not."""
    if data[:2] != b"\xff\xd8":
        raise Unrebuildable("not a JPEG")
    try:
        image = _parse(data)
        if rebuild(image.header, image.coefficients) == data:
            return image
    except _Malformed as error:
        raise Unrebuildable(str(error)) from None
    except DamagedRow as error:
        raise Unrebuildable(f"its coefficients do not code again: {error}") from None
    raise Unrebuildable("it is coded in a way of its own: the rebuilt file differs")


@dataclass
class _Run:
    """The bytes before a scan, its own header included, and what is left out of them."""

    data: bytes
    pad: int = 1
    left_out: list[tuple[int, list[int]]] = field(default_factory=list)
    """Position of a table segment, and kinds of its tables: id | _AC | _OPTIMISED."""


def _parse(data: bytes) -> JpegImage:
    headers = _Headers()
    scans: list[tuple[_Scan, int]] = []
    runs: list[_Run] = []
    tables: list[list[tuple[int, int]]] = []
    at = begin = 0
    blocks: NDArray[np.int16] | None = None
    plain = True
    while True:
        segments: list[tuple[int, int]] = []  # Huffman tables
        at, scan = headers.read(data, at, segments)
        if scan is None:
            break
        if blocks is None:
            blocks = np.zeros((sum(p.whole[0] * p.whole[1] for p in headers.parts), 64), np.int16)
        layout = headers.layout(scan, padded=True)
        end, alike, padding = huffman.decode_scan(
            np.frombuffer(data, np.uint8), at, *layout, headers.restart, *_decoder(headers.huffman), blocks
        )
        if end < 0:
            reasons = {huffman.TRUNCATED: "its scan is truncated", huffman.NO_RESTART: "a restart marker is missing"}
            raise _Malformed(reasons.get(end, "its scan is damaged"))
        plain &= bool(alike)
        scans.append((scan, headers.restart))
        tables.append([(a - begin, b - begin) for a, b in segments])
        runs.append(_Run(data[begin:at], 0 if padding == 0 else 1))
        begin = at = int(end)
    if blocks is None:
        raise _Malformed("a file without a scan")
    frame = headers.frame(not plain)
    coefficients = _split(headers, blocks, plain)
    flat = blocks if not plain else np.concatenate([c.reshape(-1, 64) for c in coefficients])
    for run, segments, (scan, restart) in zip(runs, tables, scans, strict=True):
        _leave_out(run, segments, _count(flat, headers.layout(scan, not plain), restart))
    return JpegImage(frame, _recipe(runs, data[begin:], not plain), coefficients)


def _split(headers: _Headers, blocks: NDArray[np.int16], crop: bool) -> Coefficients:
    """Blocks of all components' whole MCUs -> per component, cropped to the picture or not."""
    out, at = [], 0
    for p in headers.parts:
        high, wide = p.whole
        plane = blocks[at : at + high * wide].reshape(high, wide, 64)
        out.append(np.ascontiguousarray(plane[: p.real[0], : p.real[1]] if crop else plane))
        at += high * wide
    return tuple(out)


def _leave_out(run: _Run, segments: list[tuple[int, int]], frequency: NDArray[np.int64]) -> None:
    """Cut table segments out of a run that follow from the coefficients."""
    kept, at = [], 0
    for begin, end in segments:
        marker = run.data.index(b"\xc4", begin)
        tables = _huffman_tables(run.data[marker + 3 : end])
        kinds = []
        for key, table in tables:
            kind = key & 3 | (_AC if key >= 4 else 0)
            if key in STANDARD and table.bytes() == STANDARD[key].bytes():
                kinds.append(kind)
            elif frequency[key].any() and table.bytes() == _optimal(frequency[key]).bytes():
                kinds.append(kind | _OPTIMISED)
        if len(kinds) == len(tables) and run.data[begin:end] == _segment(tables):
            kept.append(run.data[at:begin])
            run.left_out.append((sum(map(len, kept)), kinds))
            at = end
    run.data = b"".join([*kept, run.data[at:]])


def _optimal(frequency: NDArray[np.int64]) -> _Table:
    counts, values, n = huffman.optimal_table(frequency)
    return _Table(counts, values[:n])


def _count(blocks: NDArray[np.int16], layout: tuple[NDArray[np.int64], int, int], restart: int) -> NDArray[np.int64]:
    """(8, 256) how often a scan uses every symbol of every table."""
    frequency = np.zeros((8, 256), np.int64)
    nothing = np.zeros((8, 256), np.int64)
    if huffman.encode_scan(blocks, *layout, restart, nothing, nothing, frequency, 1, np.zeros(0, np.uint8)) < 0:
        raise DamagedRow("a difference of coefficients is out of range")
    return frequency


def _decoder(tables: dict[int, _Table]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """`huffman.decode_scan`'s lengths, short and values."""
    lengths = np.full((8, 3, 17), -1, np.int64)
    short = np.zeros((8, 256), np.int64)
    values = np.zeros((8, 256), np.uint8)
    for key, table in tables.items():
        values[key, : len(table.values)] = table.values
        lengths[key], short[key] = huffman.decoder_table(table.counts, values[key])
    return lengths, short, values


def _recipe(runs: Sequence[_Run], tail: bytes, padded: bool) -> bytes:
    out = [bytes([VERSION, int(padded), len(runs)])]
    for run in runs:
        out += [bytes([run.pad]), varint(len(run.left_out))]
        for at, kinds in run.left_out:
            out += [varint(at), bytes([len(kinds), *kinds])]
        out += [varint(len(run.data)), run.data]
    return b"".join([*out, tail])


@dataclass(frozen=True)
class _Plan:
    """A recipe, read: frame, and per scan what `rebuild` needs."""

    frame: Frame
    runs: list[_Run]
    layouts: list[tuple[NDArray[np.int64], int, int]]
    tables: list[dict[int, _Table]]
    """As the run's own segments and the scans before say; what is left out comes on top."""
    restarts: list[int]
    tail: bytes


def read_frame(header: bytes) -> Frame:
    """The frame of a recipe; DamagedRow where it is none. Takes time and memory in proportion to its length."""
    return _plan(header).frame


@lru_cache(maxsize=128)
def _plan(header: bytes) -> _Plan:
    try:
        return _read_recipe(header)
    except _Malformed as error:
        raise DamagedRow(f"header: {error}") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _Malformed("the recipe ends early")
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self, most: int = 255) -> int:
        value = self.take(1)[0]
        if value > most:
            raise _Malformed(f"a value of {value}, expected at most {most}")
        return value

    def number(self) -> int:
        value = shift = 0
        while shift < 35:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise _Malformed("a number is too long")

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def _read_recipe(header: bytes) -> _Plan:
    reader = _Reader(header)
    version = reader.byte()
    if version != VERSION:
        raise _Malformed(f"recipe version {version} is unknown; this version reads {VERSION}")
    padded = bool(reader.byte(1))
    headers = _Headers()
    runs, scans, tables, restarts = [], [], [], []
    for _ in range(reader.byte(MAX_SCANS)):
        run = _Run(b"", reader.byte(1))
        for _ in range(reader.number()):
            at = reader.number()
            run.left_out.append((at, [reader.byte(63) for _ in range(reader.byte())]))
        run.data = reader.take(reader.number())
        positions = [at for at, _ in run.left_out]
        if positions != sorted(positions) or (positions and positions[-1] > len(run.data)):
            raise _Malformed("table segments are out of place")
        end, scan = headers.read(run.data, 0)
        if scan is None or end != len(run.data):
            raise _Malformed("a run does not end with a scan header")
        runs.append(run)
        scans.append(scan)
        restarts.append(headers.restart)
        for _, kinds in run.left_out:
            for kind in kinds:
                if kind & ~(_OPTIMISED | _AC | 3) or (_key(kind) not in STANDARD and not kind & _OPTIMISED):
                    raise _Malformed("there is no standard table of that number")
                # optimised ones stand empty until the coefficients are there
                headers.huffman[_key(kind)] = _EMPTY if kind & _OPTIMISED else STANDARD[_key(kind)]
        tables.append(dict(headers.huffman))
    frame = headers.frame(padded)
    return _Plan(frame, runs, [headers.layout(s, padded) for s in scans], tables, restarts, reader.rest())


def _key(kind: int) -> int:
    """Class * 4 + id of a table that is left out."""
    return (4 if kind & _AC else 0) + (kind & 3)


def rebuild(header: bytes, coefficients: Sequence[NDArray[np.int16]]) -> bytes:
    """The file; DamagedRow where recipe and coefficients do not fit."""
    plan = _plan(header)
    if [c.shape for c in coefficients] != plan.frame.shapes:
        raise DamagedRow(f"coefficients {[c.shape for c in coefficients]} are not those of {plan.frame.shapes}")
    blocks = np.concatenate([np.asarray(c, np.int16).reshape(-1, 64) for c in coefficients])
    out = []
    made: dict[int, _Table] = {}
    for run, layout, known, restart in zip(plan.runs, plan.layouts, plan.tables, plan.restarts, strict=True):
        frequency = _count(blocks, layout, restart)
        at = 0
        for position, kinds in run.left_out:
            segment = []
            for kind in kinds:
                key = _key(kind)
                if kind & _OPTIMISED:
                    made[key] = _optimal(frequency[key])
                segment.append((key, made[key] if kind & _OPTIMISED else STANDARD[key]))
            out += [run.data[at:position], _segment(segment)]
            at = position
        out.append(run.data[at:])
        tables = {k: made[k] if t is _EMPTY and k in made else t for k, t in known.items()}
        out.append(_encode(blocks, layout, restart, tables, frequency, run.pad))
    return b"".join([*out, plan.tail])


def _encode(
    blocks: NDArray[np.int16],
    layout: tuple[NDArray[np.int64], int, int],
    restart: int,
    tables: dict[int, _Table],
    frequency: NDArray[np.int64],
    pad: int,
) -> bytes:
    codes, lengths = np.zeros((8, 256), np.int64), np.zeros((8, 256), np.int64)
    for key in np.flatnonzero(frequency.any(1)).tolist():
        if key in tables:
            codes[key], lengths[key] = huffman.codes(tables[key].counts, tables[key].values)
    bits = int((frequency * (lengths + (np.arange(256) & 15))).sum())
    markers = layout[1] * layout[2] // restart if restart else 0
    # every byte may be 0xFF, which takes two
    out = np.empty(bits // 4 + 4 * markers + 16, np.uint8)
    written = huffman.encode_scan(blocks, *layout, restart, codes, lengths, frequency, pad, out)
    if written < 0:
        raise DamagedRow("a coefficient has no code in the file's Huffman tables")
    return out[:written].tobytes()
