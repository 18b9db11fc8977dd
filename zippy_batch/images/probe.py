"""What an image file says of itself before a pixel is decoded, and whether its pixels could be archived faithfully.

    bytes --> signature --> walk over the container --> Header       (worth decoding, and how large it will be)
                                                   \\-> Refused      (kept raw, with one of REASONS)

A container is walked from end to end: sizes are settled before anything is decoded or allocated, a file that stops
early or goes on after its image is noticed, and a decoder is never asked what it might print a warning about. Nothing
here needs an image library, and no amount of hostile bytes costs more than a pass over the file.

Formats: JPEG (ITU-T T.81), PNG (ISO/IEC 15948), WebP (RFC 9649), BMP, TIFF 6.0, GIF89a.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.images.metadata import COMMENT, EXIF_PREFIX, GAMMA, IPTC, XMP, XMP_PREFIX, profile_in_text
from zippy_batch.jpeg.faults import Fault, Malformed
from zippy_batch.jpeg.markers import MAX_JPEG_BYTES
from zippy_batch.jpeg.probe import JpegProbe

MAX_IMAGE_BYTES = MAX_JPEG_BYTES
"""Larger files are kept raw: uncompressed, the largest image has 50 MB."""

MAX_PROFILE_BYTES = 255 * 65519
"""Most bytes of an ICC profile: what the 255 numbered segments of a JPEG hold."""

_MAX_PARTS = 1 << 20
"""Segments, chunks or blocks of a container; a bound on the time that a hostile file takes."""

EMPTY = "empty file"
NOT_AN_IMAGE = "not a JPEG, PNG, WebP, BMP, TIFF or GIF file"
CORRUPT = "corrupt"
TRUNCATED = "truncated"
TRAILING = "data after the end of the image"
TOO_LARGE = "more than 4096 pixels on a side, or 256 MiB"
ALPHA = "alpha channel"
TRANSPARENCY = "transparent palette or colour"
DEEP = "more than 8 bits per sample"
BILEVEL = "1 bit per pixel"
ANIMATION = "more than one image"
CMYK_PROFILE = "CMYK with a colour profile"
COLOUR = "colour space or layout without an equivalent in RGB or greyscale"
CODING = "compression that is not supported"

REASONS = frozenset(
    {
        EMPTY, NOT_AN_IMAGE, CORRUPT, TRUNCATED, TRAILING, TOO_LARGE, ALPHA, TRANSPARENCY, DEEP, BILEVEL, ANIMATION,
        CMYK_PROFILE, COLOUR, CODING,
    }
)  # fmt: skip
"""All that `Refused.reason` can be. Fixed words, so that reports can count them and archives repeat byte for byte."""


@dataclass(frozen=True)
class JpegFacts:
    """A JPEG's components as its frame and scans describe them, in file order."""

    sampling: tuple[tuple[int, int], ...]
    """(horizontal, vertical) sampling factors, 1..4."""
    tables: tuple[tuple[int, ...], ...]
    """Each component's quantisation table: 64 values in zigzag order, 1..65535."""
    numbered_tables: tuple[tuple[int, ...], ...]
    """The tables by their number in the file, up to the first number without one."""
    is_rgb: bool
    """Three components that are red, green and blue rather than Y, Cb and Cr."""


@dataclass(frozen=True)
class Header:
    format: str
    """"jpeg", "png", "webp", "bmp", "tiff" or "gif"."""
    width: int
    height: int
    pixel_data: bytes
    """The file for a decoder: without metadata that could distract it, where that is easy to take out."""
    exif: bytes | None = None
    """A TIFF structure as EXIF defines it, without the "Exif" prefix of JPEG."""
    icc: bytes | None = None
    jpeg: JpegFacts | None = None
    xmp: bytes | None = None
    dropped: tuple[str, ...] = ()
    """Kinds of metadata besides, of `metadata`."""
    unless_opaque: str | None = None
    """Reason to keep the file raw if its pixels turn out to be transparent anywhere; None where nothing could make them
    so."""


class Refused(Exception):
    """Why a file is kept raw, and what was known of it by then."""

    def __init__(self, reason: str, format: str | None = None, width: int | None = None, height: int | None = None):
        super().__init__(reason)
        self.reason = reason
        self.format = format
        self.width = width
        self.height = height


