"""What a JPEG file is rebuilt from besides its coefficients, as bytes.

    recipe   version (1), blocks (0: those of the picture, 1: those of whole MCUs), number of scans, per scan:
               bit that pads bytes (0, 1), number of table segments left out, each:
                 offset in the run, number of tables, per table: bits 0..1 destination, 4 AC, 5 optimised
               length of the run, run: the bytes before the scan, its own header included
             the bytes after the last scan
    Numbers are LEB128.

Files of one size, quality and encoder have equal recipes, however much their pictures differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from zippy_batch.errors import DamagedRow
from zippy_batch.jpeg.markers import Frame, Headers, Layout
from zippy_batch.jpeg.tables import EMPTY_TABLE, STANDARD, Malformed, Table
from zippy_batch.varint import read_varint, write_varint

VERSION = 1
MAX_RECIPE_SCANS = 3
MAX_LEFT_OUT = 32
"""Table segments that are left out of one run."""
MAX_TABLES = 8
"""Of one such segment: there are no more destinations."""
_CACHED_BYTES = 4096
"""Longer recipes are read anew each time: a cache of them would hold what they hold."""
OPTIMISED, _AC = 32, 16


@dataclass
class Run:
    """The bytes before a scan, its own header included, and what is left out of them."""

    data: bytes
    pad: int = 1
    left_out: list[tuple[int, list[int]]] = field(default_factory=list)
    """Offset of each table segment, and kinds of its tables."""


@dataclass(frozen=True)
class Plan:
    """A recipe, read."""

    frame: Frame
    runs: list[Run]
    layouts: list[Layout]
    """Of the scans."""
    tables: list[dict[int, Table]]
    """Of each scan, by key; EMPTY_TABLE for those that are to be optimised."""
    restarts: list[int]
    """MCUs between restart markers in each scan, or 0."""
    tail: bytes


def kind_of(key: int, optimised: bool) -> int:
    """How a recipe calls a table that is left out."""
    return key & 3 | (_AC if key >= 4 else 0) | (OPTIMISED if optimised else 0)


def key_of(kind: int) -> int:
    return (4 if kind & _AC else 0) + (kind & 3)


def write_recipe(runs: Sequence[Run], tail: bytes, padded: bool) -> bytes:
    out = [bytes([VERSION, int(padded), len(runs)])]
    for run in runs:
        out += [bytes([run.pad]), write_varint(len(run.left_out))]
        for at, kinds in run.left_out:
            out += [write_varint(at), bytes([len(kinds), *kinds])]
        out += [write_varint(len(run.data)), run.data]
    return b"".join([*out, tail])


def read_recipe(header: bytes) -> Plan:
    """Takes time and memory in proportion to its length. Raises DamagedRow for what no recipe says."""
    return _read_cached(header) if len(header) <= _CACHED_BYTES else _read(header)


def _read(header: bytes) -> Plan:
    try:
        return _Reader(header).plan()
    except (Malformed, ValueError) as error:
        raise DamagedRow(f"header: {error}") from None


_read_cached = lru_cache(maxsize=128)(_read)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def plan(self) -> Plan:
        version = self._byte()
        if version != VERSION:
            raise Malformed(f"recipe version {version} is unknown; this version reads {VERSION}")
        padded = bool(self._byte(1))
        headers = Headers()
        runs: list[Run] = []
        scans, tables, restarts = [], [], []
        for _ in range(self._byte(MAX_RECIPE_SCANS)):
            run = self._run()
            if not runs and run.data[:2] != b"\xff\xd8":
                raise Malformed("the first run does not begin as a JPEG file")
            waiting = list(run.left_out)

            def put_back(at: int, marker: int, waiting: list[tuple[int, list[int]]] = waiting) -> None:
                """The segments that stand before this one in the file."""
                while waiting and waiting[0][0] <= at:
                    offset, kinds = waiting.pop(0)
                    if offset < at:
                        raise Malformed("table segments are out of place")
                    # optimised ones stand empty until the coefficients are there
                    headers.huffman.update(
                        (key_of(k), EMPTY_TABLE if k & OPTIMISED else STANDARD[key_of(k)]) for k in kinds
                    )

            end, scan = headers.read(run.data, 0, put_back)
            if scan is None or end != len(run.data) or waiting:
                raise Malformed("a run does not end with a scan header")
            runs.append(run)
            scans.append(scan)
            tables.append(dict(headers.huffman))
            restarts.append(headers.restart)
        frame = headers.frame(padded)
        return Plan(frame, runs, [headers.layout(s, padded) for s in scans], tables, restarts, self._data[self._at :])

    def _run(self) -> Run:
        run = Run(b"", self._byte(1))
        count = self._number()
        if count > MAX_LEFT_OUT:
            raise Malformed(f"{count} table segments left out of a run, expected at most {MAX_LEFT_OUT}")
        for _ in range(count):
            at = self._number()
            kinds = [self._byte() for _ in range(self._byte(MAX_TABLES))]
            for kind in kinds:
                known = kind & OPTIMISED or key_of(kind) in STANDARD
                if kind & ~(OPTIMISED | _AC | 3) or not known:
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
