"""Batches of pictures and of JPEG files -> payloads that are known to decode.

    pixels -> encode -> payload -> decode from its bytes -> write as restore will -> PSNR, SSIM
                 ^                                                                     |
                 +------------ a higher quality index, below the floor ----------------+

    JPEG file -> header, coefficients -> encode -> payload -> decode from its bytes -> rebuild -> the same file?

What a codec cannot do for an image is a value (`failure`), not an exception: its neighbours go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import stored_psnr, stored_ssim
from zippy_batch.codecs.model_file import Model
from zippy_batch.errors import DamagedRow, WorkerError, ZippyError
from zippy_batch.images.metrics import mean_squared_error, psnr_db, ssim
from zippy_batch.images.pixels import Facts, Picture, decode_written, write_picture

if TYPE_CHECKING:
    from zippy_batch.codecs.exact.codec import ExactItem
    from zippy_batch.codecs.latent.codec import LatentItem
    from zippy_batch.jpeg.file import Coefficients, JpegImage
    from zippy_batch.jpeg.markers import Frame

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB or (H, W) grey."""

BEST_QUALITY = 100
MODEL_LOST = "the model that it needs is missing or damaged"


class LatentCoder(Protocol):
    """What is asked of the lossy codec; `latent.codec.LatentCodec` is the real one."""

    def encode(self, images: Sequence[Pixels], qualities: Sequence[int]) -> list[bytes]: ...

    def decode_checked(self, items: Sequence[LatentItem]) -> tuple[list[Pixels], dict[int, str]]: ...


class ExactCoder(Protocol):
    """What is asked of the exact codec; `exact.codec.ExactCodec` is the real one."""

    def encode(self, images: Sequence[tuple[Frame, Coefficients]]) -> list[bytes]: ...

    def decode_checked(self, items: Sequence[ExactItem]) -> tuple[list[Coefficients], dict[int, str]]: ...


MakeCodec = Callable[[Model, str], Any]
"""Model and device ("cpu", "cuda") -> the codec that the model is of. Pickles."""


def make_codec(model: Model, device: str, effort: int = 0) -> LatentCoder | ExactCoder:
    """The real codecs. Their networks run on one thread each: batches are what runs side by side. effort: of the lossy
    codec's encoder, 0..9.
    """
    # torch takes seconds to import, and stats or a check of checksums do without it
    import torch

    torch.set_num_threads(1)
    return build_codec(model, device, effort)


def build_codec(model: Model, device: str, effort: int = 0, few: bool = False) -> LatentCoder | ExactCoder:
    """Does what `make_codec` does, in a process whose threads are somebody else's to settle. few: for so few images
    that it takes longer to find out which arithmetic is faster than it saves; the results are the same.
    """
    if model.codec == "exact":
        from zippy_batch.codecs.exact.codec import ExactCodec

        return ExactCodec(model)
    from zippy_batch.codecs.latent.codec import LatentCodec

    return LatentCodec(model, device, products="float32" if few else None, effort=effort)


@dataclass(frozen=True)
class Coders:
    """The codecs of a worker; None where no row needs it, or where its model is lost."""

    latent: LatentCoder | None = None
    exact: ExactCoder | None = None

    @staticmethod
    def of(models: Mapping[str, Model], device: str, make: MakeCodec) -> Coders:
        return Coders(**{codec: make(model, device) for codec, model in models.items()})


def latent_item(payload: bytes, height: int, width: int, grey: bool, quality: int) -> LatentItem:
    from zippy_batch.codecs.latent.codec import LatentItem

    return LatentItem(payload, height, width, grey, quality)


@dataclass(frozen=True)
class CodedPicture:
    """An image at one quality index; psnr (dB) and ssim as an archive stores them, None when they were not measured."""

    quality: int
    payload: bytes = b""
    psnr: float | None = None
    ssim: float | None = None
    failure: str | None = None
    """Why the codec cannot keep this image."""

    def reaches(self, floor_db: float | None) -> bool:
        return floor_db is None or (self.psnr is not None and self.psnr >= floor_db)


def code_batch(
    pictures: Sequence[Picture], quality: int, min_psnr: float | None, verify: bool, codec: LatentCoder
) -> list[CodedPicture]:
    """Pictures of one latent grid -> each at `quality`, or at the lowest index found above it that reaches `min_psnr`.

    An image that reaches the floor at no index is returned as it is at `quality`, below the floor.
    """
    coded = _code(pictures, [quality] * len(pictures), range(len(pictures)), verify, codec)
    if min_psnr is not None:
        coded = _reach_floor(pictures, coded, min_psnr, codec)
    return [coded[i] for i in range(len(pictures))]


