"""Marker segments of sequential Huffman JPEG files: frame, scans, tables, restart intervals.

What is read are 8-bit files (SOF0, SOF1) of one or three components, from the files themselves and from recipes
(`recipe.py`), which hold the same segments. Source: ITU-T T.81, Annex B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.images.probe import TOO_LARGE
from zippy_batch.jpeg.tables import STANDARD, Malformed, Table, read_tables

MAX_COEFFICIENTS = 3 * MAX_SIDE * MAX_SIDE
MAX_MCU_BLOCKS = 10


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
class Scan:
    parts: tuple[tuple[int, int, int], ...]
    """Of each component its number in the frame, and the destinations of its DC and AC tables."""


Layout = tuple[NDArray[np.int64], int, int]
"""`huffman.COLUMNS` of every component of a scan; rows and columns of MCUs."""


@dataclass
class Headers:
    """What the marker segments met so far say."""

    quantisers: dict[int, NDArray[np.uint16]] = field(default_factory=dict)
    huffman: dict[int, Table] = field(default_factory=lambda: dict(STANDARD))
    """By key; Motion JPEG files leave out the standard ones."""
    restart: int = 0
    size: tuple[int, int] = (0, 0)
    parts: list[_Part] = field(default_factory=list)
    scanned: set[int] = field(default_factory=set)

    def read(
        self, data: bytes, at: int, before_segment: Callable[[int, int], None] | None = None
    ) -> tuple[int, Scan | None]:
        """Read marker segments from `at`. Returns the position after a scan header, and the scan; or the end of data
        or of the image. Calls before_segment(position, marker) ahead of every segment."""
        while at < len(data):
            start = at
            while at < len(data) and data[at] == 0xFF:
                at += 1
            if at == start or at >= len(data):
                return start, None
            marker = data[at]
            at += 1
            if marker == 0xD9:
                return at, None
            if marker == 0xD8 or 0xD0 <= marker <= 0xD7 or marker in (0x00, 0x01):
                if marker != 0xD8 or start:
                    raise Malformed("a marker stands where no marker may")
                continue
            end = at + int.from_bytes(data[at : at + 2], "big")
            if end < at + 2 or end > len(data):
                raise Malformed("a segment runs past the end of the file")
            if before_segment is not None:
                before_segment(start, marker)
            body = data[at + 2 : end]
            if marker == 0xDA:
                return end, self._scan(body)
            self._segment(marker, body)
            at = end
        return at, None

    def _segment(self, marker: int, body: bytes) -> None:
        if marker == 0xDB:
            self._read_quantisers(body)
        elif marker == 0xC4:
            self.huffman.update(read_tables(body))
        elif marker == 0xDD:
            if len(body) != 2:
                raise Malformed("its restart interval is malformed")
            self.restart = int.from_bytes(body, "big")
        elif marker in (0xC0, 0xC1):
            self._frame(body)
        elif 0xC2 <= marker <= 0xCF:
            kinds = {0xC2: "a progressive JPEG", 0xC9: "an arithmetic-coded JPEG", 0xCA: "an arithmetic-coded JPEG"}
            raise Malformed(kinds.get(marker, "a JPEG of a kind that is not sequential"))
        elif marker == 0xDC:
            raise Malformed("its height is given after its scan")

    def _read_quantisers(self, body: bytes) -> None:
        at = 0
        while at < len(body):
            wide, key = body[at] >> 4, body[at] & 15
            size = 128 if wide else 64
            if wide > 1 or key > 3 or at + 1 + size > len(body):
                raise Malformed("a quantisation table is malformed")
            table = np.frombuffer(body[at + 1 : at + 1 + size], ">u2" if wide else np.uint8).astype(np.uint16)
            if not table.all():
                raise Malformed("a quantisation table has a step of 0")
            self.quantisers[key] = table
            at += 1 + size

    def _frame(self, body: bytes) -> None:
        if self.parts:
            raise Malformed("a file with several frames")
        if len(body) < 6 or len(body) != 6 + 3 * body[5]:
            raise Malformed("its frame header is malformed")
        height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        if body[0] != 8:
            raise Malformed("a JPEG of other than 8 bits per sample")
        if body[5] not in (1, 3):
            raise Malformed("a JPEG of other than one or three components")
        if max(height, width) > MAX_SIDE:
            raise Malformed(TOO_LARGE)
        if min(height, width) == 0:
            raise Malformed("a picture without pixels")
        parts = [_Part(body[i], body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in range(6, len(body), 3)]
        if len({p.id for p in parts}) < len(parts):
            raise Malformed("two components of the same name")
        if any(not (1 <= p.horizontal <= 4 and 1 <= p.vertical <= 4) for p in parts):
            raise Malformed("sampling factors outside 1..4")
        widest, tallest = max(p.horizontal for p in parts), max(p.vertical for p in parts)
        for p in parts:
            covered = _ceil(height * p.vertical, tallest), _ceil(width * p.horizontal, widest)
            p.real = (_ceil(covered[0], 8), _ceil(covered[1], 8))
            p.whole = (_ceil(height, 8 * tallest) * p.vertical, _ceil(width, 8 * widest) * p.horizontal)
            if len(parts) == 1:
                p.whole = p.real
        if sum(64 * p.whole[0] * p.whole[1] for p in parts) > MAX_COEFFICIENTS:
            raise Malformed(f"more than {MAX_COEFFICIENTS} coefficients")
        self.size, self.parts = (height, width), parts

    def _scan(self, body: bytes) -> Scan:
        if not body or len(body) != 4 + 2 * body[0] or body[-3:] != b"\0\x3f\0":
            raise Malformed("a scan header is malformed or not sequential")
        parts = []
        for i in range(1, 1 + 2 * body[0], 2):
            known = [k for k, p in enumerate(self.parts) if p.id == body[i]]
            if not known or known[0] in self.scanned:
                raise Malformed("a scan of an unknown or repeated component")
            k = known[0]
            self.scanned.add(k)
            table = self.quantisers.get(self.parts[k].quantiser)
            dc, ac = body[i + 1] >> 4, body[i + 1] & 15
            if table is None or dc > 3 or ac > 3:
                raise Malformed("a scan without its tables")
            self.parts[k].table = table
            parts.append((k, dc, ac))
        blocks = sum(self.parts[k].horizontal * self.parts[k].vertical for k, _, _ in parts)
        if not parts or (len(parts) > 1 and blocks > MAX_MCU_BLOCKS):
            raise Malformed("a scan of no component, or of MCUs of more than 10 blocks")
        return Scan(tuple(parts))

    def frame(self, padded: bool) -> Frame:
        """The frame, once all scans are read, with the blocks of whole MCUs or of the picture."""
        if not self.parts or len(self.scanned) < len(self.parts):
            raise Malformed("a file without all of its scans")
        components = []
        for p in self.parts:
            high, wide = p.whole if padded else p.real
            assert p.table is not None
            components.append(Component(p.horizontal, p.vertical, high, wide, p.table))
        return Frame(*self.size, tuple(components))

    def layout(self, scan: Scan, padded: bool) -> Layout:
        """Where a scan's blocks are in arrays of the whole MCUs, or of the picture."""
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
