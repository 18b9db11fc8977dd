"""Marker segments of JPEG files: where they are, and what they say of the frame, its scans and tables.

    file --> segments --> Headers (tables, frame, restart interval) --> ScanHeader for every scan

What is understood are sequential and progressive Huffman-coded files of 8 bits per sample (SOF0, SOF1, SOF2). Segments
come from the files themselves, from headers that are probed, and from recipes (`recipe.py`), which hold the same ones.
Source: ITU-T T.81, Annexes A, B and G.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.jpeg.faults import Fault, Malformed
from zippy_batch.jpeg.tables import STANDARD, Table, read_tables

MAX_JPEG_BYTES = 1 << 28
MAX_COEFFICIENTS = 4 * MAX_SIDE * MAX_SIDE
MAX_MCU_BLOCKS = 10
MAX_SCANS = 100
"""Each costs a pass over the coefficients, however few bytes it has."""
MAX_SEGMENTS = 1 << 20
"""A bound on the time that a hostile file takes."""

DHT, EOI, SOS, DQT, DNL, DRI = 0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2
_OTHER_FRAMES = {
    0xC3: "lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic-coded JPEG"),
    **dict.fromkeys((0xCB, 0xCD, 0xCE, 0xCF), "lossless or hierarchical JPEG"),
}

# neither a stuffed zero, nor a marker that stands alone, nor a fill byte
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_NOT_CODED = b"\xff" * 64
"""Stands in place of the lowest bits that were coded of the coefficients of a block."""


Segment = tuple[int, int, int, int]
"""Marker; positions of its 0xFF, of what comes after its length, and of its end."""


def next_segment(data: bytes, at: int) -> Segment | None:
    """The first segment from data[at] on, or the end-of-image marker; None where there is neither.

    What is no segment is skipped: fill bytes, restart markers and anything else that stands between segments.
    """
    found = _MARKER.search(data, at)
    if found is None:
        return None
    start, body = found.span()
    marker = data[body - 1]
    if marker == EOI:
        return EOI, start, body, body
    end = body + int.from_bytes(data[body : body + 2], "big")
    if body + 2 > len(data) or end > len(data):
        raise Malformed("a segment runs past the end of the file", Fault.TRUNCATED)
    if end < body + 2:
        raise Malformed("a segment without a length")
    return marker, start, body + 2, end


class ScanHeader(NamedTuple):
    parts: tuple[tuple[int, int, int], ...]
    """For each component, its number in the frame, and the destinations of its DC and AC tables."""
    first: int
    last: int
    """Coefficients in zigzag order: 0..63 in a sequential scan."""
    high: int
    low: int
    """Bit positions of successive approximation: `low` is coded, all bits above it if `high` is 0."""
    progressive: bool


class FramePart(NamedTuple):
    """A component as the frame header has it."""

    id: int
    horizontal: int
    vertical: int
    """Sampling factors 1..4."""
    quantiser: int


class Grid(NamedTuple):
    """Blocks of a component."""

    real: tuple[int, int]
    """Height and width of what the picture covers."""
    whole: tuple[int, int]
    """Rows and columns of all MCUs of an interleaved scan."""


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
    """One, three or four."""

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Shapes of the components' coefficients."""
        return [(c.blocks_high, c.blocks_wide, 64) for c in self.components]


class FrameShape(NamedTuple):
    height: int
    width: int
    """Pixels."""
    sampling: tuple[tuple[int, int], ...]
    """Sampling factors (horizontal, vertical) of each component."""


class Layout(NamedTuple):
    """Where the blocks of a scan are, in an array of the blocks of all components."""

    order: NDArray[np.int32]
    """(n, 3) of each block in coding order: its place in the array, or -1 where it has none; its component's number in
    the scan; 1 where it lies outside the picture, else 0."""
    tables: NDArray[np.int64]
    """(S, 2) keys of the DC and the AC table of each component of the scan."""
    unit: int
    """Blocks of an MCU."""


