"""What else keeps pictures small: the codecs that Pillow has, ImageMagick's mogrify, and recoders of JPEG files.

    path -> source_pixels -> encode -> a file -> decode -> the pixels a viewer sees
    path -> recode -> a JPEG XL or Lepton file that holds a JPEG file without loss

Codecs get pixels alone: EXIF data and ICC profiles, which an archive keeps, cost them nothing. Each uses one thread, so
that as many processes as there are cores can measure at the same time. Plugins are loaded where they are first used.

Shapes: H W pixels; everything is compared in RGB, uint8 (H, W, 3).
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from zippy_batch.compare.ssimulacra2 import ssimulacra2
from zippy_batch.errors import SourceError
from zippy_batch.images.metrics import mean_squared_error, psnr_db, ssim
from zippy_batch.images.pixels import Picture, read_picture

FILES_PER_CALL = 500
"""That mogrify is given at once: a command line has its limits."""


class Setting(NamedTuple):
    """One way to use a codec."""

    level: int
    variant: str = ""
    """One of the codec's `variants`."""


@dataclass(frozen=True)
class Codec:
    form: str
    """Pillow's name of the format."""
    ladder: tuple[int, ...]
    """Levels from coarse to fine, over the qualities at which faces are kept."""
    options: Callable[[Setting, str], dict[str, Any]]
    """What Pillow is told for a setting and an image's mode, "RGB" or "L"."""
    unit: str = "q"
    """Unit of the levels: q for the codec's own scale of 1..100, dB for the PSNR that it aims at."""
    variants: tuple[str, ...] = ("",)
    """Variants, of which a careful user takes the better one at each quality; every level is measured with each."""

    @property
    def settings(self) -> list[Setting]:
        return [Setting(level, variant) for variant in self.variants for level in self.ladder]

    def text(self, setting: Setting) -> str:
        level = f"q{setting.level}" if self.unit == "q" else f"{setting.level} {self.unit}"
        return f"{level} {setting.variant}".rstrip()


def _avif(speed: int, tune: str) -> Codec:
    def options(setting: Setting, mode: str) -> dict[str, Any]:
        colour = {"subsampling": setting.variant} if mode == "RGB" else {}
        common = {"speed": speed, "max_threads": 1, "advanced": {"tune": tune}}
        return {"quality": setting.level, **common, **colour}

    return Codec("AVIF", (3, 8, 14, 22, 32, 44, 58, 70), options, variants=("4:2:0", "4:4:4"))


def _jpeg2000(setting: Setting, mode: str) -> dict[str, Any]:
    # Pillow leaves out the colour transform unless told, which doubles the bytes; the bare codestream has no boxes
    colour = {"mct": 1} if mode == "RGB" else {}
    return {"quality_mode": "dB", "quality_layers": [setting.level], "irreversible": True, "no_jp2": True, **colour}


_JPEG_LADDER = (3, 8, 15, 25, 40, 55, 70, 80, 90)

IMAGE_CODECS = {
    "mogrify": Codec("JPEG", _JPEG_LADDER, lambda setting, mode: {}),
    "jpeg": Codec("JPEG", _JPEG_LADDER, lambda setting, mode: {"quality": setting.level, "optimize": True}),
    "jpeg2000": Codec("JPEG2000", (21, 23, 25, 27, 29, 31, 33, 36), _jpeg2000, "dB"),
    "webp": Codec("WEBP", (2, 10, 25, 45, 65, 80, 90), lambda setting, mode: {"quality": setting.level, "method": 6}),
    "jpeg-xl": Codec(
        "JXL",
        (1, 15, 30, 45, 60, 75, 85),
        lambda setting, mode: {"quality": setting.level, "effort": 7, "num_threads": 0},
    ),
    # tuned for PSNR, without which it takes 10 to 20 % more bytes at equal PSNR, and for the eye
    "avif": _avif(6, "psnr"),
    "avif-iq": _avif(6, "iq"),
    "avif-speed0": _avif(0, "psnr"),
}
"""Codecs by name. mogrify is told on a command line, and the format is the one that it writes."""


@dataclass(frozen=True)
class Coded:
    """One file as a codec has it."""

    data: bytes
    psnr_db: float
    ssim: float
    ssimulacra2: float | None
    """None for what is too small for it."""
    jpeg_quality: int | None
    """Quality of a JPEG file, as ImageMagick estimates it."""
    encode_s: float
    decode_s: float