_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"BM", "bmp"),
)


def sniff_format(data: bytes) -> str | None:
    """Format by the first bytes, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)


def read_header(data: bytes) -> Header:
    """Walk the container of a whole file; raises Refused for what cannot be archived as pixels, and nothing else."""
    format = sniff_format(data)
    if format is None:
        raise Refused(NOT_AN_IMAGE if data else EMPTY)
    if len(data) > MAX_IMAGE_BYTES:
        raise Refused(TOO_LARGE, format)
    try:
        header = _READERS[format](data)
    except (struct.error, IndexError):
        raise Refused(TRUNCATED, format) from None
    if header.icc is not None and len(header.icc) > MAX_PROFILE_BYTES:
        raise Refused(COLOUR, format, header.width, header.height)
    return header


def _check_size(format: str, width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise Refused(CORRUPT, format)
    if max(width, height) > MAX_SIDE:
        raise Refused(TOO_LARGE, format, width, height)


def _is_padding(data: bytes) -> bool:
    """Whether the bytes after an image say nothing: none, or all of them zeros, 0xFF or line ends."""
    return not data.strip(b"\0") or not data.strip(b"\xff") or not data.strip(b"\r\n")


# ---------------------------------------------------------------------------------------------------------------- JPEG

_JPEG_REASONS = {
    Fault.CORRUPT: CORRUPT,
    Fault.TRUNCATED: TRUNCATED,
    Fault.TOO_LARGE: TOO_LARGE,
    Fault.UNSUPPORTED: CODING,
    Fault.DEEP: DEEP,
    Fault.COMPONENTS: COLOUR,
    Fault.SEVERAL: ANIMATION,
}
_ICC_PREFIX = b"ICC_PROFILE\0"


class _JpegMetadata:
    """What is beside the pixels, segment by segment."""

    def __init__(self) -> None:
        self.exif: list[bytes] = []
        self.xmp: bytes | None = None
        self.dropped: set[str] = set()
        self.has_jfif = self.has_more_pictures = False
        self.adobe_transform: int | None = None
        self._icc: list[bytes] = []

    def take(self, marker: int, body: bytes) -> None:
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            self.has_jfif = True
        elif marker == 0xE1 and body.startswith(EXIF_PREFIX):
            self.exif.append(body[len(EXIF_PREFIX) :])
        elif marker == 0xE1 and body.startswith(XMP_PREFIX):
            self.xmp = self.xmp or body.removeprefix(XMP_PREFIX)
            self.dropped.add(XMP)
        elif marker == 0xED and body.startswith(b"Photoshop 3.0\0"):
            self.dropped.add(IPTC)
        elif marker == 0xFE:
            self.dropped.add(COMMENT)
        elif marker == 0xE2 and body.startswith(_ICC_PREFIX):
            self._icc.append(body[len(_ICC_PREFIX) :])
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            self.has_more_pictures = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            self.adobe_transform = body[11]

    def icc(self) -> bytes | None:
        """The profile in its numbered segments; None when they do not make up a whole one, which no viewer would use
        either."""
        chunks = self._icc
        if not chunks or any(len(chunk) < 2 for chunk in chunks):
            return None
        ordered = sorted(chunks, key=lambda chunk: chunk[0])
        if [chunk[0] for chunk in ordered] != list(range(1, ordered[0][1] + 1)):
            return None
        return b"".join(chunk[2:] for chunk in ordered) or None

    def is_rgb(self, ids: tuple[int, ...]) -> bool:
        """Whether three components of these names are red, green and blue rather than Y, Cb and Cr: by the order of
        precedence of libjpeg, JFIF, then Adobe, then the names."""
        if len(ids) != 3 or self.has_jfif:
            return False
        return ids == (82, 71, 66) if self.adobe_transform is None else self.adobe_transform == 0


def _read_jpeg(data: bytes) -> Header:
    probe = JpegProbe()
    headers = probe.headers
    try:
        end = probe.read(data)
    except Malformed as error:
        raise Refused(_JPEG_REASONS[error.fault], "jpeg", headers.width or None, headers.height or None) from None
    width, height = headers.width, headers.height
    metadata = _JpegMetadata()
    for marker, body in probe.metadata:
        metadata.take(marker, body)
    if metadata.has_more_pictures:
        raise Refused(ANIMATION, "jpeg", width, height)
    if not _is_padding(data[end:]):
        raise Refused(TRAILING, "jpeg", width, height)
    icc = metadata.icc()
    if len(headers.parts) == 4 and icc is not None:
        raise Refused(CMYK_PROFILE, "jpeg", width, height)
    sampling = tuple((part.horizontal, part.vertical) for part in headers.parts)
    is_rgb = metadata.is_rgb(tuple(part.id for part in headers.parts))
    facts = JpegFacts(sampling, probe.tables(), probe.numbered_tables(), is_rgb)
    exif, dropped = b"".join(metadata.exif) or None, tuple(sorted(metadata.dropped))
    return Header("jpeg", width, height, probe.pixel_data, exif, icc, facts, xmp=metadata.xmp, dropped=dropped)


# ----------------------------------------------------------------------------------------------------------------- PNG

_PNG_ALPHA_TYPES = (4, 6)
_MAX_TEXT_BYTES = 1 << 24
"""Most bytes of a compressed text that is looked into."""


def _inflate(data: bytes, limit: int) -> bytes | None:
    """The first `limit` bytes of a zlib stream once decompressed, or None when it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, limit)
    except zlib.error:
        return None


