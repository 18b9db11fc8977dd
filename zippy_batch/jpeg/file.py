"""JPEG file <-> recipe and quantised coefficients, bit for bit.

    file = headers, scan, headers, scan, ..., tail
    recipe = the file without its scans, and without Huffman tables that follow from the coefficients

Huffman tables are left out where they are those of T.81 K.3, or those that libjpeg's optimiser makes for the
coefficients. `parse` rebuilds the file and compares: what it returns is proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import HEADER_MARGIN
from zippy_batch.errors import DamagedRow, ZippyError
from zippy_batch.jpeg.faults import Malformed
from zippy_batch.jpeg.markers import (
    DHT,
    DNL,
    EOI,
    MAX_JPEG_BYTES,
    MAX_SEGMENTS,
    SOS,
    Frame,
    Headers,
    ScanHeader,
    next_segment,
)
from zippy_batch.jpeg.recipe import MAX_LEFT_OUT, MAX_TABLES, Run, read_recipe, write_recipe
from zippy_batch.jpeg.scans import DecodedScan, decode_scan, token_room, tokenise, write_scan
from zippy_batch.jpeg.tables import (
    EMPTY_TABLE,
    OPTIMISED,
    STANDARD,
    Table,
    key_of,
    kind_of,
    optimal,
    read_tables,
    write_segment,
)

Coefficients = tuple[NDArray[np.int16], ...]
"""Per component (blocks_high, blocks_wide, 64) in zigzag order, DC absolute."""

_NUMBER_OF_LINES = bytes([0xFF, DNL])
NOT_CANONICAL = "non-standard entropy coding; the rebuilt file would differ"


class Unrebuildable(ZippyError):
    """Why a file cannot be rebuilt bit for bit from its coefficients: fixed words, which reports count."""


@dataclass(frozen=True, eq=False)
class JpegImage:
    frame: Frame
    header: bytes
    """The recipe."""
    coefficients: Coefficients


def read_frame(header: bytes) -> Frame:
    """The frame of a recipe; DamagedRow where it is none. Takes time and memory in proportion to its length."""
    return read_recipe(header).frame


def parse(data: bytes) -> JpegImage:
    """Read a file, and prove that `rebuild` returns it; Unrebuildable, with the reason, where it does not."""
    if data[:2] != b"\xff\xd8":
        raise Unrebuildable("not a JPEG")
    if len(data) > MAX_JPEG_BYTES:
        raise Unrebuildable(f"more than {MAX_JPEG_BYTES >> 20} MiB")
    try:
        image = _FileParser(data).image()
        if len(image.header) > len(data) + HEADER_MARGIN:
            raise Unrebuildable("non-standard entropy coding in too many places")
        if rebuild(image.header, image.coefficients, len(data)) == data:
            return image
    except Malformed as error:
        raise Unrebuildable(str(error)) from None
    except DamagedRow:
        pass
    raise Unrebuildable(NOT_CANONICAL)


# ---- file -> recipe and coefficients ----


@dataclass(frozen=True)
class _Found:
    """A scan as it was met."""

    run: Run
    segments: list[int]
    """Offsets in the run where table segments begin."""
    frequency: NDArray[np.int64]


class _FileParser:
    """One walk over a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        self._headers = Headers()
        self._found: list[_Found] = []
        self._blocks = np.zeros((0, 64), np.int16)
        self._plain = True

    def image(self) -> JpegImage:
        end = self._read_scans()
        padded = not self._plain
        frame = self._headers.frame(padded)
        for one in self._found:
            _leave_out(one.run, one.segments, one.frequency)
        header = write_recipe([one.run for one in self._found], self._data[end:], padded)
        return JpegImage(frame, header, self._split())

    def _read_scans(self) -> int:
        """Decode all scans; returns the position after the last one."""
        headers, data = self._headers, self._data
        at = begin = 0
        segments: list[int] = []
        for _ in range(MAX_SEGMENTS):
            try:
                segment = next_segment(data, at)
            except Malformed:
                if len(headers.steps) < len(headers.parts) or not self._found:
                    raise
                # what comes after the last scan need not make sense
                segment = None
            marker, start, body_at, at = segment or (EOI, at, at, at)
            if marker == EOI:
                headers.check_complete()
                return begin
            body = data[body_at:at]
            if marker == SOS:
                scan = headers.read_scan(body)
                found = self._decode(scan, at)
                self._found.append(_Found(self._run(begin, at, found), segments, found.frequency))
                begin = at = found.end
                segments = []
            else:
                headers.read(marker, body)
                if marker == DHT and len(segments) < MAX_LEFT_OUT:
                    segments.append(start - begin)
        raise Malformed(f"more than {MAX_SEGMENTS} segments")

    def _decode(self, scan: ScanHeader, at: int) -> DecodedScan:
        headers = self._headers
        if headers.scans == 1 and (headers.height == 0 or self._data.find(_NUMBER_OF_LINES, at) >= 0):
            headers.read_height(self._data, at)
        if not self._found:
            self._blocks = np.zeros((sum(high * wide for _, (high, wide) in headers.grids()), 64), np.int16)
        found = decode_scan(self._bytes, at, headers, scan, self._blocks)
        if found.filled:
            raise Malformed("fill bytes inside a scan")
        self._plain &= found.plain
        return found

    def _run(self, begin: int, end: int, found: DecodedScan) -> Run:
        return Run(self._data[begin:end], found.padding, [], found.odd)

    def _split(self) -> Coefficients:
        """Per component the blocks of whole MCUs, or of the picture."""
        out, at = [], 0
        for real, whole in self._headers.grids():
            plane = self._blocks[at : at + whole[0] * whole[1]].reshape(*whole, 64)
            out.append(np.ascontiguousarray(plane[: real[0], : real[1]] if self._plain else plane))
            at += whole[0] * whole[1]
        return tuple(out)


