"""The bytes of a file -> a picture that any browser shows, of a bounded size.

Files are whatever somebody archived, so nothing of them is believed: the picture is decoded here before a browser gets
it, and what it is called follows from its first bytes.
"""

from __future__ import annotations

import base64
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.images.probe import sniff_format
from zippy_batch.paths import encoded_path, path_problem

_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif"}
"""Formats that every browser shows -> their media types."""
_PILLOW = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_MOST_PIXELS = 1 << 25
_MOST_ORIGINAL_BYTES = 1 << 28
_MADE_QUALITY = 90
"""Of JPEG files that are made here."""


@dataclass(frozen=True)
class WebImage:
    data: bytes
    media_type: str
    width: int
    height: int
    """Pixels."""

    @property
    def data_uri(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def web_image(data: bytes, most_side: int, most_bytes: int) -> WebImage | str:
    """The file as it is where a browser shows it, it has no EXIF data, and it is no larger than `most_side` pixels and
    `most_bytes`; else a JPEG of it, turned upright and made smaller, without its metadata. Text says why there is no
    picture; nothing is raised for damaged data but MemoryError."""
    from PIL import Image

    format = sniff_format(data)
    if format is None:
        return "not a picture" if data else "an empty file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_PILLOW) as image:
                if image.width * image.height > _MOST_PIXELS:
                    return f"too large to show: {image.width} x {image.height} pixels"
                return _shown(image, data, format, most_side, most_bytes)
    except MemoryError:
        raise
    except Exception:
        # decoders raise almost anything on damaged files
        return "cannot be decoded"


def original_image(directory: Path, path: str, most_side: int, most_bytes: int) -> WebImage | str:
    """Does what `web_image` does, for the file of this path below the directory, which no path leaves."""
    problem = path_problem(encoded_path(path))
    if problem:
        return f"not looked for: {problem}"
    name = os.path.join(directory, path)
    try:
        # whatever waits when it is opened, or has no end, is no picture
        if not os.path.isfile(name):
            return "there is no such original"
        if os.path.getsize(name) > _MOST_ORIGINAL_BYTES:
            return "its original is too large to show"
        return web_image(Path(name).read_bytes(), most_side, most_bytes)
    except OSError as error:
        return f"its original cannot be read: {error.strerror}"


def _shown(image: object, data: bytes, format: str, most_side: int, most_bytes: int) -> WebImage:
    from PIL import Image, ImageOps

    assert isinstance(image, Image.Image)
    image.load()
    is_small = max(image.size) <= most_side and len(data) <= most_bytes
    if format in _TYPES and is_small and b"Exif" not in data and b"eXIf" not in data:
        return WebImage(data, _TYPES[format], *image.size)
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.new("RGBA", layer.size, "white")
        upright.alpha_composite(layer)
    made = upright.convert("RGB")
    made.thumbnail((most_side, most_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    made.save(out, "JPEG", quality=_MADE_QUALITY, optimize=True)
    return WebImage(out.getvalue(), "image/jpeg", *made.size)