_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""Adam7 interlacing: first row, row step, first column, column step of each pass."""


def _png_data_bytes(width: int, height: int, bits: int, is_interlaced: bool) -> int:
    """Size of the decompressed image data: rows of whole bytes, each after a byte that names its filter."""
    total = 0
    for top, down, left, across in _PNG_PASSES if is_interlaced else ((0, 1, 0, 1),):
        rows, columns = -(-(height - top) // down), -(-(width - left) // across)
        if rows > 0 and columns > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflated_bytes(parts: list[bytes], limit: int) -> int:
    """Length of a zlib stream once decompressed, counted up to `limit`; zlib.error when it is damaged."""
    decoder = zlib.decompressobj()
    count = 0
    for part in parts:
        while part and count < limit:
            count += len(decoder.decompress(part, 1 << 20))
            part = decoder.unconsumed_tail
    return count


def _check_png_data(parts: list[bytes], ihdr: bytes, width: int, height: int) -> None:
    """Raise Refused unless the image data is whole; decoders fill in what is missing without a word."""
    depth, colour, _, _, interlace = ihdr[8:13]
    if colour not in _PNG_SAMPLES or interlace > 1:
        raise Refused(CORRUPT, "png", width, height)
    expected = _png_data_bytes(width, height, depth * _PNG_SAMPLES[colour], bool(interlace))
    try:
        if _inflated_bytes(parts, expected) < expected:
            raise Refused(TRUNCATED, "png", width, height)
    except zlib.error:
        raise Refused(CORRUPT, "png", width, height) from None


class _PngMetadata:
    """What is beside the pixels, chunk by chunk."""

    def __init__(self) -> None:
        self.exif: bytes | None = None
        self.icc: bytes | None = None
        self.xmp: bytes | None = None
        self.dropped: set[str] = set()
        self._profiles: dict[bytes, bytes] = {}
        """Profiles that ImageMagick wrote, by name."""
        self._kinds: set[bytes] = set()

    def take(self, kind: bytes, body: bytes) -> None:
        self._kinds.add(kind)
        if kind == b"eXIf":
            self.exif = body.removeprefix(EXIF_PREFIX) or None
        elif kind == b"iCCP":
            self.icc = _inflate(body[body.find(b"\0") + 2 :], MAX_PROFILE_BYTES + 1) or None
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            self._take_text(kind, body)

    def close(self) -> None:
        """Once all chunks are taken."""
        profiles = self._profiles
        app1 = profiles.get(b"app1", b"")
        exif = profiles.get(b"exif") or (app1 if app1.startswith(EXIF_PREFIX) else b"")
        self.exif = self.exif or exif.removeprefix(EXIF_PREFIX) or None
        self.icc = self.icc or profiles.get(b"icc") or profiles.get(b"icm")
        xmp = profiles.get(b"xmp") or (app1 if app1.startswith(XMP_PREFIX) else b"")
        self.xmp = self.xmp or xmp.removeprefix(XMP_PREFIX) or None
        if self.xmp:
            self.dropped.add(XMP)
        if b"gAMA" in self._kinds and not self._kinds & {b"sRGB", b"iCCP"}:
            self.dropped.add(GAMMA)

    def _take_text(self, kind: bytes, body: bytes) -> None:
        keyword, _, rest = body.partition(b"\0")
        name = keyword.lower()
        if name == b"xml:com.adobe.xmp":
            self.xmp = self.xmp or _png_text(kind, rest)
            return
        profile = name.removeprefix(b"raw profile type ")
        if profile in (b"iptc", b"8bim"):
            self.dropped.add(IPTC)
        elif profile != name and profile not in self._profiles:
            self._profiles[profile] = profile_in_text(_png_text(kind, rest) or b"") or b""
        else:
            self.dropped.add(COMMENT)


def _png_text(kind: bytes, rest: bytes) -> bytes | None:
    """The text after a keyword; None where it is damaged."""
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        # flag, method, language, translated keyword
        rest = rest[1:2] + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not is_compressed:
        return rest[1:] if kind == b"iTXt" else rest
    return _inflate(rest[1:], _MAX_TEXT_BYTES)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind and body of each chunk up to IEND, and the position after it; Refused where one is damaged."""
    at = 8
    size: tuple[int | None, int | None] = (None, None)
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise Refused(TRUNCATED, "png", *size)
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[at + 4 : end - 4]) != crc or (kind == b"IHDR") != (at == 8):
            raise Refused(CORRUPT, "png", *size)
        yield kind, data[at + 8 : end - 4], end
        if kind == b"IEND":
            return
        if at == 8:
            size = struct.unpack_from(">II", data, 16)
        at = end
    raise Refused(CORRUPT, "png", *size)