def _leave_out(run: Run, segments: Sequence[int], frequency: NDArray[np.int64]) -> None:
    """Cut table segments, which begin at these offsets, out of a run where they follow from the coefficients."""
    kept: list[bytes] = []
    at = offset = 0
    best = optimal(frequency) if segments else {}
    for begin in segments:
        end = begin + 2 + int.from_bytes(run.data[begin + 2 : begin + 4], "big")
        tables = read_tables(run.data[begin + 4 : end])
        kinds = [kind for key, table in tables if (kind := _kind(key, table, best)) is not None]
        if len(kinds) == len(tables) <= MAX_TABLES:
            kept.append(run.data[at:begin])
            offset += begin - at
            run.left_out.append((offset, kinds))
            at = end
    run.data = b"".join([*kept, run.data[at:]])


def _kind(key: int, table: Table, best: Mapping[int, Table]) -> int | None:
    """How a recipe calls this table; None where it has to be kept. best: optimised tables by key."""
    if STANDARD.get(key) == table:
        return kind_of(key, optimised=False)
    return kind_of(key, optimised=True) if best.get(key) == table else None


# ---- recipe and coefficients -> file ----


def rebuild(header: bytes, coefficients: Sequence[NDArray[np.int16]], size_bytes: int = MAX_JPEG_BYTES) -> bytes:
    """The file; DamagedRow where recipe and coefficients do not fit, or make one of more than size_bytes."""
    plan = read_recipe(header)
    if [c.shape for c in coefficients] != plan.frame.shapes:
        raise DamagedRow(f"coefficients {[c.shape for c in coefficients]} are not those of {plan.frame.shapes}")
    blocks = np.concatenate([np.asarray(c, np.int16).reshape(-1, 64) for c in coefficients])
    tokens = token_room(blocks, plan)
    out: list[bytes] = []
    made: dict[int, Table] = {}
    size = len(plan.tail)
    for scan in plan.scans:
        count, frequency = tokenise(blocks, scan, tokens)
        pieces = _write_run(scan.run, frequency, made)
        settled = {key: made[key] if table == EMPTY_TABLE else table for key, table in scan.tables.items()}
        pieces.append(write_scan(tokens[:count], scan, settled))
        size += sum(map(len, pieces))
        if size > size_bytes:
            raise DamagedRow(f"it comes back with more than {size_bytes} bytes")
        out += pieces
    return b"".join([*out, plan.tail])


def _write_run(run: Run, frequency: NDArray[np.int64], made: dict[int, Table]) -> list[bytes]:
    """The bytes of a run, with what was left out. made: optimised tables so far by key, which are added to."""
    pieces, at = [], 0
    best = optimal(frequency) if any(k & OPTIMISED for _, kinds in run.left_out for k in kinds) else {}
    for offset, kinds in run.left_out:
        made.update((key_of(k), best.get(key_of(k), EMPTY_TABLE)) for k in kinds if k & OPTIMISED)
        tables = [(key_of(k), made[key_of(k)] if k & OPTIMISED else STANDARD[key_of(k)]) for k in kinds]
        pieces += [run.data[at:offset], write_segment(tables)]
        at = offset
    return [*pieces, run.data[at:]]