@dataclass(frozen=True)
class Failed:
    reason: str


def missing(name: str) -> str | None:
    """Why a contender cannot be had on this machine, and what to do about it; None where it can."""
    if name in RECODERS:
        return None if RECODERS[name].is_here() else NOT_INSTALLED
    form = IMAGE_CODECS[name].form
    if name == "mogrify" and not mogrify_command():
        return "no ImageMagick on this machine (neither magick nor mogrify is on PATH)"
    if form == "JXL" and not _has_jpeg_xl():
        return NOT_INSTALLED
    feature = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}.get(form)
    if feature and not features.check(feature):
        return f"this build of Pillow has no {form}"
    return "this build of Pillow's AVIF has no tune=iq" if name == "avif-iq" and not _has_tune_iq() else None


def mogrify_command() -> list[str]:
    """Empty where there is no ImageMagick."""
    if shutil.which("magick"):
        return ["magick", "mogrify"]
    return ["mogrify"] if shutil.which("mogrify") else []


def warm_up() -> None:
    """Load what a first call would load in the time that is measured."""
    blank = np.zeros((8, 8, 3), np.uint8)
    for name in IMAGE_CODECS:
        if name != "mogrify" and missing(name) is None:
            decode(encode(name, IMAGE_CODECS[name].settings[0], blank))
    ssim(blank, blank)
    mean_squared_error(blank, blank)


def source_pixels(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3), or (H, W) where the picture is grey; SourceError for what no codec is given."""
    found = read_picture(path.read_bytes())
    if not isinstance(found, Picture):
        raise SourceError(f"{path}: {found.reason}")
    return found.pixels


def in_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) -> (H, W, 3)."""
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def encode(name: str, setting: Setting, pixels: NDArray[np.uint8]) -> bytes:
    """The file of a codec of Pillow's; whatever Pillow raises."""
    codec, image, out = IMAGE_CODECS[name], Image.fromarray(pixels), io.BytesIO()
    if codec.form == "JXL":
        _load_jpeg_xl()
    image.save(out, codec.form, **codec.options(setting, image.mode))
    return out.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) of any file that a codec here wrote."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def code(task: tuple[str, Setting, Path]) -> Coded | Failed:
    """Codes one file with the codec of a name at a setting, and says what came of it. Never raises on bad data."""
    name, setting, path = task
    try:
        pixels = source_pixels(path)
        begun = time.perf_counter()
        data = encode(name, setting, pixels)
        return _measured(data, in_rgb(pixels), time.perf_counter() - begun)
    except Exception as error:
        # encoders raise almost anything
        return Failed(f"{path.name}: {error}")


def measure(task: tuple[bytes, Path, float]) -> Coded | Failed:
    """A file that was made elsewhere, in so many seconds, of the source at a path."""
    data, path, encode_s = task
    try:
        return _measured(data, in_rgb(source_pixels(path)), encode_s)
    except Exception as error:
        return Failed(f"{path.name}: {error}")


def recode(task: tuple[str, Path]) -> Coded:
    """A JPEG file by a recoder, from which it comes back byte for byte; what cannot be kept so is kept as it is."""
    name, path = task
    recoder, source = RECODERS[name], path.read_bytes()
    begun = time.perf_counter()
    try:
        data = recoder.encode(source)
        encoded = time.perf_counter()
        is_same = recoder.decode(data) == source
    except Exception:
        # they raise almost anything on what they do not take
        data, encoded, is_same = source, time.perf_counter(), False
    decode_s = time.perf_counter() - encoded
    return Coded(data if is_same else source, psnr_db(0.0), 1.0, 100.0, None, encoded - begun, decode_s)


def _to_jpeg_xl(jpeg: bytes) -> bytes:
    _load_jpeg_xl()
    out = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="zippy-batch-") as folder:
        # the plugin transcodes what it can open by name
        copy = Path(folder) / "one.jpg"
        copy.write_bytes(jpeg)
        with Image.open(copy, formats=("JPEG",)) as image:
            image.save(out, "JXL", lossless_jpeg=True, effort=9, num_threads=0)
    return out.getvalue()


def _from_jpeg_xl(data: bytes) -> bytes:
    found: bytes = _load_jpeg_xl().Decoder(num_threads=0)(data)[2]
    return found


