"""Batches of JPEG coefficients <-> payloads with the exact codec.

    coefficients -> integer network, plane after plane -> distributions + rANS -> payload, and back

Nothing here is a float that matters: an image's payload is the same in any batch, on any machine. The images of a batch
may differ in everything.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zippy_batch.codecs.exact import mixture
from zippy_batch.codecs.exact.blocks import ROLES, Blocks, Indices, geometry, planes_of
from zippy_batch.codecs.exact.context import Coder, IntegerPlane, Known, inputs_of
from zippy_batch.codecs.exact.features import ends_of
from zippy_batch.codecs.exact.mixture import ESCAPE, Outputs, Quantisers
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, ExactArchitecture
from zippy_batch.codecs.exact.passes import Inputs
from zippy_batch.codecs.integer import exact_products, probe
from zippy_batch.codecs.model_file import Model
from zippy_batch.codecs.rans import STATE_BYTES, STATE_LOW, lane_bytes
from zippy_batch.errors import ModelError
from zippy_batch.jpeg.file import Coefficients
from zippy_batch.jpeg.markers import Component, Frame
from zippy_batch.varint import read_varint, write_varint

BATCH_BLOCKS = 16384
"""Blocks that go through the network at once; more take memory and are no faster."""

_PROCESSOR = torch.device("cpu")

LARGE_BLOCKS = 1 << 17
"""A picture of more takes gigabytes (2.6 at 4096x4096, 4:4:4): only one thread codes such a one at a time."""


@dataclass(frozen=True)
class ExactItem:
    """What decoding one image needs."""

    payload: bytes
    frame: Frame


class ExactCodec:
    """One model, on the processor. Safe to use from several threads.

    Raises ModelError for a model that is not whole or not exact.
    """

    def __init__(self, model: Model) -> None:
        probe(_PROCESSOR)
        card: Any = model.card.get("architecture")
        try:
            a = ExactArchitecture.from_dict(card)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ModelError(f"model {model.name!r}: architecture {card!r} is not understood: {error}") from error
        self._large = threading.Lock()
        self._planes = {k: IntegerPlane(k, a.shape(k), model.arrays) for k in CONTEXT_PLANES}

    def encode(self, images: Sequence[tuple[Frame, Coefficients]]) -> list[bytes]:
        """One payload each."""
        pieces = [_pieces_of(frame) for frame, _ in images]
        coded = iter(
            self._encode([piece for one, image in zip(pieces, images, strict=True) for piece in _cut(one, image[1])])
        )
        return [_join([next(coded) for _ in one]) for one in pieces]

    def _encode(self, images: Sequence[tuple[Frame, Coefficients]]) -> list[bytes]:
        out = [b""] * len(images)
        for part in _parts([frame for frame, _ in images]):
            frames = [images[i][0] for i in part]
            recorder = _Recorder([images[i][1] for i in part])
            self._traverse(frames, recorder)
            for i, payload in zip(part, recorder.payloads(), strict=True):
                out[i] = payload
        return out

    def decode_checked(self, items: Sequence[ExactItem]) -> tuple[list[Coefficients], dict[int, str]]:
        """Coefficients of each; and the damage by index of those whose payload is not what this model wrote."""
        pieces = [_take_pieces(item) for item in items]
        found, wrong = self._decode([piece for one in pieces for piece in one])
        out: list[Coefficients] = []
        damage: dict[int, str] = {}
        at = 0
        for i, one in enumerate(pieces):
            out.append(tuple(c for coefficients in found[at : at + len(one)] for c in coefficients))
            reasons = [wrong[n] for n in range(at, at + len(one)) if n in wrong]
            if reasons:
                damage[i] = reasons[0]
            at += len(one)
        return out, damage

    def _decode(self, items: Sequence[ExactItem]) -> tuple[list[Coefficients], dict[int, str]]:
        out: list[Coefficients] = [()] * len(items)
        damage: dict[int, str] = {}
        for part in _parts([item.frame for item in items]):
            player = _Player([items[i].payload for i in part])
            frames = [items[i].frame for i in part]
            found = _take_apart(self._traverse(frames, player), frames)
            wrong = player.damage([_check(coefficients) for coefficients in found])
            for n, i in enumerate(part):
                out[i] = found[n]
                if n in wrong:
                    damage[i] = wrong[n]
        return out, damage

    def _traverse(self, frames: Sequence[Frame], coder: Coder) -> dict[str, Known]:
        seen: dict[str, Inputs] = {}
        out: dict[str, Known] = {}
        blocks_in_all = sum(c.blocks_high * c.blocks_wide for frame in frames for c in frame.components)
        alone = self._large if blocks_in_all > LARGE_BLOCKS else contextlib.nullcontext()
        with alone, exact_products(_PROCESSOR):
            for name, blocks in planes_of(frames).items():
                before = {k: seen[k] for k in CONTEXT_PLANES[name] if k in seen}
                known = self._planes[name].traverse(blocks, before, coder)
                if name != "y":
                    seen[name] = inputs_of(known, blocks)
                out[name] = known
        return out


def _pieces_of(frame: Frame) -> list[Frame]:
    """The frame; one of four components as that of the first three, and that of the fourth alone."""
    if len(frame.components) <= len(ROLES):
        return [frame]
    return [_frame_of(frame, frame.components[: len(ROLES)]), _frame_of(frame, frame.components[len(ROLES) :])]


def _frame_of(frame: Frame, components: tuple[Component, ...]) -> Frame:
    """A frame of some components, of the size that they have."""
    down, across = (max(c.vertical for c in components), max(c.horizontal for c in components))
    most_down, most_across = (max(c.vertical for c in frame.components), max(c.horizontal for c in frame.components))
    return Frame(-(-frame.height * down // most_down), -(-frame.width * across // most_across), components)


def _cut(pieces: Sequence[Frame], coefficients: Coefficients) -> Iterator[tuple[Frame, Coefficients]]:
    at = 0
    for piece in pieces:
        yield piece, coefficients[at : at + len(piece.components)]
        at += len(piece.components)


def _join(payloads: Sequence[bytes]) -> bytes:
    """One payload; of several, each but the last after its length."""
    return b"".join([part for one in payloads[:-1] for part in (write_varint(len(one)), one)] + [payloads[-1]])


def _take_pieces(item: ExactItem) -> list[ExactItem]:
    """Inverse of `_join`. Lengths that make no sense give payloads that do not decode."""
    pieces = _pieces_of(item.frame)
    payload = item.payload
    out = []
    for piece in pieces[:-1]:
        try:
            size, at = read_varint(payload, 0)
        except ValueError:
            size, at = 0, 0
        out.append(ExactItem(payload[at : at + size], piece))
        payload = payload[at + size :]
    return [*out, ExactItem(payload, pieces[-1])]


def _parts(frames: Sequence[Frame]) -> Iterator[list[int]]:
    """Numbers of images that go through the network together, those of one geometry side by side."""
    part: list[int] = []
    held = 0
    for i in sorted(range(len(frames)), key=lambda i: geometry(frames[i])):
        size = sum(c.blocks_high * c.blocks_wide for c in frames[i].components)
        if part and held + size > BATCH_BLOCKS:
            yield part
            part, held = [], 0
        part.append(i)
        held += size
    if part:
        yield part


def _take_apart(planes: Mapping[str, Known], frames: Sequence[Frame]) -> list[Coefficients]:
    """Coefficients of each image of a batch."""
    begins = {k: np.searchsorted(known.image, np.arange(len(frames) + 1)).tolist() for k, known in planes.items()}
    out = []
    for n, frame in enumerate(frames):
        parts = []
        for name, c in zip(ROLES, frame.components, strict=False):
            begin, end = begins[name][n : n + 2]
            parts.append(planes[name].coefficients[begin:end].reshape(c.blocks_high, c.blocks_wide, 64))
        out.append(tuple(parts))
    return out


def _check(coefficients: Coefficients) -> int:
    """What the first state of an image's lane is: the low 24 bits of the CRC-32 of its coefficients.

    Twice as many as in the lossy codec, for 1.5 bytes: files are promised bit for bit, and nothing else stored says
    whether a machine that computes wrongly has decoded one.
    """
    crc = 0
    for c in coefficients:
        crc = zlib.crc32(c.astype("<i2").tobytes(), crc)
    return crc & (STATE_LOW - 1)


class _Recorder:
    """Encoder: keeps the intervals of all that is coded, because they are pushed last first."""

    def __init__(self, images: Sequence[Coefficients]) -> None:
        self._images = images
        self._symbols = 0
        self._start, self._frequency = np.empty(0, np.uint16), np.empty(0, np.uint16)
        self._room = np.full(len(images), 8, np.int64)
        self._records: list[tuple[Known, Indices, tuple[int, int], int]] = []
        """What was coded, and of which rows; first coefficient, number of each; the start of escapes."""

    def open(self, plane: str, blocks: Blocks) -> Known:
        k = ROLES.index(plane)
        coefficients = np.concatenate([c[k].reshape(-1, 64) for c in self._images if len(c) > k])
        ends = ends_of(coefficients)
        more = self._symbols + int(ends.sum()) + 2 * len(ends) - len(self._start)
        self._start, self._frequency = (
            np.concatenate([a, np.empty(more, np.uint16)]) for a in (self._start, self._frequency)
        )
        return Known(blocks.image, ends, coefficients)

    def code_ends(self, known: Known, rows: Indices, outputs: Outputs) -> None:
        found = self._start, self._frequency, self._symbols
        self._symbols = mixture.end_intervals(outputs.sums, outputs.scale.arrays, known.where(rows), found, self._room)
        self._records.append((known, rows, (0, 1), -1))

    def code(self, known: Known, rows: Indices, first: int, outputs: Outputs, how: Quantisers) -> None:
        found = self._start, self._frequency, self._symbols
        scale, where = outputs.scale.arrays, known.where(rows)
        self._symbols = mixture.intervals(
            outputs.sums, scale, where, first, how.arrays, known.coefficients, found, self._room
        )
        self._records.append((known, rows, (first, len(how.unit)), ESCAPE))

    def payloads(self) -> list[bytes]:
        """The intervals of all images, pushed, as bytes."""
        end = np.cumsum(self._room)
        begin, at = end - self._room, end - self._room
        out = np.empty(end[-1], np.uint8)
        state = np.array([_check(c) for c in self._images], np.uint64)
        number = self._symbols
        for known, rows, span, escape in reversed(self._records):
            found = self._start, self._frequency, number
            lanes = state, out, at
            number = mixture.push(known.where(rows), span, known.coefficients, found, escape, lanes)
        return [lane_bytes(int(state[n]), out[begin[n] : at[n]].tobytes()) for n in range(len(at))]


class _Player:
    """Decoder: pops what is coded, step by step, then checks that nothing is left."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        data = np.frombuffer(b"".join(payloads) or b"\0", np.uint8)
        self._end = np.cumsum([len(p) for p in payloads])
        self._begin = self._end - [max(0, len(p) - STATE_BYTES) for p in payloads]
        self._state = np.array([int.from_bytes(p[:STATE_BYTES], "big") for p in payloads], np.uint64)
        self._zero = [p[:1] == b"\0" for p in payloads]
        self._lanes = data, self._begin, self._end, self._state

    def open(self, plane: str, blocks: Blocks) -> Known:
        rows = len(blocks.image)
        return Known(blocks.image, np.zeros(rows, np.int64), np.zeros((rows, 64), np.int16))

    def code_ends(self, known: Known, rows: Indices, outputs: Outputs) -> None:
        mixture.pop_ends(outputs.sums, outputs.scale.arrays, known.where(rows), self._lanes)

    def code(self, known: Known, rows: Indices, first: int, outputs: Outputs, how: Quantisers) -> None:
        mixture.pop(
            outputs.sums, outputs.scale.arrays, known.where(rows), first, how.arrays, self._lanes, known.coefficients
        )

    def damage(self, checks: Sequence[int]) -> dict[int, str]:
        """Image number -> what is wrong, for every image whose state or bytes did not end where they should."""
        bad = (self._state != np.array(checks, np.uint64)) | (self._begin != self._end) | np.array(self._zero)
        reason = "payload: coefficients do not add up (damaged bytes, or not this model)"
        return {int(n): reason for n in np.flatnonzero(bad)}
