"""What a new model saves on images that it was not trained on, against the model it would replace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.compare.curves import Point, ratio_at
from zippy_batch.exact.codec import ExactCodec
from zippy_batch.images import Picture, Unsuitable, read_picture
from zippy_batch.jpeg.file import JpegImage, Unrebuildable, parse
from zippy_batch.latent.codec import LatentCodec, LatentItem, Pixels, grid
from zippy_batch.metrics import mean_squared_error, psnr_db
from zippy_batch.weights import Model

QUALITIES = (30, 45, 60, 75, 90)
JUDGED_QUALITY = 75
"""Of `archive`, when nothing else is said."""
_BATCH = 32


@dataclass(frozen=True)
class Gain:
    images: int
    """That were held out."""
    before_bytes: float
    """Payload per image with the model that is there already."""
    after_bytes: float
    """With the new one, at the same PSNR."""
    psnr_db: float | None
    """Of the lossy codec at quality 75."""

    @property
    def saved_bytes(self) -> float:
        """Per image."""
        return self.before_bytes - self.after_bytes

    def pays_from(self, model_bytes: int) -> int | None:
        """Images of an archive that make up for the model inside it; None where none do."""
        return None if self.saved_bytes <= 0 else int(model_bytes / self.saved_bytes) + 1


def measure_gain(before: Model, after: Model, held_out: Sequence[Path]) -> Gain | None:
    """None where nothing of what was held out can be coded, or where the models' qualities do not overlap."""
    return _lossy(before, after, held_out) if after.codec == "latent" else _exact(before, after, held_out)


def _lossy(before: Model, after: Model, held_out: Sequence[Path]) -> Gain | None:
    found: list[Picture | Unsuitable] = [read_picture(path.read_bytes()) for path in held_out]
    pictures = [one.pixels for one in found if isinstance(one, Picture)]
    if not pictures:
        return None
    old, new = (_curve(LatentCodec(model), pictures) for model in (before, after))
    here = new[QUALITIES.index(JUDGED_QUALITY)]
    ratio = ratio_at(here, old)
    if ratio is None:
        return None
    return Gain(len(pictures), here.bytes_per_image / ratio, here.bytes_per_image, here.psnr_db)


def _curve(codec: LatentCodec, pictures: Sequence[Pixels]) -> list[Point]:
    """Payload bytes per image and PSNR of the pooled error, by quality."""
    alike: dict[tuple[int, int], list[Pixels]] = defaultdict(list)
    for picture in pictures:
        alike[grid(*picture.shape[:2])].append(picture)
    batches = [some[i : i + _BATCH] for some in alike.values() for i in range(0, len(some), _BATCH)]
    points = []
    for quality in QUALITIES:
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
    images: list[JpegImage] = []
    for path in held_out:
        try:
            images.append(parse(path.read_bytes()))
        except Unrebuildable:
            continue
    if not images:
        return None
    sizes = []
    for model in (before, after):
        codec = ExactCodec(model)
        payloads = [codec.encode([(one.frame, one.coefficients)])[0] for one in images]
        sizes.append(sum(map(len, payloads)) / len(images))
    return Gain(len(images), sizes[0], sizes[1], None)
