"""Which way up a picture is, alpha that hides nothing, and metadata that is not archived."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import CODECS, files_of, pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from zippy_batch.config import ArchiveOptions, RestoreOptions
from zippy_batch.images.metadata import orientation_in_xmp, profile_in_text, with_orientation
from zippy_batch.images.pixels import Picture, Unsuitable, read_picture, write_picture
from zippy_batch.run.pipeline import archive, restore

RGB = Image.fromarray(pixels(1, 40, 56))
GREY = RGB.convert("L")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def picture(data: bytes) -> Picture:
    found = read_picture(data)
    assert isinstance(found, Picture), found
    return found


def orientation_of(exif: bytes | None) -> int | None:
    found = Image.Exif()
    found.load(b"Exif\0\0" + (exif or b""))
    return found.get(274)


# ---- orientation ----

ATTRIBUTE = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
ELEMENT = "<rdf:Description>\n <tiff:Orientation> 6 </tiff:Orientation>\n</rdf:Description>"
QUOTED = "<rdf:Description\n tiff:Make='x' tiff:Orientation = '6' />"
RENAMED = '<rdf:Description xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation="6"/>'


@pytest.mark.parametrize("packet", [ATTRIBUTE, ELEMENT, QUOTED, RENAMED])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_orientation_in_every_form_of_xmp(packet: str, encoding: str) -> None:
    assert orientation_in_xmp(packet.encode(encoding)) == 6


@pytest.mark.parametrize(
    "packet",
    [
        "",
        ATTRIBUTE.replace("6", "1"),
        ATTRIBUTE.replace("6", "9"),
        ATTRIBUTE.replace("6", "60"),
        ATTRIBUTE.replace("tiff:", "other:"),
        "tiff:Orientation",
    ],
)
def test_xmp_of_an_upright_picture_says_nothing(packet: str) -> None:
    assert orientation_in_xmp(packet.encode()) is None


def png_with(keyword: str, text: str | bytes, kind: bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    body = keyword.encode() + b"\0"
    body += {
        b"tEXt": data,
        b"zTXt": b"\0" + zlib.compress(data),
        b"iTXt": b"\0\0en\0\0" + data,
        b"iTXt ": b"\1\0\0\0" + zlib.compress(data),
    }[kind]
    chunk = struct.pack(">I", len(body)) + kind[:4] + body + struct.pack(">I", zlib.crc32(kind[:4] + body))
    png = encoded(RGB, "PNG")
    return png[:33] + chunk + png[33:]


def hexadecimal(name: str, data: bytes) -> str:
    digits = data.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return f"\n{name}\n{len(data):8d}\n{lines}\n"


def exif_of(orientation: int, **others: str) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    for tag, value in others.items():
        exif[int(tag[1:])] = value
    return exif.tobytes()


def gif_with_xmp(packet: str) -> bytes:
    gif = encoded(RGB.quantize(16), "GIF")
    # the magic trailer of Adobe's specification leads any reader of sub-blocks to the end
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    at = 13 + (3 << (gif[10] & 7) + 1)
    return gif[:at] + b"\x21\xff\x0bXMP DataXMP" + packet.encode() + trailer + gif[at:]


TURNED: dict[str, Callable[[], bytes]] = {
    "png xmp": lambda: png_with("XML:com.adobe.xmp", ATTRIBUTE, b"iTXt"),
    "png compressed xmp": lambda: png_with("XML:com.adobe.xmp", ATTRIBUTE, b"iTXt "),
    "png raw exif": lambda: png_with("Raw profile type exif", hexadecimal("exif", exif_of(6)), b"zTXt"),
    "png raw exif as text": lambda: png_with("Raw profile type exif", hexadecimal("exif", exif_of(6)[6:]), b"tEXt"),
    "png raw app1": lambda: png_with("Raw profile type APP1", hexadecimal("app1", exif_of(6)), b"iTXt "),
    "png raw xmp": lambda: png_with("Raw profile type xmp", hexadecimal("xmp", ATTRIBUTE.encode()), b"zTXt"),
    "png exif": lambda: encoded(RGB, "PNG", exif=exif_of(6)),
    "webp xmp": lambda: encoded(RGB, "WEBP", lossless=True, xmp=ATTRIBUTE.encode()),
    "webp exif": lambda: encoded(RGB, "WEBP", lossless=True, exif=exif_of(6)),
    "tiff": lambda: encoded(RGB, "TIFF", tiffinfo={274: 6}),
    "tiff xmp": lambda: encoded(RGB, "TIFF", tiffinfo={700: ATTRIBUTE.encode()}),
    "gif xmp": lambda: gif_with_xmp(ATTRIBUTE),
    "jpeg xmp": lambda: encoded(RGB, "JPEG", xmp=ATTRIBUTE.encode()),
    "jpeg exif": lambda: encoded(RGB, "JPEG", exif=exif_of(6)),
}


@pytest.mark.parametrize("source", TURNED)
def test_a_picture_comes_back_as_a_viewer_shows_it(source: str) -> None:
    data = TURNED[source]()
    found = picture(data)
    assert found.pixels.shape == (40, 56, 3)
    assert orientation_of(found.facts.exif) == 6
    for format in ("jpeg", "png", "webp"):
        with Image.open(
            io.BytesIO(write_picture(found.pixels, found.facts, format, 95 if format == "jpeg" else None))
        ) as back:
            upright = ImageOps.exif_transpose(back)
            assert upright.size == (40, 56)
            expected = np.asarray(RGB.transpose(Image.Transpose.ROTATE_270), np.int16)
            assert np.abs(np.asarray(upright.convert("RGB"), np.int16) - expected).mean() < 12


def test_exif_of_its_own_wins_over_xmp() -> None:
    found = picture(encoded(RGB, "PNG", exif=exif_of(3), pnginfo=xmp_info(ATTRIBUTE)))
    assert orientation_of(found.facts.exif) == 3


def xmp_info(packet: str) -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    return info


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_without_an_orientation_gets_one_and_keeps_the_rest(order: str) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[271], exif[305], exif[306] = "a maker with a name", "some software", "2020:01:01 00:00:00"
    exif.get_ifd(34665)[37510] = b"a comment that is kept"
    before = exif.tobytes()[6:]
    after = with_orientation(before, 8)
    assert after is not None
    found = Image.Exif()
    found.load(b"Exif\0\0" + after)
    assert dict(found) == {**dict(exif), 274: 8, 34665: found[34665]}
    assert found.get_ifd(34665)[37510] == b"a comment that is kept"
    assert with_orientation(after, 3) == after


@pytest.mark.parametrize("exif", [None, b"", b"nonsense", b"II*\0", b"II*\0\x08\0\0\0\xff\xff"])
def test_exif_that_cannot_be_read_is_replaced(exif: bytes | None) -> None:
    assert orientation_of(with_orientation(exif, 5)) == 5
    assert with_orientation(exif, None) == exif


@given(st.binary(max_size=80), st.integers(2, 8))
def test_no_exif_makes_an_orientation_fail(data: bytes, orientation: int) -> None:
    for exif in (data, b"II*\0\x08\0\0\0" + data, b"MM\0*\0\0\0\x08" + data):
        assert with_orientation(exif, orientation)


@given(st.binary(max_size=200))
def test_profiles_in_text_come_back(data: bytes) -> None:
    assert profile_in_text(hexadecimal("exif", data).encode()) == (data or None)
    profile_in_text(data)


# ---- alpha ----


def with_alpha(image: Image.Image, alpha: int = 255) -> Image.Image:
    out = image.copy()
    out.putalpha(alpha)
    return out


def bmp_32(spare: bytes) -> bytes:
    """BI_RGB of 32 bits, whose fourth byte is `spare`, over and over."""
    bgr = np.asarray(RGB)[::-1, :, ::-1]
    fourth = np.resize(np.frombuffer(spare, np.uint8), (*bgr.shape[:2], 1))
    body = np.concatenate([bgr, fourth], axis=2).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, RGB.width, RGB.height, 1, 32, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + header + body


def bmp_with_masks(masks: tuple[int, ...], header_bytes: int, alpha: int) -> bytes:
    """BI_BITFIELDS of 32 bits: where red, green, blue and, unless its mask is 0, alpha are in a pixel."""
    planes = [*np.moveaxis(np.asarray(RGB)[::-1].astype(np.uint32), 2, 0), np.uint32(alpha)]
    shifts = [(mask & -mask).bit_length() - 1 for mask in masks]
    body = sum(np.uint32(0) + (p << np.uint32(s)) for p, s, m in zip(planes, shifts, masks, strict=True) if m)
    header = struct.pack("<IiiHHIIiiII", header_bytes, RGB.width, RGB.height, 1, 32, 3, body.nbytes, 0, 0, 0, 0)
    header += struct.pack("<4I", *masks) + b"BGRs" + bytes(64)
    start = 14 + header_bytes
    return b"BM" + struct.pack("<IHHI", start + body.nbytes, 0, 0, start) + header[:header_bytes] + body.tobytes()


@pytest.mark.parametrize("header_bytes", [56, 108, 124])
@pytest.mark.parametrize("order", [(16, 8, 0, 24), (0, 8, 16, 24), (24, 16, 8, 0)])
def test_bmp_of_every_order_of_masks(header_bytes: int, order: tuple[int, ...]) -> None:
    masks = tuple(0xFF << shift for shift in order)
    expected = np.asarray(RGB)
    assert np.array_equal(picture(bmp_with_masks(masks, header_bytes, 255)).pixels, expected)
    assert isinstance(read_picture(bmp_with_masks(masks, header_bytes, 254)), Unsuitable)
    if order[0] != 0:
        without = picture(bmp_with_masks((*masks[:3], 0), header_bytes, 0))
        assert np.array_equal(without.pixels, expected)


PALETTE = RGB.quantize(16)

OPAQUE: dict[str, tuple[Callable[[], bytes], Image.Image]] = {
    "png": (lambda: encoded(with_alpha(RGB), "PNG"), RGB),
    "grey png": (lambda: encoded(with_alpha(GREY), "PNG"), GREY),
    "png palette": (lambda: encoded(PALETTE, "PNG", transparency=b"\xff" * 16), PALETTE.convert("RGB")),
    "png unused palette": (lambda: encoded(PALETTE, "PNG", transparency=200), PALETTE.convert("RGB")),
    "png unused colour": (lambda: encoded(RGB, "PNG", transparency=(255, 254, 253)), RGB),
    "grey png unused": (lambda: encoded(GREY, "PNG", transparency=255), GREY),
    "webp": (lambda: encoded(with_alpha(RGB), "WEBP", lossless=True, exact=True), RGB),
    "tiff": (lambda: encoded(with_alpha(RGB), "TIFF"), RGB),
    "grey tiff": (lambda: encoded(with_alpha(GREY), "TIFF"), GREY),
    "tiff of an unsaid sample": (lambda: encoded(RGB.convert("RGBX"), "TIFF"), RGB),
    "lzw tiff": (lambda: encoded(with_alpha(RGB), "TIFF", compression="tiff_lzw"), RGB),
    "gif": (lambda: encoded(PALETTE, "GIF", transparency=200), PALETTE.convert("RGB")),
    "bmp": (lambda: encoded(with_alpha(RGB), "BMP"), RGB),
    "bmp zeros": (lambda: bmp_32(b"\0"), RGB),
    "bmp ones": (lambda: bmp_32(b"\xff"), RGB),
}


@pytest.mark.parametrize("source", OPAQUE)
def test_alpha_that_is_opaque_is_left_out(source: str) -> None:
    write, expected = OPAQUE[source]
    found = picture(write())
    assert found.facts.mode == expected.mode
    assert np.array_equal(found.pixels, np.asarray(expected))


TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(with_alpha(RGB, 254), "PNG"),
    "one pixel": lambda: encoded(one_pixel(), "PNG"),
    "png palette": lambda: encoded(PALETTE, "PNG", transparency=b"\xff" * 3 + b"\xfe" * 13),
    "png colour": lambda: encoded(RGB, "PNG", transparency=RGB.getpixel((5, 5))),
    "grey png": lambda: encoded(GREY, "PNG", transparency=GREY.getpixel((5, 5))),
    "grey png of 2 bits": lambda: grey_of_two_bits(),
    "webp": lambda: encoded(with_alpha(RGB, 200), "WEBP"),
    "tiff": lambda: encoded(with_alpha(RGB, 0), "TIFF"),
    "tiff of an unsaid sample": lambda: encoded(with_alpha(RGB, 9), "TIFF", tiffinfo={338: (0,)}),
    "gif": lambda: encoded(PALETTE, "GIF", transparency=PALETTE.getpixel((5, 5))),
    "bmp": lambda: encoded(with_alpha(RGB, 128), "BMP"),
    "bmp with something in it": lambda: bmp_32(b"\0\xff\x80"),
}


def one_pixel() -> Image.Image:
    image = with_alpha(RGB)
    image.putpixel((55, 39), (1, 2, 3, 254))
    return image


def grey_of_two_bits() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(b"\0\x1b" * 4)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 2, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("source", TRANSPARENT)
def test_alpha_that_shows_something_is_kept_raw(source: str) -> None:
    found = read_picture(TRANSPARENT[source]())
    assert isinstance(found, Unsuitable)
    assert found.reason in ("alpha channel", "transparent palette or colour")


# ---- what is dropped ----


def test_kinds_of_metadata_that_no_picture_keeps() -> None:
    text = PngInfo()
    text.add_text("Author", "somebody")
    text.add(b"gAMA", struct.pack(">I", 45455))
    iptc = {33723: b"\x1c\x02\x05\x00\x01x"}
    gif = encoded(RGB.quantize(16), "GIF", comment=b"hello")
    for data, dropped in (
        (encoded(RGB, "PNG"), ()),
        (encoded(RGB, "PNG", pnginfo=text), ("comment", "gamma")),
        (encoded(RGB, "PNG", pnginfo=xmp_info(ATTRIBUTE)), ("XMP",)),
        (png_with("Raw profile type iptc", hexadecimal("iptc", b"x"), b"tEXt"), ("IPTC",)),
        (encoded(RGB, "WEBP", xmp=b"<x/>"), ("XMP",)),
        (encoded(RGB, "TIFF", tiffinfo={**iptc, 700: b"<x/>"}), ("IPTC", "XMP")),
        (gif, ("comment",)),
        (gif_with_xmp("<x/>"), ("XMP",)),
        (encoded(RGB, "JPEG"), ()),
        (encoded(RGB, "JPEG", comment=b"hello", xmp=b"<x/>"), ("XMP", "comment")),
        (jpeg_with_iptc(), ("IPTC",)),
    ):
        assert picture(data).dropped == dropped


def jpeg_with_iptc() -> bytes:
    jpeg = encoded(RGB, "JPEG")
    body = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x06\x1c\x02\x05\0\x01x"
    return jpeg[:20] + b"\xff\xed" + struct.pack(">H", 2 + len(body)) + body + jpeg[20:]


def test_a_report_counts_what_is_dropped_of_lossy_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    large = RGB.resize((120, 120))
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(encoded(large, "PNG", pnginfo=xmp_info(ATTRIBUTE)))
    (tmp_path / "in" / "c.webp").write_bytes(encoded(large, "WEBP", xmp=ATTRIBUTE.encode(), exif=exif_of(1)))
    (tmp_path / "in" / "raw.png").write_bytes(encoded(with_alpha(large, 3), "PNG", pnginfo=xmp_info(ATTRIBUTE)))
    options = ArchiveOptions(device="cpu", exact="never", shard_size=2, quality=1)
    report = archive(tmp_path / "in", tmp_path / "out.parquet", options, codecs=CODECS)
    assert report.run
    lossy = report.total.lossy_images
    assert lossy >= 3
    assert report.run.dropped == {"XMP": lossy}
    assert report.to_dict()["run"]["dropped_metadata"] == {"XMP": lossy}
    assert f"metadata that is not archived, by the pictures that have it: XMP of {lossy}" in report.lines()
    restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
    with Image.open(io.BytesIO(files_of(tmp_path / "back")[b"0.png.jpg"])) as back:
        assert back.getexif()[274] == 6


def test_pictures_of_shared_cases(shared: Path) -> None:
    for name in ("xmp.jpg", "xmp.png"):
        data = (shared / "cases" / "orientation" / name).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            assert orientation_of(picture(data).facts.exif) == image.getexif()[274] != 1
    for path in (shared / "cases" / "alpha").iterdir():
        with Image.open(path) as image:
            assert np.array_equal(picture(path.read_bytes()).pixels, np.asarray(image.convert("RGB")))