class Headers:
    """What the marker segments met so far say."""

    def __init__(self) -> None:
        self.quantisers: dict[int, tuple[int, ...]] = {}
        self.huffman: dict[int, Table] = dict(STANDARD)
        """Tables by key; motion JPEG files leave out the standard ones."""
        self.restart = 0
        """MCUs between restart markers, or 0."""
        self.height = self.width = 0
        """A height of 0 follows after the first scan, which may also give another one."""
        self.progressive = False
        self.parts: tuple[FramePart, ...] = ()
        self.steps: dict[int, tuple[int, ...]] = {}
        """Component -> its quantisation table when its first scan began."""
        self.scans = 0
        self._sampling: tuple[tuple[int, int], ...] = ()
        self._coded: list[bytearray] = []
        """For each component, the lowest bit of each coefficient that was coded."""

    def read(self, marker: int, body: bytes) -> None:
        """A segment other than a scan header; those of no interest are passed over."""
        if marker == DQT:
            self.quantisers.update(_quantisers_of(body))
        elif marker == DHT:
            self.huffman.update(read_tables(body))
        elif marker == DRI:
            if len(body) != 2:
                raise Malformed("its restart interval is malformed")
            self.restart = int.from_bytes(body, "big")
        elif marker in SEQUENTIAL or marker == PROGRESSIVE or marker in _OTHER_FRAMES:
            self._read_frame(marker, body)

    def _read_frame(self, marker: int, body: bytes) -> None:
        if self.parts:
            raise Malformed("a file with several frames", Fault.SEVERAL)
        if len(body) < 6 or len(body) < 6 + 3 * body[5]:
            raise Malformed("its frame header is malformed")
        self.height, self.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        if self.width == 0:
            raise Malformed("a picture without pixels")
        if marker in _OTHER_FRAMES:
            raise Malformed(_OTHER_FRAMES[marker], Fault.UNSUPPORTED)
        if max(self.height, self.width) > MAX_SIDE:
            raise Malformed(f"more than {MAX_SIDE} pixels on a side", Fault.TOO_LARGE)
        self.progressive = marker == PROGRESSIVE
        self.parts = _parts_of(body)
        self._sampling = tuple([(part.horizontal, part.vertical) for part in self.parts])
        self._coded = [bytearray(_NOT_CODED) for _ in self.parts]
        if self.height:
            self._check_size()

    def _check_size(self) -> None:
        if sum(64 * high * wide for _, (high, wide) in self.grids()) > MAX_COEFFICIENTS:
            raise Malformed(f"more than {MAX_COEFFICIENTS} coefficients", Fault.TOO_LARGE)

    def read_height(self, data: bytes, at: int) -> None:
        """Take the height from a segment right behind the first scan, where one follows data[at]; the frame header may
        leave it out."""
        try:
            marker, _, body, end = next_segment(data, at) or (EOI, at, at, at)
        except Malformed:
            marker = EOI
        if marker == DNL and end == body + 2:
            self.height = int.from_bytes(data[body:end], "big")
        if not 1 <= self.height <= MAX_SIDE:
            raise Malformed(f"a height that is not 1 to {MAX_SIDE}", Fault.TOO_LARGE)
        self._check_size()

    def read_scan(self, body: bytes) -> ScanHeader:
        """A scan header."""
        self.scans += 1
        if not self.parts:
            raise Malformed("a scan before its frame header")
        if self.scans > MAX_SCANS:
            raise Malformed(f"more than {MAX_SCANS} scans")
        scan = _scan_of(body, self.parts, self.progressive)
        self._take(scan)
        return scan

    def _take(self, scan: ScanHeader) -> None:
        """Note what a scan codes; Malformed where it is not its turn."""
        count = scan.last + 1 - scan.first
        before = bytes([scan.high]) * count if scan.high else _NOT_CODED[:count]
        for k, _, _ in scan.parts:
            coded = self._coded[k]
            if coded[scan.first : scan.last + 1] != before:
                raise Malformed("a scan codes what was coded before, or refines what was not")
            coded[scan.first : scan.last + 1] = bytes([scan.low]) * count
            if k not in self.steps:
                if self.parts[k].quantiser not in self.quantisers:
                    raise Malformed("a scan without its quantisation table")
                self.steps[k] = self.quantisers[self.parts[k].quantiser]

    def check_complete(self) -> None:
        """Raise Malformed unless every component has been in a scan."""
        if not self.parts or len(self.steps) < len(self.parts):
            raise Malformed("a file without all of its scans", Fault.TRUNCATED)

    def grids(self) -> tuple[Grid, ...]:
        """Grids of the components' blocks."""
        return _grids(self.shape())

    def frame(self, padded: bool) -> Frame:
        """The frame, once all scans are read, with the blocks of whole MCUs or of the picture."""
        self.check_complete()
        components = []
        for k, (part, grid) in enumerate(zip(self.parts, self.grids(), strict=True)):
            high, wide = grid.whole if padded else grid.real
            components.append(Component(part.horizontal, part.vertical, high, wide, _array(self.steps[k])))
        return Frame(self.height, self.width, tuple(components))

    def shape(self) -> FrameShape:
        return FrameShape(self.height, self.width, self._sampling)