def _read_png(data: bytes) -> Header:
    width = height = depth = colour = end = 0
    ihdr = b""
    image_data: list[bytes] = []
    metadata = _PngMetadata()
    unless_opaque = None
    kept = [data[:8]]
    for kind, body, end in _png_chunks(data):
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            kept.append(data[end - 12 - len(body) : end])
        else:
            metadata.take(kind, body)
        if kind == b"IHDR":
            ihdr = body
            width, height, depth, colour = struct.unpack_from(">IIBB", ihdr)
            _check_size("png", width, height)
        elif kind == b"acTL":
            raise Refused(ANIMATION, "png", width, height)
        elif kind == b"IDAT":
            image_data.append(body)
        elif kind == b"tRNS":
            unless_opaque = TRANSPARENCY
            if colour == 0 and depth < 8:
                # decoders compare it with samples that they have scaled
                raise Refused(TRANSPARENCY, "png", width, height)
    if depth == 16:
        raise Refused(DEEP, "png", width, height)
    if colour in _PNG_ALPHA_TYPES:
        unless_opaque = ALPHA
    if depth == 1 and colour == 0:
        raise Refused(BILEVEL, "png", width, height)
    if not _is_padding(data[end:]):
        raise Refused(TRAILING, "png", width, height)
    _check_png_data(image_data, ihdr, width, height)
    metadata.close()
    return Header(
        "png",
        width,
        height,
        b"".join(kept),
        metadata.exif,
        metadata.icc,
        xmp=metadata.xmp,
        dropped=tuple(sorted(metadata.dropped)),
        unless_opaque=unless_opaque,
    )


# ---------------------------------------------------------------------------------------------------------------- WebP


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int, bool]:
    """Width, height and alpha flag of a VP8, VP8L or VP8X chunk."""
    if kind == b"VP8X":
        flags = body[0]
        width = 1 + int.from_bytes(body[4:7], "little")
        height = 1 + int.from_bytes(body[7:10], "little")
        return width, height, bool(flags & 0x10)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF, False


