"""The bytes of a file <-> pixels and facts about them.

    bytes -> read_picture -> Picture | Unsuitable
    Picture.pixels, Facts -> write_picture -> a JPEG, PNG or WebP file -> decode_written -> the pixels a viewer sees

Pixels stay in the orientation in which they are stored; EXIF data, with its orientation tag, and ICC profiles are kept,
so a viewer turns the restored file as it turned the source. An orientation that only XMP knows becomes EXIF. Other
metadata (XMP, IPTC, comments, gamma, resolution) is not kept; `Picture.dropped` says which there was.

What is taken: greyscale and RGB of 8 bits per sample, with alpha that is opaque everywhere, palettes, CMYK without a
profile (converted to RGB), one image per file. Everything else is `Unsuitable`, with a reason from `probe.REASONS`. One
limit: libtiff may print a line of its own on stderr about damaged LZW or PackBits data.

Shapes: H W pixels. Images are uint8, (H, W, 3) in RGB or (H, W) where red, green and blue are equal everywhere.
"""

from __future__ import annotations

import functools
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.errors import ArchiveError
from zippy_batch.images.metadata import orientation_in_xmp, with_orientation
from zippy_batch.images.probe import (
    ALPHA,
    CODING,
    CORRUPT,
    TRUNCATED,
    Header,
    JpegFacts,
    Refused,
    read_header,
    sniff_format,
)

__all__ = [
    "DEFAULT_JPEG_QUALITY",
    "MAX_SIDE",
    "Facts",
    "Picture",
    "Unsuitable",
    "decode_written",
    "read_picture",
    "restored_path",
    "write_picture",
]

DEFAULT_JPEG_QUALITY = 95
"""Quality of a JPEG whose source had no quantisation tables; its chroma is not subsampled."""

WEBP_QUALITY = 95
"""Quality of restored WebP files; lossy WebP always subsamples chroma."""

_SUFFIXES = {"jpeg": (b".jpg", b".jpeg", b".jpe", b".jfif"), "png": (b".png",), "webp": (b".webp",)}


def restored_path(path: bytes, source_format: str, format: str) -> bytes:
    """The path that a picture is restored to: the source's path and, where its format changes, the suffix of the new
    one, unless the path ends in such a suffix already, as that of a PNG file named x.jpg does."""
    suffixes = _SUFFIXES[format]
    return path if source_format == format or path.lower().endswith(suffixes) else path + suffixes[0]


# ---------------------------------------------------------------------------------------------------------- JPEG tables

