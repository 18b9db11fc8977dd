"""A codec without networks: pixels in coarse steps, compressed by zlib. Fast, exact about damage, and importable by
Ray's workers."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.codecs.exact.codec import ExactItem
from zippy_batch.codecs.latent.codec import LatentItem
from zippy_batch.codecs.model_file import Model
from zippy_batch.jpeg.file import Coefficients
from zippy_batch.jpeg.markers import Frame
from zippy_batch.run.pipeline import Codecs

MODEL = Model("fake", "fa" * 32, b"no weights", builtin=True, card={})
EXACT_MODEL = Model("fake-exact", "fe" * 32, b"no weights either", builtin=True, card={"codec": "exact"})
POISON = 77
"""An image whose first sample has this value makes the codec raise."""


@dataclass
class FakeCodec:
    """Quality 100 is exact; every index below it adds one to the step."""

    batches: list[tuple[int, ...]] = field(default_factory=list)
    """Quality indices of every batch that was encoded."""
    poison: int | None = None

    def encode(self, images: Sequence[NDArray[np.uint8]], qualities: Sequence[int]) -> list[bytes]:
        self.batches.append(tuple(qualities))
        if any(image.flat[0] == self.poison for image in images):
            raise RuntimeError("poisoned")
        return [_pack(image, quality) for image, quality in zip(images, qualities, strict=True)]

    def decode_checked(self, items: Sequence[LatentItem]) -> tuple[list[NDArray[np.uint8]], dict[int, str]]:
        out, damage = [], {}
        for i, item in enumerate(items):
            shape = (item.height, item.width) if item.grey else (item.height, item.width, 3)
            try:
                out.append(_unpack(item.payload, shape, item.quality))
            except (zlib.error, ValueError) as error:
                out.append(np.zeros(shape, np.uint8))
                damage[i] = str(error)
        return out, damage


def _step(quality: int) -> int:
    return 101 - quality


def _pack(image: NDArray[np.uint8], quality: int) -> bytes:
    return zlib.compress((image // _step(quality)).tobytes())


def _unpack(payload: bytes, shape: tuple[int, ...], quality: int) -> NDArray[np.uint8]:
    coarse = np.frombuffer(zlib.decompress(payload), np.uint8).reshape(shape)
    step = _step(quality)
    return np.minimum(coarse.astype(np.int64) * step + step // 2, 255).astype(np.uint8)


@dataclass
class FakeExactCodec:
    """Coefficients, compressed by zlib: about as small as the file's own scan."""

    batches: list[int] = field(default_factory=list)
    """Images of every batch that was encoded."""
    poison: int | None = None
    """The first DC coefficient of an image that makes the codec raise."""

    def encode(self, images: Sequence[tuple[Frame, Coefficients]]) -> list[bytes]:
        self.batches.append(len(images))
        if any(coefficients[0].flat[0] == self.poison for _, coefficients in images):
            raise RuntimeError("poisoned")
        # level 9 takes three times as long for half a percent less
        return [zlib.compress(b"".join(map(_planes, coefficients)), 8) for _, coefficients in images]

    def decode_checked(self, items: Sequence[ExactItem]) -> tuple[list[Coefficients], dict[int, str]]:
        out: list[Coefficients] = []
        damage = {}
        for i, item in enumerate(items):
            shapes = item.frame.shapes
            out.append(tuple(np.zeros(shape, np.int16) for shape in shapes))
            try:
                flat = np.frombuffer(zlib.decompress(item.payload), np.uint8)
                parts = np.split(flat, np.cumsum([2 * int(np.prod(shape)) for shape in shapes]))
                out[i] = tuple(_from_planes(part, shape) for part, shape in zip(parts, shapes, strict=False))
            except (zlib.error, ValueError) as error:
                damage[i] = str(error)
        return out, damage


def _planes(coefficients: NDArray[np.int16]) -> bytes:
    """By place in the block, low bytes first: that is what makes them small."""
    flat = coefficients.reshape(-1, 64).T.astype("<i2")
    return np.ascontiguousarray(flat[..., None]).view(np.uint8).transpose(2, 0, 1).tobytes()


def _from_planes(flat: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int16]:
    pairs = np.ascontiguousarray(flat.reshape(2, 64, -1).transpose(1, 2, 0))
    return np.ascontiguousarray(pairs.view("<i2")[..., 0].T).reshape(shape).astype(np.int16)


def fake_codec(model: Model, device: str) -> FakeCodec | FakeExactCodec:
    return FakeExactCodec() if model.codec == "exact" else FakeCodec()


def load_fake(name: str) -> Model:
    return EXACT_MODEL if name == "exact" else MODEL


def find_fake(model_id: str) -> Model | None:
    return next((model for model in (MODEL, EXACT_MODEL) if model_id == model.id), None)


CODECS = Codecs(load_fake, find_fake, fake_codec)


def pixels(seed: int, height: int = 16, width: int = 24) -> NDArray[np.uint8]:
    """Smooth colours with a little noise, different for each seed: (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([y * (2 + seed % 3) + x, x * 3 + seed, y * 2 + x * 2 + 40], axis=-1)
    return ((waves + np.random.default_rng(seed).integers(0, 6, waves.shape)) % 200 + 20).astype(np.uint8)


def make_faces(directory: Path) -> Path:
    """Seven JPEG files, two PNG in a folder, and three files that are kept raw."""
    (directory / "sub").mkdir(parents=True)
    for i in range(7):
        Image.fromarray(pixels(i)).save(directory / f"{i}.jpg", quality=90)
    for i in range(2):
        Image.fromarray(pixels(i, 40, 40)).save(directory / f"sub/{i}.png")
    (directory / "notes.txt").write_bytes(b"not a picture")
    (directory / "empty").write_bytes(b"")
    (directory / "broken.jpg").write_bytes((directory / "0.jpg").read_bytes()[:300])
    return directory


def files_of(directory: Path) -> dict[bytes, bytes]:
    """Relative path -> content of every file below a directory."""
    root = os.fsencode(directory)
    found = {}
    for parent, _, names in os.walk(root):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found
