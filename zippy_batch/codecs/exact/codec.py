"""Batches of JPEG coefficients <-> payloads with the exact codec.

    coefficients -> integer network, plane after plane -> distributions + rANS -> payload, and back

Nothing here is a float that matters: an image's payload is the same in any batch, on any device. The images of a batch
may differ in everything.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.codecs.exact import mixture
from zippy_batch.codecs.exact.blocks import ROLES, Blocks, Indices, geometry, planes_of
from zippy_batch.codecs.exact.context import Coder, IntegerPlane
from zippy_batch.codecs.exact.features import ends_of
from zippy_batch.codecs.exact.mixture import ESCAPE, Quantisers
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, ExactArchitecture
from zippy_batch.codecs.integer import exact_products, probe
from zippy_batch.codecs.model_file import Model
from zippy_batch.codecs.rans import STATE_BYTES, STATE_LOW, lane_bytes
from zippy_batch.errors import ModelError
from zippy_batch.jpeg.file import Coefficients
from zippy_batch.jpeg.markers import Component, Frame
from zippy_batch.varint import read_varint, write_varint

BATCH_BLOCKS = 16384
"""Blocks that go through the network at once; more take memory and are no faster."""

LARGE_BLOCKS = 1 << 17
"""A picture of more takes gigabytes (2.6 at 4096x4096, 4:4:4): only one thread codes such a one at a time."""


@dataclass(frozen=True)
class ExactItem:
    """What decoding one image needs."""

    payload: bytes
    frame: Frame


class ExactCodec:
    """One model on one device. Safe to use from several threads.

    Raises ModelError for a model that is not whole or not exact.
    """

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self._device = torch.device(device)
        probe(self._device)
        card: Any = model.card.get("architecture")
        try:
            a = ExactArchitecture.from_dict(card)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ModelError(f"model {model.name!r}: architecture {card!r} is not understood: {error}") from error
        self._large = threading.Lock()
        self._planes = {k: IntegerPlane(k, a.shape(k), model.arrays, self._device) for k in CONTEXT_PLANES}

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
            planes = self._traverse([items[i].frame for i in part], player)
            found = [_take_apart(planes, items[i].frame, n) for n, i in enumerate(part)]
            wrong = player.damage([_check(coefficients) for coefficients in found])
            for n, i in enumerate(part):
                out[i] = found[n]
                if n in wrong:
                    damage[i] = wrong[n]
        return out, damage

    def _traverse(self, frames: Sequence[Frame], coder: Coder) -> dict[str, tuple[Blocks, NDArray[np.int16]]]:
        seen: dict[str, Tensor] = {}
        out: dict[str, tuple[Blocks, NDArray[np.int16]]] = {}
        blocks_in_all = sum(c.blocks_high * c.blocks_wide for frame in frames for c in frame.components)
        alone = self._large if blocks_in_all > LARGE_BLOCKS else contextlib.nullcontext()
        with alone, exact_products(self._device):
            for name, blocks in planes_of(frames).items():
                plane = self._planes[name]
                found = plane.traverse(blocks, {k: seen[k] for k in CONTEXT_PLANES[name] if k in seen}, coder)
                if name != "y":
                    seen[name] = plane.inputs_of(found, ends_of(found), blocks)
                out[name] = blocks, found
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


def _take_apart(planes: dict[str, tuple[Blocks, NDArray[np.int16]]], frame: Frame, number: int) -> Coefficients:
    """Coefficients of one image of a batch."""
    out = []
    for name, component in zip(ROLES, frame.components, strict=False):
        blocks, found = planes[name]
        begin, end = np.searchsorted(blocks.image, [number, number + 1])
        out.append(found[begin:end].reshape(component.blocks_high, component.blocks_wide, 64))
    return tuple(out)


def _check(coefficients: Coefficients) -> int:
    """What the first state of an image's lane is: the low 24 bits of the CRC-32 of its coefficients.

    Twice as many as in the lossy codec, for 1.5 bytes: files are promised bit for bit, and nothing else stored says
    whether a machine that computes wrongly has decoded one.
    """
    crc = 0
    for c in coefficients:
        crc = zlib.crc32(c.astype("<i2").tobytes(), crc)
    return crc & (STATE_LOW - 1)


_Record = tuple[Indices, NDArray[np.int16], NDArray[np.uint16], NDArray[np.uint16], int]
"""Arguments of `mixture.push`: images (R,); values, starts and frequencies (R, G); the start of escapes."""


class _Recorder:
    """Encoder: keeps the intervals of all that is coded, because they are pushed last first."""

    def __init__(self, images: Sequence[Coefficients]) -> None:
        self._checks = [_check(c) for c in images]
        self._planes = {
            name: np.concatenate([c[k].reshape(-1, 64) for c in images if len(c) > k])
            for k, name in enumerate(ROLES[: max(map(len, images))])
        }
        self._records: list[_Record] = []

    def code_ends(
        self, plane: str, rows: Indices, image: Indices, accumulated: NDArray[np.float32], shift: Indices
    ) -> NDArray[np.int16]:
        values = ends_of(self._planes[plane][rows]).astype(np.int16)
        start, frequency = np.empty((len(rows), 1), np.uint16), np.empty((len(rows), 1), np.uint16)
        mixture.end_intervals(accumulated, shift, values[:, None], start, frequency)
        self._records.append((image, values[:, None], start, frequency, -1))
        return values

    def code(
        self,
        plane: str,
        rows: Indices,
        image: Indices,
        ends: Indices,
        first: int,
        accumulated: NDArray[np.float32],
        shift: Indices,
        how: Quantisers,
    ) -> NDArray[np.int16]:
        values = self._planes[plane][rows, first : first + how.step.shape[1]]
        start, frequency = np.empty(values.shape, np.uint16), np.empty(values.shape, np.uint16)
        quantisers = (how.step, how.octaves, how.unit)
        mixture.intervals(accumulated, image, ends, first, shift, *quantisers, values, start, frequency)
        self._records.append((image, values, start, frequency, ESCAPE))
        return values

    def payloads(self) -> list[bytes]:
        """The intervals of all images, pushed, as bytes."""
        room = np.full(len(self._checks), 8, np.int64)
        for image, _, start, frequency, escape in self._records:
            most = 2 * np.count_nonzero(frequency, axis=1) + 2 * np.count_nonzero(start == escape, axis=1)
            room += np.bincount(image, most, len(room)).astype(np.int64)
        end = np.cumsum(room)
        begin, at = end - room, end - room
        out = np.empty(end[-1], np.uint8)
        state = np.array(self._checks, np.uint64)
        for image, values, start, frequency, escape in reversed(self._records):
            mixture.push(image, values, start, frequency, escape, state, out, at)
        return [lane_bytes(int(state[n]), out[begin[n] : at[n]].tobytes()) for n in range(len(room))]


class _Player:
    """Decoder: pops what is coded, step by step, then checks that nothing is left."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._data = np.frombuffer(b"".join(payloads) or b"\0", np.uint8)
        self._end = np.cumsum([len(p) for p in payloads])
        self._begin = self._end - [max(0, len(p) - STATE_BYTES) for p in payloads]
        self._state = np.array([int.from_bytes(p[:STATE_BYTES], "big") for p in payloads], np.uint64)
        self._zero = [p[:1] == b"\0" for p in payloads]

    def code_ends(
        self, plane: str, rows: Indices, image: Indices, accumulated: NDArray[np.float32], shift: Indices
    ) -> NDArray[np.int16]:
        values = np.empty((len(rows), 1), np.int16)
        mixture.pop_ends(accumulated, image, shift, self._data, self._begin, self._end, self._state, values)
        return values[:, 0]

    def code(
        self,
        plane: str,
        rows: Indices,
        image: Indices,
        ends: Indices,
        first: int,
        accumulated: NDArray[np.float32],
        shift: Indices,
        how: Quantisers,
    ) -> NDArray[np.int16]:
        values = np.zeros((len(rows), how.step.shape[1]), np.int16)
        mixture.pop(
            accumulated, image, ends, first, shift, how.step, how.octaves, how.unit,
            self._data, self._begin, self._end, self._state, values,
        )  # fmt: skip
        return values

    def damage(self, checks: Sequence[int]) -> dict[int, str]:
        """Image number -> what is wrong, for every image whose state or bytes did not end where they should."""
        bad = (self._state != np.array(checks, np.uint64)) | (self._begin != self._end) | np.array(self._zero)
        reason = "payload: coefficients do not add up (damaged bytes, or not this model)"
        return {int(n): reason for n in np.flatnonzero(bad)}