_ZIGZAG = np.array(
    sorted(range(64), key=lambda k: (k // 8 + k % 8, k // 8 if (k // 8 + k % 8) % 2 else k % 8)), np.intp
)
"""Position in the 8x8 block, row by row, of the k-th coefficient of a table as JPEG files order it."""


@dataclass(frozen=True)
class JpegTables:
    """Quantisation tables and sampling factors of a JPEG of one or three components.

    As bytes (`Facts.jpeg_tables`), all integers of one byte unless said otherwise:

        colour      0: greyscale or Y, Cb, Cr; 1: red, green, blue
        n           number of components, 1 or 3
        n times     sampling factors: horizontal << 4 | vertical, each 1..4
        n times     index of the component's table, numbered in order of first use
        tables      each 64 values in zigzag order, 1..255

    A file of four components (CMYK) is described by its first three. Values above 255, which only tables of 16 bits
    hold, are stored as 255.
    """

    is_rgb: bool
    sampling: tuple[tuple[int, int], ...]
    """(horizontal, vertical) for each component."""
    tables: tuple[tuple[int, ...], ...]
    """The 64 values of each component, in zigzag order."""

    def to_bytes(self) -> bytes:
        distinct = list(dict.fromkeys(self.tables))
        parts = [bytes([self.is_rgb, len(self.sampling)])]
        parts.append(bytes(h << 4 | v for h, v in self.sampling))
        parts.append(bytes(distinct.index(table) for table in self.tables))
        return b"".join(parts + [bytes(table) for table in distinct])

    @staticmethod
    def from_bytes(blob: bytes) -> JpegTables:
        """Raises ArchiveError on bytes that `to_bytes` does not write."""
        try:
            colour, count = blob[0], blob[1]
            sampling = tuple((value >> 4, value & 15) for value in blob[2 : 2 + count])
            indices = blob[2 + count : 2 + 2 * count]
            distinct = [tuple(blob[at : at + 64]) for at in range(2 + 2 * count, len(blob), 64)]
            tables = JpegTables(bool(colour), sampling, tuple(distinct[index] for index in indices))
        except IndexError:
            raise ArchiveError("JPEG tables: not in the layout of this version") from None
        is_sound = count in (1, 3) and all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling)
        if not is_sound or any(len(table) != 64 or 0 in table for table in distinct) or tables.to_bytes() != blob:
            raise ArchiveError("JPEG tables: not in the layout of this version")
        return tables


@functools.lru_cache(maxsize=256)
def _tables_blob(jpeg: JpegFacts) -> bytes:
    tables = tuple(tuple(min(value, 255) for value in table) for table in jpeg.tables[:3])
    # the sampling factors of a single component have no meaning
    sampling = jpeg.sampling[:3] if len(jpeg.sampling) > 1 else ((1, 1),)
    return JpegTables(jpeg.is_rgb, sampling, tables).to_bytes()


# ITU-T T.81, annex K.1, row by row
_LUMA_TABLE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61), *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56), *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77), *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101), *(72, 92, 95, 98, 112, 100, 103, 99),
    ]
)  # fmt: skip
_CHROMA_TABLE = np.full((8, 8), 99)
_CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def _landmarks(tables: list[NDArray[np.int_]]) -> tuple[int, int]:
    """The two figures by which ImageMagick compares tables: a few chosen steps, and the sum of all."""
    chosen = tables[0][2] + tables[0][53] + (tables[1][0] + tables[1][63] if len(tables) > 1 else 0)
    return int(chosen), int(sum(table.sum() for table in tables))