def _read_webp(data: bytes) -> Header:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    end = 8 + riff_size
    if end > len(data):
        raise Refused(TRUNCATED, "webp")
    at, width, height = 12, 0, 0
    exif = icc = xmp = unless_opaque = None
    for _ in range(_MAX_PARTS):
        if at + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end:
            raise Refused(TRUNCATED, "webp", width or None, height or None)
        body = data[at + 8 : at + 8 + length]
        if kind in (b"ANIM", b"ANMF"):
            raise Refused(ANIMATION, "webp", width or None, height or None)
        if kind in (b"VP8X", b"VP8 ", b"VP8L"):
            chunk_width, chunk_height, has_alpha = _webp_size(kind, body)
            _check_size("webp", chunk_width, chunk_height)
            if width and (chunk_width, chunk_height) != (width, height):
                raise Refused(CORRUPT, "webp", width, height)
            width, height = chunk_width, chunk_height
            if kind == b"VP8X" and body[0] & 2:
                raise Refused(ANIMATION, "webp", width, height)
            if has_alpha:
                unless_opaque = ALPHA
        elif kind == b"EXIF":
            exif = body.removeprefix(EXIF_PREFIX) or None
        elif kind == b"XMP ":
            xmp = body or None
        elif kind == b"ICCP":
            icc = body or None
        at += 8 + length + (length & 1)
    if not width:
        raise Refused(CORRUPT, "webp")
    if not _is_padding(data[end:]):
        raise Refused(TRAILING, "webp", width, height)
    dropped = (XMP,) if xmp else ()
    return Header("webp", width, height, data, exif, icc, xmp=xmp, dropped=dropped, unless_opaque=unless_opaque)


# ----------------------------------------------------------------------------------------------------------------- BMP


def _read_bmp(data: bytes) -> Header:
    offset, header_size = struct.unpack_from("<I I", data, 10)
    if header_size == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    elif header_size in (40, 52, 56, 64, 108, 124):
        width, height, _, depth, compression = struct.unpack_from("<iiHHI", data, 18)
        height = abs(height)
    else:
        raise Refused(CODING, "bmp")
    _check_size("bmp", width, height)
    if depth == 1:
        raise Refused(BILEVEL, "bmp", width, height)
    if depth not in (4, 8, 16, 24, 32) or compression not in (0, 1, 2, 3):
        raise Refused(CODING, "bmp", width, height)
    if header_size == 124 and data[70:74] in (b"LINK", b"DEBM", b"KNIL", b"MBED"):
        raise Refused(COLOUR, "bmp", width, height)
    if compression in (0, 3):
        end = offset + (width * depth + 31) // 32 * 4 * height
        if end > len(data):
            raise Refused(TRUNCATED, "bmp", width, height)
        (file_size,) = struct.unpack_from("<I", data, 2)
        if not _is_padding(data[max(end, file_size) :]):
            raise Refused(TRAILING, "bmp", width, height)
    # the fourth byte says nothing by the letter of the format, and some programs have alpha in it
    spare = data[offset + 3 : offset + 4 * width * height : 4] if depth == 32 and compression == 0 else b""
    if spare.strip(b"\0") and spare.strip(b"\xff"):
        raise Refused(ALPHA, "bmp", width, height)
    return Header("bmp", width, height, data, unless_opaque=ALPHA if depth == 32 else None)


# ----------------------------------------------------------------------------------------------------------------- GIF


def _gif_blocks_end(data: bytes, at: int) -> int:
    """Offset after a chain of data sub-blocks."""
    for _ in range(_MAX_PARTS):
        if not data[at]:
            return at + 1
        at += 1 + data[at]
    raise Refused(CORRUPT, "gif")


