"""JPEG file <-> header recipe and quantised coefficients, bit for bit.

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

from zippy_batch.errors import DamagedRow, ZippyError
from zippy_batch.images.probe import MAX_IMAGE_BYTES, TOO_LARGE
from zippy_batch.jpeg import huffman
from zippy_batch.jpeg.markers import Frame, Headers, Layout, Scan
from zippy_batch.jpeg.recipe import (
    MAX_LEFT_OUT,
    MAX_RECIPE_SCANS,
    MAX_TABLES,
    OPTIMISED,
    Run,
    key_of,
    kind_of,
    read_recipe,
    write_recipe,
)
from zippy_batch.jpeg.tables import EMPTY_TABLE, STANDARD, Malformed, Table, optimal, read_tables, write_segment

Coefficients = tuple[NDArray[np.int16], ...]
"""Per component (blocks_high, blocks_wide, 64) in zigzag order, DC absolute."""


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
    if len(data) > MAX_IMAGE_BYTES:
        raise Unrebuildable(TOO_LARGE)
    try:
        image = _parse(data)
        if rebuild(image.header, image.coefficients) == data:
            return image
    except Malformed as error:
        raise Unrebuildable(str(error)) from None
    except DamagedRow:
        raise Unrebuildable("its coefficients do not code again") from None
    raise Unrebuildable("it is coded in a way of its own: the rebuilt file differs")


@dataclass(frozen=True)
class _Found:
    """A scan as it was met: its run, where table segments are in it, and what codes it."""

    run: Run
    segments: list[int]
    scan: Scan
    restart: int


def _parse(data: bytes) -> JpegImage:
    headers = Headers()
    found: list[_Found] = []
    at = begin = 0
    blocks: NDArray[np.int16] | None = None
    plain = True
    while True:
        segments: list[int] = []

        def note(position: int, marker: int, begin: int = begin, segments: list[int] = segments) -> None:
            if marker == 0xC4 and len(segments) < MAX_LEFT_OUT:
                segments.append(position - begin)

        at, scan = headers.read(data, at, note)
        if scan is None:
            break
        if len(found) == MAX_RECIPE_SCANS:
            raise Malformed("more scans than components")
        if blocks is None:
            blocks = np.zeros((sum(p.whole[0] * p.whole[1] for p in headers.parts), 64), np.int16)
        layout = headers.layout(scan, padded=True)
        tables = _decoder(headers.huffman)
        end, alike, padding = huffman.decode_scan(
            np.frombuffer(data, np.uint8), at, *layout, headers.restart, *tables, blocks
        )
        if end < 0:
            reasons = {huffman.TRUNCATED: "its scan is truncated", huffman.NO_RESTART: "a restart marker is missing"}
            raise Malformed(reasons.get(end, "its scan is damaged"))
        plain &= bool(alike)
        found.append(_Found(Run(data[begin:at], 0 if padding == 0 else 1), segments, scan, headers.restart))
        begin = at = int(end)
    if blocks is None:
        raise Malformed("a file without a scan")
    frame = headers.frame(not plain)
    coefficients = _split(headers, blocks, plain)
    flat = blocks if not plain else np.concatenate([c.reshape(-1, 64) for c in coefficients])
    for one in found:
        _leave_out(one.run, one.segments, _count(flat, headers.layout(one.scan, not plain), one.restart))
    return JpegImage(frame, write_recipe([one.run for one in found], data[begin:], not plain), coefficients)


def _split(headers: Headers, blocks: NDArray[np.int16], crop: bool) -> Coefficients:
    """Blocks of all components' whole MCUs -> per component, cropped to the picture or not."""
    out, at = [], 0
    for p in headers.parts:
        high, wide = p.whole
        plane = blocks[at : at + high * wide].reshape(high, wide, 64)
        out.append(np.ascontiguousarray(plane[: p.real[0], : p.real[1]] if crop else plane))
        at += high * wide
    return tuple(out)