@lru_cache(maxsize=256)
def _quantisers_of(body: bytes) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Number and steps of all tables in a segment."""
    tables, at = [], 0
    while at < len(body):
        wide, key = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        if wide > 1 or key > 3 or at + 1 + size > len(body):
            raise Malformed("a quantisation table is malformed")
        table = struct.unpack_from(">64H" if wide else ">64B", body, at + 1)
        if 0 in table:
            raise Malformed("a quantisation table has a step of 0")
        tables.append((key, table))
        at += 1 + size
    return tuple(tables)


@lru_cache(maxsize=256)
def _parts_of(body: bytes) -> tuple[FramePart, ...]:
    """Components of a frame header."""
    if body[0] != 8:
        raise Malformed("a JPEG of more than 8 bits per sample", Fault.DEEP)
    if body[5] not in (1, 3, 4):
        raise Malformed("a JPEG of two, or of more than four, components", Fault.COMPONENTS)
    parts = [FramePart(body[i], body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in range(6, 6 + 3 * body[5], 3)]
    if len({p.id for p in parts}) < len(parts):
        raise Malformed("two components of the same name")
    if any(not (1 <= p.horizontal <= 4 and 1 <= p.vertical <= 4) for p in parts):
        raise Malformed("sampling factors outside 1..4")
    return tuple(parts)


@lru_cache(maxsize=256)
def _scan_of(body: bytes, frame: tuple[FramePart, ...], progressive: bool) -> ScanHeader:
    """A scan header of a frame of these components."""
    count = body[0] if body else 0
    if not 1 <= count <= len(frame) or len(body) != 4 + 2 * count:
        raise Malformed("a scan header is malformed")
    ids = [p.id for p in frame]
    parts = []
    for i in range(1, 1 + 2 * count, 2):
        dc, ac = body[i + 1] >> 4, body[i + 1] & 15
        if body[i] not in ids or dc > 3 or ac > 3:
            raise Malformed("a scan of an unknown component or table")
        parts.append((ids.index(body[i]), dc, ac))
    if len({k for k, _, _ in parts}) < count:
        raise Malformed("a component twice in one scan")
    if count > 1 and sum(frame[k].horizontal * frame[k].vertical for k, _, _ in parts) > MAX_MCU_BLOCKS:
        raise Malformed(f"MCUs of more than {MAX_MCU_BLOCKS} blocks")
    if not progressive:
        # its other parameters say nothing: decoders take them for these
        return ScanHeader(tuple(parts), 0, 63, 0, 0, False)
    scan = ScanHeader(tuple(parts), body[-3], body[-2], body[-1] >> 4, body[-1] & 15, True)
    band = scan.first == scan.last == 0 or (1 <= scan.first <= scan.last <= 63 and count == 1)
    if not band or scan.low > 13 or scan.high not in (0, scan.low + 1):
        raise Malformed("a progressive scan with malformed parameters")
    return scan


@lru_cache(maxsize=256)
def _grids(shape: FrameShape) -> tuple[Grid, ...]:
    height, width, sampling = shape
    widest, tallest = (max(factors) for factors in zip(*sampling, strict=True))
    grids = []
    for h, v in sampling:
        real = _ceil(_ceil(height * v, tallest), 8), _ceil(_ceil(width * h, widest), 8)
        whole = _ceil(height, 8 * tallest) * v, _ceil(width, 8 * widest) * h
        grids.append(Grid(real, real if len(sampling) == 1 else whole))
    return tuple(grids)


def layout_of(shape: FrameShape, parts: tuple[tuple[int, int, int], ...], padded: bool) -> Layout:
    """Where the blocks of a scan (`ScanHeader.parts`) are in an array of the whole MCUs, or of the picture."""
    if shape.height * shape.width <= _LARGE_PIXELS:
        return _cached_layout(shape, parts, padded)
    return _layout_of(shape, parts, _large_order_of(shape, tuple(k for k, _, _ in parts), padded))


def _layout_of(shape: FrameShape, parts: Sequence[tuple[int, int, int]], order: NDArray[np.int32]) -> Layout:
    tables = np.array([(dc, 4 + ac) for _, dc, ac in parts], np.int64)
    unit = 1 if len(parts) == 1 else sum(shape.sampling[k][0] * shape.sampling[k][1] for k, _, _ in parts)
    return Layout(order, tables, unit)


def _make_order(shape: FrameShape, components: Sequence[int], padded: bool) -> NDArray[np.int32]:
    """`Layout.order` of a scan of these components of a frame."""
    grids = _grids(shape)
    sizes = [grid.whole if padded else grid.real for grid in grids]
    begin = np.cumsum([0, *(high * wide for high, wide in sizes)]).tolist()
    columns = []
    for s, k in enumerate(components):
        # the blocks of a single component come one by one, and none outside the picture
        single = len(components) == 1
        h, v = (1, 1) if single else shape.sampling[k]
        rows, across = grids[k].real if single else grids[k].whole
        y = np.arange(rows).reshape(rows // v, 1, v, 1)
        x = np.arange(across).reshape(1, across // h, 1, h)
        place = np.where((y < sizes[k][0]) & (x < sizes[k][1]), begin[k] + y * sizes[k][1] + x, -1)
        outside = (y >= grids[k].real[0]) | (x >= grids[k].real[1])
        blocks = np.stack([place, np.full_like(place, s), outside], axis=-1, dtype=np.int32)
        columns.append(blocks.reshape(rows // v * (across // h), v * h, 3))
    return np.concatenate(columns, axis=1).reshape(-1, 3)


_LARGE_PIXELS = 1 << 17
_large_order_of = lru_cache(maxsize=4)(_make_order)
"""For larger pictures, which keep the orders of one file's scans: each may have 10 MB."""


@lru_cache(maxsize=256)
def _cached_layout(shape: FrameShape, parts: tuple[tuple[int, int, int], ...], padded: bool) -> Layout:
    return _layout_of(shape, parts, _make_order(shape, [k for k, _, _ in parts], padded))


@lru_cache(maxsize=256)
def _array(steps: tuple[int, ...]) -> NDArray[np.uint16]:
    table = np.array(steps, np.uint16)
    table.flags.writeable = False
    return table


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
