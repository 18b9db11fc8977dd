"""What a new model saves on images that it was not trained on, against the model it would replace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.codecs.exact.codec import ExactCodec
from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem, Pixels, grid
from zippy_batch.codecs.model_file import Model
from zippy_batch.compare.curves import Point, ratio_at
from zippy_batch.images.metrics import mean_squared_error, psnr_db
from zippy_batch.images.pixels import Picture, read_picture
from zippy_batch.jpeg.file import JpegImage, Unrebuildable, parse
from zippy_batch.run.plan import BatchLimit, cut_batches
from zippy_batch.training.pictures import read_all

SAVINGS_QUALITIES = (30, 45, 60, 75, 90)
JUDGED_QUALITY = 75
"""The quality of `archive`, when nothing else is said."""
_MOST_SAMPLES = 1 << 27
"""Samples of the images that are measured on: 128 of 590x590 px, in colour."""
_BATCH = BatchLimit(32)


@dataclass(frozen=True)
class Gain:
    images: int
    """That were held out."""
    before_bytes: float
    """Payload per image with the model that is there already."""
    after_bytes: float
    """Bytes with the new one, at the same PSNR."""
    psnr_db: float | None
    """PSNR of the lossy codec at quality 75."""

    @property
    def saved_bytes(self) -> float:
        """Per image."""
        return self.before_bytes - self.after_bytes

    def pays_from(self, more_bytes: int) -> int | None:
        """Images of an archive that make up for so many bytes of model more inside it; None where none do."""
        return None if self.saved_bytes <= 0 else max(0, int(more_bytes / self.saved_bytes)) + 1


def measure_gain(before: Model, after: Model, held_out: Sequence[Path]) -> Gain | None:
    """None where nothing of what was held out can be coded, or where the models' qualities do not overlap."""
    return _lossy(before, after, held_out) if after.codec == "latent" else _exact(before, after, held_out)


def _lossy(before: Model, after: Model, held_out: Sequence[Path]) -> Gain | None:
    pictures = list(_decoded(held_out))
    if not pictures:
        return None
    old, new = (_curve(LatentCodec(model), pictures) for model in (before, after))
    here = new[SAVINGS_QUALITIES.index(JUDGED_QUALITY)]
    ratio = ratio_at(here, old)
    if ratio is None:
        return None
    return Gain(len(pictures), here.bytes_per_image / ratio, here.bytes_per_image, here.quality)


def _decoded(paths: Sequence[Path]) -> Iterator[Pixels]:
    """As many as are held in memory at once, without those that are no longer there."""
    room = _MOST_SAMPLES
    for _, data in read_all(("", path) for path in paths):
        found = read_picture(data)
        if isinstance(found, Picture):
            room -= found.pixels.size
            if room >= 0:
                yield found.pixels


def _curve(codec: LatentCodec, pictures: Sequence[Pixels]) -> list[Point]:
    """Payload bytes per image and PSNR of the pooled error, by quality."""
    batches = list(
        cut_batches(
            pictures,
            lambda picture: ("latent", *grid(*picture.shape[:2])),
            lambda picture: picture.shape[0] * picture.shape[1],
            lambda key: _BATCH,
        )
    )
    points = []
    for quality in SAVINGS_QUALITIES:
        size, error = 0, 0.0
        for batch in batches:
            payloads = codec.encode(batch, [quality] * len(batch))
            items = [
                LatentItem(payload, picture.shape[0], picture.shape[1], picture.ndim == 2, quality)
                for payload, picture in zip(payloads, batch, strict=True)
            ]
            size += sum(map(len, payloads))
            error += sum(mean_squared_error(a, b) for a, b in zip(batch, codec.decode(items), strict=True))
        points.append(Point(size / len(pictures), psnr_db(error / len(pictures))))
    return points


def _exact(before: Model, after: Model, held_out: Sequence[Path]) -> Gain | None:
    images = list(_parsed(held_out))
    if not images:
        return None
    sizes = []
    for model in (before, after):
        codec = ExactCodec(model)
        payloads = [codec.encode([(one.frame, one.coefficients)])[0] for one in images]
        sizes.append(sum(map(len, payloads)) / len(images))
    return Gain(len(images), sizes[0], sizes[1], None)


def _parsed(paths: Sequence[Path]) -> Iterator[JpegImage]:
    room = _MOST_SAMPLES
    for _, data in read_all(("", path) for path in paths):
        with contextlib.suppress(Unrebuildable):
            found = parse(data)
            room -= sum(c.size for c in found.coefficients)
            if room >= 0:
                yield found