def _leave_out(run: Run, segments: Sequence[int], frequency: NDArray[np.int64]) -> None:
    """Cut table segments, which begin at these offsets, out of a run where they follow from the coefficients."""
    kept: list[bytes] = []
    at = offset = 0
    best: dict[int, bytes] = {}
    for begin in segments:
        marker = run.data.index(b"\xc4", begin)
        end = marker + 1 + int.from_bytes(run.data[marker + 1 : marker + 3], "big")
        tables = read_tables(run.data[marker + 3 : end])
        kinds = [kind for key, table in tables if (kind := _kind(key, table, frequency, best)) is not None]
        if len(kinds) == len(tables) <= MAX_TABLES and run.data[begin:end] == write_segment(tables):
            kept.append(run.data[at:begin])
            offset += begin - at
            run.left_out.append((offset, kinds))
            at = end
    run.data = b"".join([*kept, run.data[at:]])


def _kind(key: int, table: Table, frequency: NDArray[np.int64], best: dict[int, bytes]) -> int | None:
    """How a recipe calls this table; None where it has to be kept. best remembers optimised tables by key."""
    if key in STANDARD and table.to_bytes() == STANDARD[key].to_bytes():
        return kind_of(key, optimised=False)
    if not frequency[key].any():
        return None
    if key not in best:
        best[key] = optimal(frequency[key]).to_bytes()
    return kind_of(key, optimised=True) if table.to_bytes() == best[key] else None


def _count(blocks: NDArray[np.int16], layout: Layout, restart: int) -> NDArray[np.int64]:
    """(8, 256) how often a scan uses every symbol of every table."""
    frequency = np.zeros((8, 256), np.int64)
    nothing = np.zeros((8, 256), np.int64)
    if huffman.encode_scan(blocks, *layout, restart, nothing, nothing, frequency, 1, np.zeros(0, np.uint8)) < 0:
        raise DamagedRow("a difference of coefficients is out of range")
    return frequency


def _decoder(tables: Mapping[int, Table]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """`huffman.decode_scan`'s lengths, short and values."""
    lengths = np.full((8, 3, 17), -1, np.int64)
    short = np.zeros((8, 256), np.int64)
    values = np.zeros((8, 256), np.uint8)
    for key, table in tables.items():
        values[key, : len(table.values)] = table.values
        lengths[key], short[key] = huffman.decoder_table(table.counts, values[key])
    return lengths, short, values


def rebuild(header: bytes, coefficients: Sequence[NDArray[np.int16]]) -> bytes:
    """The file; DamagedRow where recipe and coefficients do not fit."""
    plan = read_recipe(header)
    if [c.shape for c in coefficients] != plan.frame.shapes:
        raise DamagedRow(f"coefficients {[c.shape for c in coefficients]} are not those of {plan.frame.shapes}")
    blocks = np.concatenate([np.asarray(c, np.int16).reshape(-1, 64) for c in coefficients])
    out = []
    made: dict[int, Table] = {}
    for run, layout, known, restart in zip(plan.runs, plan.layouts, plan.tables, plan.restarts, strict=True):
        frequency = _count(blocks, layout, restart)
        at = 0
        for offset, kinds in run.left_out:
            made.update((key_of(k), optimal(frequency[key_of(k)])) for k in kinds if k & OPTIMISED)
            tables = [(key_of(k), made[key_of(k)] if k & OPTIMISED else STANDARD[key_of(k)]) for k in kinds]
            out += [run.data[at:offset], write_segment(tables)]
            at = offset
        out.append(run.data[at:])
        settled = {key: made[key] if table is EMPTY_TABLE else table for key, table in known.items()}
        out.append(_encode(blocks, layout, restart, settled, frequency, run.pad))
    return b"".join([*out, plan.tail])


def _encode(
    blocks: NDArray[np.int16],
    layout: Layout,
    restart: int,
    tables: Mapping[int, Table],
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
