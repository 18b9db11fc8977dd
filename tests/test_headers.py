"""What a file says of itself, and why some files are kept raw: crafted and hostile containers."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from zippy_batch.archives.schema import MAX_SIDE
from zippy_batch.images import probe
from zippy_batch.images.pixels import Picture, Unsuitable, read_picture
from zippy_batch.images.probe import REASONS, Refused, read_header, sniff_format

_RNG = np.random.default_rng(0)
RGB = Image.fromarray(_RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8))
GREY = RGB.convert("L")


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def reason_of(data: bytes) -> str:
    found = read_picture(data)
    assert isinstance(found, Unsuitable), found
    assert found.reason in REASONS
    return found.reason


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def insert_png_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    return png[:33] + png_chunk(kind, body) + png[33:]


SAMPLES = {
    "jpeg": encoded(RGB, "JPEG"),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "grey jpeg": encoded(GREY, "JPEG"),
    "png": encoded(RGB, "PNG"),
    "palette png": encoded(RGB.quantize(16), "PNG"),
    "webp": encoded(RGB, "WEBP"),
    "lossless webp": encoded(RGB, "WEBP", lossless=True),
    "webp with exif": encoded(RGB, "WEBP", exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0"),
    "bmp": encoded(RGB, "BMP"),
    "palette bmp": encoded(RGB.quantize(16), "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "grey tiff": encoded(GREY, "TIFF"),
    "deflate tiff": encoded(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "lzw tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "packbits tiff": encoded(RGB, "TIFF", compression="packbits"),
    "gif": encoded(RGB.quantize(64), "GIF"),
    "grey gif": encoded(GREY, "GIF"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_plain_files_are_pictures(name: str) -> None:
    data = SAMPLES[name]
    picture = read_picture(data)
    assert isinstance(picture, Picture), picture
    assert picture.facts.format == name.split()[-1] if name != "webp with exif" else "webp"
    assert (picture.facts.width, picture.facts.height) == (17, 13)
    assert picture.pixels.shape[:2] == (13, 17)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("L" if picture.pixels.ndim == 2 else "RGB"))
    assert np.array_equal(picture.pixels, expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_cut_is_noticed(name: str) -> None:
    data = SAMPLES[name]
    for length in [*range(16), *range(16, len(data), max(1, len(data) // 60)), len(data) - 1]:
        found = read_picture(data[:length])
        if isinstance(found, Picture):
            # the one byte that pads a RIFF chunk, or a TIFF's last, carries nothing
            assert length >= len(data) - 1
            whole = read_picture(data)
            assert isinstance(whole, Picture)
            assert np.array_equal(found.pixels, whole.pixels)
        else:
            assert found.reason in REASONS


@pytest.mark.parametrize("name", [name for name in SAMPLES if "tiff" not in name and name != "palette bmp"])
def test_hidden_data_behind_an_image_is_not_dropped(name: str) -> None:
    assert reason_of(SAMPLES[name] + b"a second life") == probe.TRAILING


@pytest.mark.parametrize("padding", [b"\0" * 700, b"\xff\xff", b"\r\n"])
def test_padding_behind_an_image_is_no_data(padding: bytes) -> None:
    assert isinstance(read_picture(SAMPLES["jpeg"] + padding), Picture)
    assert isinstance(read_picture(SAMPLES["png"] + padding), Picture)


def _rgba(alpha: int) -> Image.Image:
    image = RGB.convert("RGBA")
    image.putalpha(alpha)
    return image


_16_BIT = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
_FRAMES: dict[str, object] = {"save_all": True, "append_images": [RGB.rotate(90)]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", probe.EMPTY),
        (b"hello, world", probe.NOT_AN_IMAGE),
        (b"\xff\xd8", probe.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", probe.NOT_AN_IMAGE),
        (encoded(RGB, "PPM"), probe.NOT_AN_IMAGE),
        (encoded(_rgba(254), "PNG"), probe.ALPHA),
        (encoded(_rgba(9).convert("LA"), "PNG"), probe.ALPHA),
        (encoded(_rgba(9), "WEBP"), probe.ALPHA),
        (encoded(_rgba(9), "WEBP", lossless=True), probe.ALPHA),
        (encoded(_rgba(9), "TIFF"), probe.ALPHA),
        (encoded(_rgba(9), "BMP"), probe.ALPHA),
        (encoded(RGB, "PNG", transparency=RGB.getpixel((3, 3))), probe.TRANSPARENCY),
        (encoded(RGB.quantize(8), "PNG", transparency=3), probe.TRANSPARENCY),
        (encoded(RGB.quantize(8), "GIF", transparency=3), probe.TRANSPARENCY),
        (encoded(_16_BIT, "PNG"), probe.DEEP),
        (encoded(_16_BIT, "TIFF"), probe.DEEP),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), probe.DEEP),
        (encoded(RGB.convert("1"), "PNG"), probe.BILEVEL),
        (encoded(RGB.convert("1"), "TIFF"), probe.BILEVEL),
        (encoded(RGB.convert("1"), "BMP"), probe.BILEVEL),
        (encoded(RGB, "PNG", **_FRAMES), probe.ANIMATION),
        (encoded(RGB, "WEBP", **_FRAMES), probe.ANIMATION),
        (encoded(RGB, "GIF", **_FRAMES), probe.ANIMATION),
        (encoded(RGB, "TIFF", **_FRAMES), probe.ANIMATION),
        (encoded(RGB, "MPO", **_FRAMES), probe.ANIMATION),
        (encoded(RGB.convert("CMYK"), "TIFF"), probe.COLOUR),
        (encoded(RGB.convert("CMYK"), "JPEG", icc_profile=b"profile"), probe.CMYK_PROFILE),
        (encoded(RGB.convert("LAB"), "TIFF"), probe.COLOUR),
        (encoded(RGB, "TIFF", compression="jpeg"), probe.CODING),
        (encoded(GREY.resize((4097, 1)), "PNG"), probe.TOO_LARGE),
        (encoded(GREY.resize((1, 4097)), "JPEG"), probe.TOO_LARGE),
        (encoded(GREY.resize((1, 4097)), "TIFF"), probe.TOO_LARGE),
        (encoded(GREY.resize((4097, 1)), "WEBP"), probe.TOO_LARGE),
        (encoded(GREY.resize((4097, 1)), "GIF"), probe.TOO_LARGE),
        (encoded(GREY.resize((4097, 1)), "BMP"), probe.TOO_LARGE),
    ],
)
def test_what_the_codec_cannot_give_back_is_kept_raw(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_the_largest_sides_are_taken() -> None:
    for size in ((4096, 1), (1, 4096)):
        assert isinstance(read_picture(encoded(GREY.resize(size), "PNG")), Picture)


def test_files_too_large_for_an_image_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_IMAGE_BYTES", 100)
    assert reason_of(SAMPLES["png"]) == probe.TOO_LARGE


def test_bombs_are_refused_before_anything_is_allocated() -> None:
    ihdr = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr) + png_chunk(b"IDAT", zlib.compress(bytes(10**6)))
    found = read_picture(bomb + png_chunk(b"IEND", b""))
    assert found == Unsuitable(probe.TOO_LARGE, "png", 50_000, 50_000)


def test_compressed_metadata_bombs_are_not_inflated() -> None:
    packed = zlib.compress(bytes(1 << 26))
    data = insert_png_chunk(SAMPLES["png"], b"iCCP", b"name\0\0" + packed)
    data = insert_png_chunk(data, b"zTXt", b"name\0\0" + packed)
    assert reason_of(data) == probe.COLOUR


def test_damaged_png_chunks_are_noticed() -> None:
    data = bytearray(SAMPLES["png"])
    data[len(data) // 2] ^= 1
    assert reason_of(bytes(data)) == probe.CORRUPT


def test_image_data_that_ends_early_inside_whole_chunks_is_noticed() -> None:
    rows = zlib.compress(bytes(5 * (1 + 17 * 3)))
    start = SAMPLES["png"][:33]
    data = start + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert reason_of(data) in (probe.TRUNCATED, probe.CORRUPT)


def gif_with_less_data(gif: bytes, missing: int) -> bytes:
    """The GIF without the last bytes of its compressed pixels, its block structure intact."""
    start = gif.index(b"\x2c\0\0\0\0")
    flags = gif[start + 9]
    at = start + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks, rest = [], at
    while gif[rest]:
        blocks.append(gif[rest + 1 : rest + 1 + gif[rest]])
        rest += 1 + gif[rest]
    packed = b"".join(blocks)[:-missing]
    cut = [packed[i : i + 255] for i in range(0, len(packed), 255)]
    return gif[:at] + b"".join(bytes([len(block)]) + block for block in cut) + gif[rest:]


def webp_with_less_data(webp: bytes, missing: int) -> bytes:
    """The WebP file without the last bytes of its only chunk, its sizes intact."""
    (length,) = struct.unpack_from("<I", webp, 16)
    chunk = webp[20 : 20 + length - missing]
    body = b"WEBP" + webp[12:16] + struct.pack("<I", len(chunk)) + chunk + bytes(len(chunk) & 1)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("missing", [20, 60])
def test_pixel_data_that_ends_early_inside_a_whole_container_is_noticed(missing: int) -> None:
    cuts = [gif_with_less_data(SAMPLES["gif"], missing), gif_with_less_data(SAMPLES["grey gif"], missing)]
    cuts += [webp_with_less_data(SAMPLES[name], missing) for name in ("webp", "lossless webp")]
    for data in cuts:
        assert reason_of(data) in (probe.TRUNCATED, probe.CORRUPT)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (17, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_image_data_is_measured_in_every_layout(size: tuple[int, int], mode: str) -> None:
    image = RGB.resize(size).convert(mode)
    for bits in (2, 4, 8) if mode == "P" else (8,):
        shown = image.quantize(3) if mode == "P" else image
        data = encoded(shown, "PNG", bits=bits) if mode == "P" else encoded(shown, "PNG")
        assert isinstance(read_picture(data), Picture)


def test_interlaced_png_is_measured_pass_by_pass() -> None:
    # Adam7 by hand: the sizes of all passes of a 3x2 greyscale image are 2+0+0+2+0+2+4
    rows = [b"\0\1", b"\0\2", b"\0\3", b"\0\4\5\6"]
    ihdr = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 1)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr)
    whole = start + png_chunk(b"IDAT", zlib.compress(b"".join(rows))) + png_chunk(b"IEND", b"")
    picture = read_picture(whole)
    assert isinstance(picture, Picture)
    assert picture.pixels.tolist() == [[1, 3, 2], [4, 5, 6]]
    cut = start + png_chunk(b"IDAT", zlib.compress(b"".join(rows)[:-1])) + png_chunk(b"IEND", b"")
    assert reason_of(cut) == probe.TRUNCATED


def test_jpeg_without_its_last_scans_is_truncated() -> None:
    # a scan for the first component only
    data = SAMPLES["jpeg"]
    scan = data.index(b"\xff\xda")
    header = b"\xff\xda" + struct.pack(">HBBB", 8, 1, 1, 0) + b"\0\x3f\0"
    length = struct.unpack(">H", data[scan + 2 : scan + 4])[0]
    first_only = data[:scan] + header + b"\0\0" + data[scan + 2 + length :]
    assert reason_of(first_only) in (probe.TRUNCATED, probe.CORRUPT)


def test_scan_bombs_are_refused() -> None:
    data = encoded(GREY, "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    many = data[:scan] + data[scan:-2] * 200 + data[-2:]
    assert reason_of(many) == probe.CORRUPT


def test_jpeg_metadata_is_not_shown_to_the_decoder() -> None:
    noisy = encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", comment=b"hello", icc_profile=bytes(90_000))
    header = read_header(noisy)
    assert header.pixel_data == SAMPLES["jpeg"]
    assert header.exif == b"II*\0\xff\xff\xff\xff"
    assert header.icc == bytes(90_000)


def test_incomplete_profiles_are_no_profiles() -> None:
    data = encoded(RGB, "JPEG", icc_profile=bytes(90_000))
    second = data.index(b"ICC_PROFILE\0\x02")
    assert read_header(data[: second + 12] + b"\x07" + data[second + 13 :]).icc is None


def test_tables_redefined_between_scans_belong_to_the_scan_before_which_they_stand() -> None:
    def table(value: int) -> bytes:
        return b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([value] * 64)

    def scan(component: int) -> bytes:
        return b"\xff\xda" + struct.pack(">HBBB", 8, 1, component, 0) + b"\0\x3f\0" + b"\x2b"

    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + b"\1\x11\0" + b"\2\x11\0" + b"\3\x11\0"
    data = b"\xff\xd8" + table(5) + frame + scan(1) + table(9) + scan(2) + scan(3) + b"\xff\xd9"
    facts = read_header(data).jpeg
    assert facts is not None
    assert [table[0] for table in facts.tables] == [5, 9, 9]


@pytest.mark.parametrize(
    ("options", "is_rgb"), [({}, False), ({"keep_rgb": True}, True), ({"keep_rgb": True, "quality": 30}, True)]
)
def test_rgb_components_are_told_from_luma_and_chroma(options: dict[str, object], is_rgb: bool) -> None:
    facts = read_header(encoded(RGB, "JPEG", **options)).jpeg
    assert facts is not None
    assert facts.is_rgb == is_rgb


def test_formats_are_told_by_content() -> None:
    assert {name: sniff_format(data) for name, data in SAMPLES.items()} == {
        name: "webp" if name == "webp with exif" else name.split()[-1] for name in SAMPLES
    }


def test_hostile_containers_take_bounded_time() -> None:
    empty_chunk = png_chunk(b"teXt", b"")
    started = time.perf_counter()
    assert reason_of(SAMPLES["png"][:33] + empty_chunk * 1_500_000) == probe.CORRUPT
    assert reason_of(b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000) == probe.CORRUPT
    assert reason_of(b"\xff\xd8" + b"\xff" * 20_000_000) == probe.TRUNCATED
    assert reason_of(b"\xff\xd8\xff\xd0" + b"\xff\xd0" * 5_000_000) == probe.TRUNCATED
    assert reason_of(b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\0" * 2_000_000) == probe.CORRUPT
    assert time.perf_counter() - started < 60


@given(st.sampled_from(sorted(SAMPLES)), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_files_never_raise_and_never_warn(name: str, draw: st.DataObject) -> None:
    data = bytearray(SAMPLES[name])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_picture(bytes(data))
    if isinstance(found, Unsuitable):
        assert found.reason in REASONS
    else:
        assert found.pixels.shape[:2] == (found.facts.height, found.facts.width)
        assert max(found.pixels.shape[:2]) <= MAX_SIDE


@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:12] for data in SAMPLES.values())]))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_with_a_reason(noise: bytes, start: bytes) -> None:
    with contextlib.suppress(Refused):
        read_header(start + noise)