def compare(a: Pixels, b: Pixels) -> tuple[float, float]:
    """PSNR (dB) and SSIM."""
    return psnr_db(mean_squared_error(a, b)), ssim(a, b)


def compare_restored(source: Pixels, decoded: Pixels, facts: Facts) -> tuple[float, float]:
    """PSNR (dB) and SSIM, against the source's pixels, of the file that restore writes by default."""
    return compare(source, decode_written(write_picture(decoded, facts), grey=source.ndim == 2))


def _reach_floor(
    pictures: Sequence[Picture], first: Mapping[int, CodedPicture], floor_db: float, codec: LatentCoder
) -> dict[int, CodedPicture]:
    """Bisection of the quality index of every image below the floor, all in lockstep.

    Every pass encodes the whole batch, so that an image's payload at some index does not depend on which of its
    neighbours were still being searched.
    """
    best = dict(first)
    low = {i: coded.quality for i, coded in first.items()}
    high = dict.fromkeys(first, BEST_QUALITY + 1)
    below = [i for i, coded in first.items() if coded.failure is None and not coded.reaches(floor_db)]
    while trial := {i: (low[i] + high[i]) // 2 for i in below if high[i] - low[i] > 1}:
        qualities = [trial.get(i, best[i].quality) for i in range(len(pictures))]
        for i, coded in _code(pictures, qualities, list(trial), True, codec).items():
            if coded.reaches(floor_db):
                best[i], high[i] = coded, coded.quality
            else:
                low[i] = coded.quality
    return best


def _code(
    pictures: Sequence[Picture], qualities: Sequence[int], wanted: Sequence[int], verify: bool, codec: LatentCoder
) -> dict[int, CodedPicture]:
    """The whole batch encoded, and those `wanted` of it, measured if `verify`."""
    payloads, failures = _encode([picture.pixels for picture in pictures], qualities, codec)
    coded = {i: CodedPicture(qualities[i], payloads[i], failure=failures.get(i)) for i in wanted}
    whole = [i for i in wanted if i not in failures]
    if verify and whole:
        measured = _measure([pictures[i] for i in whole], [coded[i] for i in whole], codec)
        coded.update(zip(whole, measured, strict=True))
    return coded


def _encode(images: list[Pixels], qualities: Sequence[int], codec: LatentCoder) -> tuple[list[bytes], dict[int, str]]:
    """Payloads, and what went wrong by image. One that the codec fails on is replaced in its place, not taken out,
    because its neighbours' floats depend on the shape of the batch."""
    try:
        return codec.encode(images, qualities), {}
    except ZippyError:
        raise
    except Exception as error:
        _raise_if_machine_fails(error)
        failures = _failures(images, qualities, codec)
        if not failures or 1 < len(images) == len(failures):
            raise
    if len(failures) == len(images):
        return [b""] * len(images), failures
    return codec.encode([np.zeros_like(x) if i in failures else x for i, x in enumerate(images)], qualities), failures


def _failures(images: Sequence[Pixels], qualities: Sequence[int], codec: LatentCoder) -> dict[int, str]:
    """What the codec says about each image alone that it fails on."""
    failures = {}
    for i, (image, quality) in enumerate(zip(images, qualities, strict=True)):
        try:
            codec.encode([image], [quality])
        except Exception as error:
            _raise_if_machine_fails(error)
            failures[i] = f"the codec failed on it: {error}"
    return failures


_OF_THE_MACHINE = ("out of memory", "allocate memory", "cuda error", "cublas", "cudnn")


def _raise_if_machine_fails(error: Exception) -> None:
    """A lack of memory or a failing device says nothing about an image, and must not decide what is kept raw."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OF_THE_MACHINE):
        raise WorkerError(
            f"this machine failed while encoding a batch ({error}); if memory ran out, use fewer --workers or a "
            f"smaller --batch-size"
        ) from error


def _measure(pictures: Sequence[Picture], coded: Sequence[CodedPicture], codec: LatentCoder) -> list[CodedPicture]:
    """Decodes from the bytes, writes the file that restore writes by default, and measures it against the source."""
    items = [_item(picture.pixels, one) for picture, one in zip(pictures, coded, strict=True)]
    decoded, damage = codec.decode_checked(items)
    out = []
    for i, (picture, one) in enumerate(zip(pictures, coded, strict=True)):
        if i in damage:
            out.append(replace(one, failure=f"its payload did not decode: {damage[i]}"))
            continue
        try:
            psnr, similarity = compare_restored(picture.pixels, decoded[i], picture.facts)
            out.append(replace(one, psnr=stored_psnr(psnr), ssim=stored_ssim(similarity)))
        except (OSError, ValueError, ZippyError) as error:
            out.append(replace(one, failure=f"it could not be written as JPEG: {error}"))
    return out


def _item(pixels: Pixels, coded: CodedPicture) -> LatentItem:
    return latent_item(coded.payload, pixels.shape[0], pixels.shape[1], pixels.ndim == 2, coded.quality)


# ---- JPEG files ----


@dataclass(frozen=True)
class CodedFile:
    """A JPEG file's coefficients, coded."""

    payload: bytes = b""
    failure: str | None = None
    """Why the codec cannot keep this file."""


def code_files(files: Sequence[tuple[bytes, JpegImage]], verify: bool, codec: ExactCoder) -> list[CodedFile]:
    """JPEG files, each with what it was taken apart into -> each coded and, if `verify`, decoded from its payload,
    rebuilt and compared byte for byte."""
    coded = _encode_files([image for _, image in files], codec)
    return _prove(files, coded, codec) if verify else coded


@dataclass(frozen=True)
class StoredFile:
    """What a row says of a JPEG file that is stored exactly."""

    header: bytes
    payload: bytes
    height: int
    width: int
    grey: bool
    size_bytes: int


def decode_files(stored: Sequence[StoredFile], codec: ExactCoder | None) -> list[bytes | str]:
    """The files, or what is wrong with them.

    A header whose frame is not that of its row is not decoded: batches are cut by what rows say.
    """
    from zippy_batch.codecs.exact.codec import ExactItem
    from zippy_batch.jpeg.file import rebuild

    if codec is None:
        return [MODEL_LOST] * len(stored)
    out: list[bytes | str] = [""] * len(stored)
    sound: list[tuple[int, ExactItem]] = []
    for i, one in enumerate(stored):
        try:
            sound.append((i, ExactItem(one.payload, _frame_of(one))))
        except DamagedRow as error:
            out[i] = str(error)
    found, damage = codec.decode_checked([item for _, item in sound])
    for n, (i, _) in enumerate(sound):
        try:
            out[i] = damage.get(n) or _of_right_size(
                rebuild(stored[i].header, found[n], stored[i].size_bytes), stored[i].size_bytes
            )
        except DamagedRow as error:
            out[i] = str(error)
    return out


def _frame_of(stored: StoredFile) -> Frame:
    """Raises DamagedRow."""
    from zippy_batch.jpeg.file import read_frame

    frame = read_frame(stored.header)
    said, row = (frame.height, frame.width), (stored.height, stored.width)
    if said != row or stored.grey != (len(frame.components) == 1):
        raise DamagedRow(f"header: of a picture of {said}, {len(frame.components)} components; the row says {row}")
    return frame


def _of_right_size(file: bytes, size_bytes: int) -> bytes | str:
    return file if len(file) == size_bytes else f"it comes back with {len(file)} bytes instead of {size_bytes}"


def _encode_files(images: Sequence[JpegImage], codec: ExactCoder) -> list[CodedFile]:
    try:
        return [CodedFile(payload) for payload in codec.encode([(x.frame, x.coefficients) for x in images])]
    except ZippyError:
        raise
    except Exception as error:
        _raise_if_machine_fails(error)
        if len(images) == 1:
            return [CodedFile(failure=f"the codec failed on it ({type(error).__name__})")]
        alone = [coded for image in images for coded in _encode_files([image], codec)]
        if all(coded.failure for coded in alone):
            raise WorkerError(f"the exact codec fails on every file of a batch: {error}") from error
        return alone


def _as_stored(data: bytes, image: JpegImage, coded: CodedFile) -> StoredFile:
    frame = image.frame
    grey = len(frame.components) == 1
    return StoredFile(image.header, coded.payload, frame.height, frame.width, grey, len(data))


def _prove(files: Sequence[tuple[bytes, JpegImage]], coded: Sequence[CodedFile], codec: ExactCoder) -> list[CodedFile]:
    whole = [i for i, one in enumerate(coded) if one.failure is None]
    found = decode_files([_as_stored(*files[i], coded[i]) for i in whole], codec)
    out = list(coded)
    for i, file in zip(whole, found, strict=True):
        if file != files[i][0]:
            what = file if isinstance(file, str) else "it comes back as another file"
            out[i] = CodedFile(failure=f"its payload did not decode: {what}")
    return out