def _standard_landmarks(count: int) -> list[tuple[int, int]]:
    """Landmarks of the first `count` standard tables at qualities 1..100, as the IJG's library scales them."""
    found = []
    for quality in range(1, 101):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        bases = [_LUMA_TABLE, _CHROMA_TABLE.reshape(-1)][:count]
        found.append(_landmarks([np.clip((base * scale + 50) // 100, 1, 255) for base in bases]))
    return found


_STANDARD_LANDMARKS = {1: _standard_landmarks(1), 2: _standard_landmarks(2)}


@functools.lru_cache(maxsize=256)
def estimate_jpeg_quality(tables: tuple[tuple[int, ...], ...]) -> int | None:
    """Quality 1..100 as ImageMagick estimates it: exact for scaled standard tables, else near.

    `tables` are a file's tables by number, in zigzag order. None where there are none, or where they are coarse and not
    the standard ones.
    """
    if not tables:
        return None
    chosen, total = _landmarks([_natural_order(table) for table in tables])
    standard = _STANDARD_LANDMARKS[min(len(tables), 2)]
    for quality, (standard_chosen, standard_total) in enumerate(standard, start=1):
        if chosen < standard_chosen and total < standard_total:
            continue
        is_near = chosen <= standard_chosen and total <= standard_total
        return quality if is_near or quality > 50 else None
    return None


def _natural_order(table: tuple[int, ...]) -> NDArray[np.int_]:
    values = np.empty(64, np.int_)
    values[_ZIGZAG] = table
    return values


# ------------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Facts:
    """What a restored file needs besides the pixels."""

    format: str
    """"jpeg", "png", "webp", "bmp", "tiff" or "gif"."""
    mode: str
    """"RGB" or "L" (greyscale)."""
    width: int
    height: int
    jpeg_quality: int | None = None
    """Estimated from the quantisation tables as ImageMagick does."""
    jpeg_tables: bytes | None = None
    """Quantisation tables and sampling factors of a JPEG source, laid out as in `JpegTables`."""
    exif: bytes | None = None
    """EXIF data as a TIFF structure, without JPEG's "Exif" prefix; never interpreted, so possibly not well formed."""
    icc: bytes | None = None


@dataclass(frozen=True)
class Picture:
    pixels: NDArray[np.uint8]
    """(H, W, 3), or (H, W) where the mode is L or all pixels are grey."""
    facts: Facts
    dropped: tuple[str, ...] = ()
    """Kinds of metadata that the file has and `facts` have not, in the words of `metadata`."""


@dataclass(frozen=True)
class Unsuitable:
    """A file that is kept raw."""

    reason: str
    """Fixed words, which reports count: one of `headers.REASONS`, or why a JPEG cannot be rebuilt."""
    format: str | None
    width: int | None
    height: int | None


_PILLOW_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tiff": "TIFF", "gif": "GIF"}
_TIFF_LOCK = threading.Lock()
"""Warning filters are global to the process; TIFF is the one format whose decoder warns after our own checks."""


def read_picture(data: bytes) -> Picture | Unsuitable:
    """Pixels and facts of an image file, or why its bytes had better be kept as they are. Never raises on bad data."""
    try:
        header = read_header(data)
    except Refused as refused:
        return Unsuitable(refused.reason, refused.format, refused.width, refused.height)
    try:
        mode, pixels = _decode(header)
        exif = _tiff_exif(data) if header.format == "tiff" else header.exif
        exif = with_orientation(exif, orientation_in_xmp(header.xmp or b""))
    except MemoryError:
        raise
    except _Transparent:
        return Unsuitable(header.unless_opaque or ALPHA, header.format, header.width, header.height)
    except Exception as error:
        # decoders raise almost anything on damaged files
        said = str(error).lower()
        reason = TRUNCATED if "truncated" in said else CODING if "unsupported" in said else CORRUPT
        return Unsuitable(reason, header.format, header.width, header.height)
    if pixels.shape[:2] != (header.height, header.width):
        return Unsuitable(CORRUPT, header.format, header.width, header.height)
    facts = Facts(
        format=header.format,
        mode=mode,
        width=header.width,
        height=header.height,
        jpeg_quality=None if header.jpeg is None else estimate_jpeg_quality(header.jpeg.numbered_tables),
        jpeg_tables=None if header.jpeg is None else _tables_blob(header.jpeg),
        exif=exif,
        icc=header.icc,
    )
    return Picture(_drop_equal_channels(pixels), facts, header.dropped)


def read_in_colour(data: bytes) -> NDArray[np.uint8] | str:
    """Pixels (H, W, 3) of any file that Pillow reads, converted to RGB, or why there are none. Never raises on bad
    data. For those who look at pictures: what a codec may take is what `read_picture` says."""
    found = read_picture(data)
    if isinstance(found, Picture):
        return found.pixels if found.pixels.ndim == 3 else np.repeat(found.pixels[..., None], 3, axis=2)
    try:
        with _TIFF_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=tuple(_PILLOW_FORMATS.values())) as image:
                return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception:
        # decoders raise almost anything on damaged files
        return found.reason


class _Transparent(Exception):
    pass


def _decode(header: Header) -> tuple[str, NDArray[np.uint8]]:
    """Mode and pixels, (H, W) or (H, W, 3)."""
    if header.format != "tiff":
        return _load(header)
    with _TIFF_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load(header)


def _load(header: Header) -> tuple[str, NDArray[np.uint8]]:
    with Image.open(io.BytesIO(header.pixel_data), formats=(_PILLOW_FORMATS[header.format],)) as image:
        image.load()
        mode = "L" if image.mode in ("L", "LA") else "RGB"
        if header.unless_opaque is not None and image.mode in ("P", "PA", "RGB", "L", "RGBA", "LA"):
            return mode, _opaque(image, mode)
        if image.mode in ("P", "CMYK"):
            return mode, np.array(image.convert("RGB"))
        if image.mode != mode:
            raise ValueError(f"pixel mode {image.mode}")
        return mode, np.array(image)


def _opaque(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    """Raises _Transparent where any pixel is, or where the decoder has left out what would tell."""
    if image.format == "TIFF" and image.mode not in ("RGBA", "LA"):
        raise _Transparent
    if image.mode in ("P", "RGB", "L") and "transparency" not in image.info:
        return np.array(image.convert(mode))
    with_alpha = np.array(image.convert("LA" if mode == "L" else "RGBA"))
    if (with_alpha[..., -1] != 255).any():
        raise _Transparent
    return np.ascontiguousarray(with_alpha[..., 0] if mode == "L" else with_alpha[..., :3])


_TIFF_KEPT_TAGS = (270, 271, 272, 274, 305, 306, 315, 33432)
"""Description, make, model, orientation, software, date, artist, copyright."""
_TIFF_KEPT_DIRECTORIES = (34665, 34853)
"""EXIF and GPS."""


def _tiff_exif(data: bytes) -> bytes | None:
    """EXIF data made of a TIFF's own tags, leaving out those that describe how its pixels are stored."""
    with _TIFF_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, kept = Image.Exif(), Image.Exif()
        source.load(data)
        for tag in _TIFF_KEPT_TAGS:
            if tag in source:
                kept[tag] = source[tag]
        for tag in _TIFF_KEPT_DIRECTORIES:
            if tag in source:
                kept[tag] = source.get_ifd(tag)
        return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) else None


def _drop_equal_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) with red = green = blue everywhere -> (H, W); anything else as it is."""
    if pixels.ndim == 2 or (pixels[0] != pixels[0, :, :1]).any():
        return pixels
    grey = pixels[..., 1]
    is_grey = np.array_equal(pixels[..., 0], grey) and np.array_equal(pixels[..., 2], grey)
    return np.ascontiguousarray(grey) if is_grey else pixels


# -------------------------------------------------------------------------------------------------------------- writing


def write_picture(
    pixels: NDArray[np.uint8], facts: Facts, format: str = "jpeg", jpeg_quality: int | None = None
) -> bytes:
    """A file of these pixels in the source's mode, with its EXIF data and ICC profile.

    JPEG: with the source's quantisation tables and chroma subsampling where there are any and `jpeg_quality` is None,
    else with the standard tables of `jpeg_quality` (default 95) and no subsampling; Huffman tables are optimised. PNG
    is lossless. WebP is lossy at `WEBP_QUALITY`, and in RGB, since it has no greyscale. Of the subsamplings, Pillow
    writes 4:4:4, 4:2:2 and 4:2:0; another one is replaced by the next finer of these. `pixels` are (H, W) or (H, W, 3).
    """
    if pixels.ndim == 2 and (facts.mode == "RGB" or format == "webp"):
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.ndim == 3 and facts.mode == "L":
        raise ValueError(f"expected (H, W) pixels for a greyscale image, got {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return _WRITERS[format](image, facts, jpeg_quality)


def _write_jpeg(image: Image.Image, facts: Facts, jpeg_quality: int | None) -> bytes:
    options: dict[str, object] = {"quality": jpeg_quality or DEFAULT_JPEG_QUALITY, "subsampling": 0}
    if facts.jpeg_tables is not None and jpeg_quality is None:
        options = _source_options(facts.jpeg_tables, image.mode)
    stream = io.BytesIO()
    try:
        image.save(stream, "JPEG", optimize=True, **options)
    except OSError:
        # Pillow gives the optimiser a buffer of 2 bytes per pixel, which noise with fine tables overflows
        stream = io.BytesIO()
        image.save(stream, "JPEG", **options)
    return _insert_metadata(stream.getvalue(), facts)


@functools.lru_cache(maxsize=256)
def _source_options(jpeg_tables: bytes, mode: str) -> dict[str, object]:
    """Options for Pillow that give the source's tables and the closest subsampling not coarser than the source's."""
    tables = JpegTables.from_bytes(jpeg_tables)
    distinct = list(dict.fromkeys(tables.tables))
    per_component = distinct if len(distinct) <= 2 and tables.tables[1:2] == tables.tables[2:3] else tables.tables
    options: dict[str, object] = {"qtables": [_natural_order(table).tolist() for table in per_component]}
    if mode == "RGB":
        options["subsampling"] = _pillow_subsampling(tables.sampling)
        options["keep_rgb"] = tables.is_rgb
    return options


def _pillow_subsampling(sampling: tuple[tuple[int, int], ...]) -> int:
    """0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0, which are all that Pillow writes."""
    if len(sampling) != 3 or sampling[1] != sampling[2]:
        return 0
    (luma_h, luma_v), (chroma_h, chroma_v) = sampling[:2]
    halves_width, halves_height = luma_h >= 2 * chroma_h, luma_v >= 2 * chroma_v
    return (2 if halves_height else 1) if halves_width else 0


_MAX_SEGMENT_BYTES = 65533
"""Most bytes of a JPEG marker segment, without its length field."""


def _segments(marker: int, prefix: bytes, data: bytes, numbered: bool) -> Iterator[bytes]:
    room = _MAX_SEGMENT_BYTES - len(prefix) - 2 * numbered
    count = -(-len(data) // room)
    if numbered and count > 255:
        raise ValueError(f"{len(data)} bytes of metadata, more than a JPEG file can hold")
    for i in range(count):
        body = prefix + (bytes([i + 1, count]) if numbered else b"") + data[i * room : (i + 1) * room]
        yield struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _insert_metadata(jpeg: bytes, facts: Facts) -> bytes:
    """Put EXIF and ICC segments after the JFIF header of a JPEG that has neither."""
    if facts.exif is None and facts.icc is None:
        return jpeg
    at = 2
    if jpeg[2:4] == b"\xff\xe0":
        at += 2 + int.from_bytes(jpeg[4:6], "big")
    exif = _segments(0xE1, b"Exif\0\0", facts.exif or b"", numbered=False)
    icc = _segments(0xE2, b"ICC_PROFILE\0", facts.icc or b"", numbered=True)
    return b"".join([jpeg[:at], *exif, *icc, jpeg[at:]])


def _metadata_options(facts: Facts) -> dict[str, object]:
    options: dict[str, object] = {}
    if facts.exif is not None:
        options["exif"] = facts.exif
    if facts.icc is not None:
        options["icc_profile"] = facts.icc
    return options


def _write_png(image: Image.Image, facts: Facts, jpeg_quality: int | None) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **_metadata_options(facts))
    return stream.getvalue()


def _write_webp(image: Image.Image, facts: Facts, jpeg_quality: int | None) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=WEBP_QUALITY, method=4, **_metadata_options(facts))
    return stream.getvalue()


_WRITERS: dict[str, Callable[[Image.Image, Facts, int | None], bytes]] = {
    "jpeg": _write_jpeg,
    "png": _write_png,
    "webp": _write_webp,
}


def decode_written(data: bytes, grey: bool) -> NDArray[np.uint8]:
    """Pixels of a file that `write_picture` made: (H, W) if `grey`, else (H, W, 3)."""
    format = sniff_format(data)
    if format not in _WRITERS:
        raise ValueError(f"expected a file that write_picture made, got {format}")
    if b"Exif" in data[:64] or b"iCCP" in data[:64]:
        # Pillow warns about the EXIF data of a JPEG and refuses large profiles in a PNG
        data = read_header(data).pixel_data
    with Image.open(io.BytesIO(data), formats=(_PILLOW_FORMATS[format],)) as image:
        wanted = "L" if grey else "RGB"
        return np.array(image if image.mode == wanted else image.convert(wanted))