def _to_lepton(jpeg: bytes) -> bytes:
    from lepton_jpeg_python import compress_bytes

    # in one piece: smaller than in several, which as many threads would code
    data: bytes = compress_bytes(jpeg, {"max_partitions": 1})
    return data


def _from_lepton(data: bytes) -> bytes:
    from lepton_jpeg_python import decompress_bytes

    jpeg: bytes = decompress_bytes(data)
    return jpeg


def mogrify(paths: Sequence[Path], level: int) -> tuple[list[bytes], float] | Failed:
    """JPEG files of these pictures at a quality, without metadata, and the seconds that it took."""
    with tempfile.TemporaryDirectory(prefix="zippy-batch-") as folder:
        into, out = Path(folder) / "in", Path(folder) / "out"
        into.mkdir()
        out.mkdir()
        links = [into / f"{i:07d}{path.suffix}" for i, path in enumerate(paths)]
        for link, path in zip(links, paths, strict=True):
            os.symlink(path, link)
        begun = time.perf_counter()
        for at in range(0, len(links), FILES_PER_CALL):
            few = [str(link) for link in links[at : at + FILES_PER_CALL]]
            told = ["-strip", "-quality", str(level), "-format", "jpg", "-path", str(out)]
            done = subprocess.run([*mogrify_command(), *told, *few], capture_output=True, text=True, check=False)
            if done.returncode:
                return Failed((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0])
        seconds = time.perf_counter() - begun
        made = [out / f"{link.stem}.jpg" for link in links]
        lost = next((path for path, file in zip(paths, made, strict=True) if not file.exists()), None)
        return Failed(f"{lost.name}: no file was written") if lost else ([file.read_bytes() for file in made], seconds)


def _measured(data: bytes, source: NDArray[np.uint8], encode_s: float) -> Coded:
    begun = time.perf_counter()
    back = decode(data)
    decode_s = time.perf_counter() - begun
    return Coded(
        data=data,
        psnr_db=psnr_db(mean_squared_error(source, back)),
        ssim=ssim(source, back),
        ssimulacra2=ssimulacra2(source, back),
        jpeg_quality=estimated_jpeg_quality(data),
        encode_s=encode_s,
        decode_s=decode_s,
    )


def quality_of(source: Path, other: Path) -> tuple[float, float, float | None]:
    """PSNR in dB, SSIM and SSIMULACRA2 of the pictures in two files; the last one None for what is too small for it."""
    a, b = (in_rgb(source_pixels(path)) for path in (source, other))
    return psnr_db(mean_squared_error(a, b)), ssim(a, b), ssimulacra2(a, b)


def estimated_jpeg_quality(data: bytes) -> int | None:
    """None for what is no JPEG file, or one whose tables say nothing."""
    if not data.startswith(b"\xff\xd8"):
        return None
    found = read_picture(data)
    return found.facts.jpeg_quality if isinstance(found, Picture) else None


def _has_tune_iq() -> bool:
    try:
        encode("avif-iq", IMAGE_CODECS["avif-iq"].settings[0], np.zeros((8, 8, 3), np.uint8))
    except ValueError:
        return False
    return True


def _has_jpeg_xl() -> bool:
    try:
        _load_jpeg_xl()
    except ImportError:
        return False
    return True


def _load_jpeg_xl() -> Any:
    """The plugin, which makes itself known to Pillow; ImportError without it."""
    import pillow_jxl  # type: ignore[import-not-found,unused-ignore]
    from pillow_jxl import JpegXLImagePlugin

    JpegXLImagePlugin.DECODE_THREADS = 0
    return pillow_jxl


def _has_lepton() -> bool:
    try:
        import lepton_jpeg_python  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class Recoder:
    """Keeps a JPEG file in fewer bytes, so that it comes back byte for byte."""

    text: str
    """How it is set."""
    is_here: Callable[[], bool]
    encode: Callable[[bytes], bytes]
    """Raises whatever its package raises; so does `decode`."""
    decode: Callable[[bytes], bytes]


TRANSCODE, LEPTON = "jpeg-xl-transcode", "lepton"
RECODERS = {
    TRANSCODE: Recoder("effort 9", _has_jpeg_xl, _to_jpeg_xl, _from_jpeg_xl),
    LEPTON: Recoder("1 piece", _has_lepton, _to_lepton, _from_lepton),
}
NOT_INSTALLED = "not installed; pip install 'zippy-batch[compare]'"
