"""What a JPEG file is rebuilt from besides its coefficients, as bytes.

    recipe   version (1), blocks (0: those of the picture, 1: those of whole MCUs),
             scans (1..100: how many; 128 + 2 s + j: those after the first are of script s, j: their tables share
             segments), per scan:
               form: bit 0 the bit that pads bytes, 1..3 what follows of the next three, 4 no limit on correction bits
               odd endings, number, each: intervals since the last, bits, number of bytes, bytes
               odd runs of zeros, number, each: blocks since the last, runs
               odd stops of end-of-block runs, number, each: blocks since the last
               number of table segments left out, each:
                 offset in the run, number of tables, per table: bits 0..1 destination, 4 AC, 5 optimised
               length of the run, run: the bytes before the scan, its own header included
             the bytes after the last scan
    Numbers are LEB128.

Files of one size, quality and encoder have equal recipes, however much their pictures differ. The specification is in
docs/format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zippy_batch.errors import DamagedRow
from zippy_batch.jpeg.faults import Malformed
from zippy_batch.jpeg.markers import EOI, MAX_SCANS, SOS, Frame, FrameShape, Headers, ScanHeader, next_segment
from zippy_batch.jpeg.scripts import SCRIPTS, later_runs
from zippy_batch.jpeg.tables import EMPTY_TABLE, OPTIMISED, STANDARD, Table, is_kind, key_of
from zippy_batch.varint import read_varint, write_varint

VERSION = 1
MAX_LEFT_OUT = 32
"""Table segments that are left out of one run."""
MAX_TABLES = 8
"""Most tables of one such segment: there are no more destinations."""
_CACHED_BYTES = 4096
"""Longer recipes are read anew each time: a cache of them would hold what they hold."""
_SCRIPT = 128
_PADDING, _ENDINGS, _ZEROS, _STOPS, _UNLIMITED = 1, 2, 4, 8, 16
_FORMS = 32


class Oddities(NamedTuple):
    """Where a scan is not coded as libjpeg codes it. Numbers ascend."""

    endings: Sequence[tuple[int, int, bytes]] = ()
    """Restart interval, bits that fill up its last byte, and what follows that, without stuffing."""
    zeros: Sequence[tuple[int, int]] = ()
    """Block of the scan, and how many runs of 16 zeros stand before its end."""
    stops: Sequence[int] = ()
    """Blocks of the scan after which a run of ends stops before it has to."""
    unlimited: bool = False
    """Whether runs of ends go on however many correction bits they have."""


NOTHING_ODD = Oddities()


@dataclass
class Run:
    """The bytes before a scan, its own header included, what is left out of them, and how the scan is coded."""

    data: bytes
    pad: int = 1
    left_out: list[tuple[int, list[int]]] = field(default_factory=list)
    """Offset of each table segment, and kinds of its tables."""
    odd: Oddities = NOTHING_ODD


@dataclass(frozen=True)
class PlannedScan:
    run: Run
    header: ScanHeader
    shape: FrameShape
    padded: bool
    """Whether blocks are those of whole MCUs."""
    tables: dict[int, Table]
    """Tables by key; EMPTY_TABLE for those that are to be optimised."""
    restart: int
    """MCUs between restart markers, or 0."""
    endings: NDArray[np.int64]
    """(n, 3) interval, bits, number of bytes of `extra`."""
    extra: NDArray[np.uint8]
    zeros: NDArray[np.int64]
    """(n, 2) block, runs."""
    stops: NDArray[np.int64]
    """(n,) blocks."""


@dataclass(frozen=True)
class Plan:
    """A recipe, read."""

    frame: Frame
    scans: list[PlannedScan]
    tail: bytes
    coded_blocks: int
    """Number of blocks in all components' whole MCUs."""

    @property
    def runs(self) -> list[Run]:
        return [scan.run for scan in self.scans]


# ---- writing ----