def _read_gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    _check_size("gif", width, height)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    images, unless_opaque, xmp = 0, None, None
    dropped: set[str] = set()
    for _ in range(_MAX_PARTS):
        introducer = data[at]
        if introducer == 0x21:
            start, at = at, _gif_blocks_end(data, at + 2)
            if data[start + 1] == 0xF9 and data[start + 2] >= 1 and data[start + 3] & 1:
                unless_opaque = TRANSPARENCY
            elif data[start + 1] == 0xFE:
                dropped.add(COMMENT)
            elif data[start + 2 : start + 14] == b"\x0bXMP DataXMP":
                # the packet stands there as it is, and what it takes for sub-blocks leads to the end
                xmp = data[start + 14 : at]
                dropped.add(XMP)
        elif introducer == 0x2C:
            images += 1
            left, top, image_width, image_height, image_flags = struct.unpack_from("<HHHHB", data, at + 1)
            if images > 1:
                raise Refused(ANIMATION, "gif", width, height)
            _check_size("gif", image_width, image_height)
            if (left, top, image_width, image_height) != (0, 0, width, height):
                raise Refused(COLOUR, "gif", width, height)
            at += 10 + (3 << (image_flags & 7) + 1 if image_flags & 0x80 else 0)
            at = _gif_blocks_end(data, at + 1)
        else:
            break
    if introducer != 0x3B or not images:
        raise Refused(CORRUPT, "gif", width, height)
    if not _is_padding(data[at + 1 :]):
        raise Refused(TRAILING, "gif", width, height)
    kinds = tuple(sorted(dropped))
    return Header("gif", width, height, data, xmp=xmp, dropped=kinds, unless_opaque=unless_opaque)


# ---------------------------------------------------------------------------------------------------------------- TIFF

_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_TIFF_RAW, _TIFF_LZW, _TIFF_DEFLATE, _TIFF_PACKBITS, _TIFF_OLD_DEFLATE = 1, 5, 8, 32773, 32946
_TIFF_CODINGS = (_TIFF_RAW, _TIFF_LZW, _TIFF_DEFLATE, _TIFF_PACKBITS, _TIFF_OLD_DEFLATE)
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_ORIENTATION, _TIFF_EXTRA, _TIFF_XMP, _TIFF_PRIVATE = 274, 338, 700, 65000
_TIFF_MAX_STRIPS = 1 << 16
"""Strips or tiles; 4096 rows of one band make 4096 strips."""


def _tiff_directory(data: bytes, order: str) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Entries of the first directory as tag -> (type, count, offset of the value), and the next directory's offset."""
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    entries = {}
    for i in range(count):
        entry_at = at + 2 + 12 * i
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry_at)
        size = values * _TIFF_TYPE_BYTES.get(kind, 1)
        value_at = entry_at + 8 if size <= 4 else struct.unpack_from(order + "I", data, entry_at + 8)[0]
        if value_at + size > len(data):
            raise Refused(TRUNCATED, "tiff")
        if tag in entries:
            raise Refused(CORRUPT, "tiff")
        entries[tag] = kind, values, value_at
    return entries, struct.unpack_from(order + "I", data, at + 2 + 12 * count)[0]


class _TiffTags:
    def __init__(self, data: bytes):
        self._data = data
        self._order = "<" if data[:1] == b"I" else ">"
        self._entries, self.next_directory = _tiff_directory(data, self._order)

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        if tag not in self._entries:
            return default
        kind, count, at = self._entries[tag]
        if kind not in _TIFF_TYPES or not 0 < count <= _TIFF_MAX_STRIPS:
            raise Refused(CORRUPT, "tiff")
        return struct.unpack_from(f"{self._order}{count}{_TIFF_TYPES[kind]}", self._data, at)

    def integer(self, tag: int, default: int) -> int:
        return self.integers(tag, (default,))[0]

    def without(self, *tags: int) -> bytes:
        """The file with these tags renamed to private ones that nothing reads."""
        data = bytearray(self._data)
        (at,) = struct.unpack_from(self._order + "I", data, 4)
        for place, tag in enumerate(self._entries):
            if tag in tags:
                struct.pack_into(self._order + "H", data, at + 2 + 12 * place, _TIFF_PRIVATE + tags.index(tag))
        return bytes(data)

    def with_short(self, data: bytes, tag: int, value: int) -> bytes:
        """A file of this layout with another value of a tag that is one SHORT."""
        _, _, at = self._entries[tag]
        return data[:at] + struct.pack(self._order + "H", value) + data[at + 2 :]

    def blob(self, tag: int) -> bytes | None:
        if tag not in self._entries:
            return None
        kind, count, at = self._entries[tag]
        return self._data[at : at + count * _TIFF_TYPE_BYTES.get(kind, 1)] or None


def _check_tiff_pixels(tags: _TiffTags, data: bytes, width: int, height: int) -> None:
    """Raise Refused unless strips or tiles lie inside the file and hold as much as they should."""
    coding = tags.integer(259, _TIFF_RAW)
    samples = tags.integer(277, 1)
    tiled = 322 in tags
    offsets, sizes = tags.integers(324 if tiled else 273), tags.integers(325 if tiled else 279)
    if tiled:
        columns, rows = tags.integer(322, 0), tags.integer(323, 0)
    else:
        columns, rows = width, min(tags.integer(278, height), height)
    if not 0 < columns <= 2 * MAX_SIDE or not 0 < rows <= 2 * MAX_SIDE:
        raise Refused(CORRUPT, "tiff", width, height)
    bands = samples if tags.integer(284, 1) == 2 else 1
    expected = bands * -(-width // columns) * -(-height // rows)
    if len(offsets) != expected or len(sizes) != expected:
        raise Refused(CORRUPT, "tiff", width, height)
    for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        if offset + size > len(data):
            raise Refused(TRUNCATED, "tiff", width, height)
        last_rows = height - (i % (expected // bands)) * rows
        wanted = columns * (rows if tiled else min(rows, last_rows)) * (samples // bands)
        if coding == _TIFF_RAW and size < wanted:
            raise Refused(TRUNCATED, "tiff", width, height)
        if coding in (_TIFF_DEFLATE, _TIFF_OLD_DEFLATE):
            # libtiff would print its complaint about a damaged stream on stderr
            try:
                if _inflated_bytes([data[offset : offset + size]], wanted) < wanted:
                    raise Refused(TRUNCATED, "tiff", width, height)
            except zlib.error:
                raise Refused(CORRUPT, "tiff", width, height) from None


def _read_tiff(data: bytes) -> Header:
    tags = _TiffTags(data)
    width, height = tags.integer(256, 0), tags.integer(257, 0)
    _check_size("tiff", width, height)
    bits, samples, photometric = tags.integers(258, (1,)), tags.integer(277, 1), tags.integer(262, -1)
    if tags.next_directory:
        raise Refused(ANIMATION, "tiff", width, height)
    if set(bits) == {1}:
        raise Refused(BILEVEL, "tiff", width, height)
    if max(bits) > 8 or set(tags.integers(339, (1,))) != {1}:
        raise Refused(DEEP, "tiff", width, height)
    # greyscale with black as 0 or as 255, RGB, palette; others (CMYK, LAB, YCbCr) need more than their numbers
    expected_samples = {0: 1, 1: 1, 2: 3, 3: 1}.get(photometric)
    if _TIFF_EXTRA in tags:
        # what an extra sample is may be unsaid; decoders look at it where it is alpha, as it is or multiplied in
        if tags.integers(_TIFF_EXTRA) not in ((0,), (1,), (2,)) or photometric not in (1, 2):
            raise Refused(ALPHA, "tiff", width, height)
        expected_samples = {1: 2, 2: 4}[photometric]
    if samples != expected_samples or set(bits) != {8} or tags.integer(266, 1) != 1:
        raise Refused(COLOUR, "tiff", width, height)
    if tags.integer(259, _TIFF_RAW) not in _TIFF_CODINGS:
        raise Refused(CODING, "tiff", width, height)
    _check_tiff_pixels(tags, data, width, height)
    # decoders turn the pixels of a TIFF by these tags; here pixels stay as stored, and what they say goes into the EXIF
    pixel_data = tags.without(_TIFF_ORIENTATION, _TIFF_XMP)
    if tags.integers(_TIFF_EXTRA) == (0,):
        pixel_data = tags.with_short(pixel_data, _TIFF_EXTRA, 2)
    xmp = tags.blob(_TIFF_XMP)
    dropped = [kind for kind, there in ((IPTC, 33723 in tags or 34377 in tags), (XMP, xmp)) if there]
    return Header(
        "tiff",
        width,
        height,
        pixel_data,
        icc=tags.blob(34675),
        xmp=xmp,
        dropped=tuple(dropped),
        unless_opaque=ALPHA if _TIFF_EXTRA in tags else None,
    )


_READERS = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "bmp": _read_bmp,
    "tiff": _read_tiff,
    "gif": _read_gif,
}