def write_recipe(runs: Sequence[Run], tail: bytes, padded: bool) -> bytes:
    script = _script_of(runs)
    spelled = runs if script is None else runs[:1]
    scans = len(runs) if script is None else _SCRIPT + script
    return b"".join([bytes([VERSION, int(padded), scans]), *map(_write_run, spelled), tail])


def _script_of(runs: Sequence[Run]) -> int | None:
    """What a recipe says instead of the runs after the first."""
    if len(runs) < 2:
        return None
    later = [(run.data, run.pad, run.left_out, run.odd) for run in runs[1:]]
    for code in range(2 * len(SCRIPTS)):
        try:
            implied = _implied(code, runs[0])
        except Malformed:
            continue
        if [(run.data, run.pad, run.left_out, run.odd) for run in implied] == later:
            return code
    return None


def _implied(code: int, first: Run) -> list[Run]:
    """The runs after the first one by the script of this number; Malformed where there is none."""
    if code >= 2 * len(SCRIPTS):
        raise Malformed(f"there is no scan script {code // 2}")
    headers = Headers()
    scan = _read_run(headers, first, b"")
    ids = [part.id for part in headers.parts]
    destinations = [1] * len(ids)
    for k, dc, _ in scan.parts:
        destinations[k] = dc
    if len(ids) not in SCRIPTS[code // 2].components:
        raise Malformed(f"scan script {code // 2} is not for {len(ids)} components")
    later = later_runs(code // 2, code % 2 == 1, ids, destinations)
    return [Run(data, first.pad, left_out) for data, left_out in later]


def _write_run(run: Run) -> bytes:
    odd = run.odd
    form = _PADDING * run.pad | _ENDINGS * bool(odd.endings) | _ZEROS * bool(odd.zeros) | _STOPS * bool(odd.stops)
    out = [bytes([form | _UNLIMITED * odd.unlimited])]
    if odd.endings:
        out.append(write_varint(len(odd.endings)))
        for delta, (_, bits, extra) in zip(_deltas([n for n, _, _ in odd.endings]), odd.endings, strict=True):
            out += [write_varint(delta), bytes([bits]), write_varint(len(extra)), extra]
    if odd.zeros:
        out.append(write_varint(len(odd.zeros)))
        for delta, (_, count) in zip(_deltas([n for n, _ in odd.zeros]), odd.zeros, strict=True):
            out += [write_varint(delta), bytes([count])]
    if odd.stops:
        out += [write_varint(len(odd.stops)), *map(write_varint, _deltas(odd.stops))]
    out.append(write_varint(len(run.left_out)))
    for at, kinds in run.left_out:
        out += [write_varint(at), bytes([len(kinds), *kinds])]
    return b"".join([*out, write_varint(len(run.data)), run.data])


def _deltas(numbers: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip([0, *numbers], numbers, strict=False)]


# ---- reading ----


def read_recipe(header: bytes) -> Plan:
    """Takes time and memory in proportion to its length. Raises DamagedRow for what no recipe says."""
    return _read_cached(header) if len(header) <= _CACHED_BYTES else _read(header)


def _read(header: bytes) -> Plan:
    try:
        return _plan(*_Reader(header).read())
    except (Malformed, ValueError) as error:
        raise DamagedRow(f"header: {error}") from None


_read_cached = lru_cache(maxsize=128)(_read)


def _plan(runs: Sequence[Run], tail: bytes, padded: bool) -> Plan:
    headers = Headers()
    if runs[0].data[:2] != b"\xff\xd8":
        raise Malformed("the first run does not begin as a JPEG file")
    read = []
    for number, run in enumerate(runs):
        following = runs[number + 1].data if number + 1 < len(runs) else tail
        scan = _read_run(headers, run, following)
        read.append((run, scan, dict(headers.huffman), headers.restart))
    frame = headers.frame(padded)
    blocks = sum(high * wide for _, (high, wide) in headers.grids())
    return Plan(frame, [_planned(*one, headers.shape(), padded) for one in read], tail, blocks)


def _read_run(headers: Headers, run: Run, following: bytes) -> ScanHeader:
    """Take a run's segments into headers; returns the scan that it ends with. following: what comes after the scan."""
    waiting = list(run.left_out)
    # the first run begins with the marker that begins a file
    at = 0 if headers.scans else 2
    marker, body = EOI, b""
    while (segment := next_segment(run.data, at)) is not None and segment[0] != EOI:
        marker, start, begin, end = segment
        while waiting and waiting[0][0] <= start:
            offset, kinds = waiting.pop(0)
            if offset < at:
                raise Malformed("table segments are out of place")
            # optimised ones stand empty until the coefficients are there
            headers.huffman.update((key_of(k), EMPTY_TABLE if k & OPTIMISED else STANDARD[key_of(k)]) for k in kinds)
        body, at = run.data[begin:end], end
        if marker == SOS:
            break
        headers.read(marker, body)
    if marker != SOS or at != len(run.data) or waiting:
        raise Malformed("a run does not end with a scan header")
    scan = headers.read_scan(body)
    if headers.scans == 1:
        headers.read_height(following, 0)
    return scan


def _planned(
    run: Run, header: ScanHeader, tables: dict[int, Table], restart: int, shape: FrameShape, padded: bool
) -> PlannedScan:
    odd = run.odd
    return PlannedScan(
        run,
        header,
        shape,
        padded,
        tables,
        restart,
        np.array([(n, bits, len(extra)) for n, bits, extra in odd.endings], np.int64).reshape(-1, 3),
        np.frombuffer(b"".join(extra for _, _, extra in odd.endings), np.uint8),
        np.array(odd.zeros, np.int64).reshape(-1, 2),
        np.array(odd.stops, np.int64),
    )


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self) -> tuple[list[Run], bytes, bool]:
        """Runs, tail, and whether blocks are those of whole MCUs."""
        version = self._byte()
        if version != VERSION:
            raise Malformed(f"recipe version {version} is unknown; this version reads {VERSION}")
        padded = bool(self._byte(1))
        scans = self._byte()
        if scans >= _SCRIPT:
            first = self._run()
            runs = [first, *_implied(scans - _SCRIPT, first)]
        elif 1 <= scans <= MAX_SCANS:
            runs = [self._run() for _ in range(scans)]
        else:
            raise Malformed(f"{scans} scans, expected 1 to {MAX_SCANS}")
        return runs, self._data[self._at :], padded

    def _run(self) -> Run:
        form = self._byte(_FORMS - 1)
        endings, zeros, stops = [], [], []
        place = 0
        for _ in range(self._number() if form & _ENDINGS else 0):
            place += self._number()
            endings.append((place, self._byte(), self._take(self._number())))
        place = 0
        for _ in range(self._number() if form & _ZEROS else 0):
            place += self._number()
            zeros.append((place, self._byte()))
        place = 0
        for _ in range(self._number() if form & _STOPS else 0):
            place += self._number()
            stops.append(place)
        run = Run(b"", form & _PADDING, [], Oddities(endings, zeros, stops, bool(form & _UNLIMITED)))
        count = self._number()
        if count > MAX_LEFT_OUT:
            raise Malformed(f"{count} table segments left out of a run, expected at most {MAX_LEFT_OUT}")
        for _ in range(count):
            at = self._number()
            kinds = [self._byte() for _ in range(self._byte(MAX_TABLES))]
            for kind in kinds:
                if not is_kind(kind):
                    raise Malformed(f"there is no table of the kind {kind}")
            run.left_out.append((at, kinds))
        run.data = self._take(self._number())
        return run

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise Malformed("the recipe ends early")
        self._at += size
        return self._data[self._at - size : self._at]

    def _byte(self, most: int = 255) -> int:
        value = self._take(1)[0]
        if value > most:
            raise Malformed(f"a value of {value}, expected at most {most}")
        return value

    def _number(self) -> int:
        value, self._at = read_varint(self._data, self._at)
        return value
