"""Listing directories, reading pictures, writing them back."""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.errors import ArchiveError
from zippy_batch.images import probe
from zippy_batch.images.pixels import (
    Facts,
    JpegTables,
    Picture,
    Unsuitable,
    decode_written,
    estimate_jpeg_quality,
    read_picture,
    restored_path,
    write_picture,
)

EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""Orientation 6: to be turned by 90 degrees."""


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[np.uint8], format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def picture_of(data: bytes) -> Picture:
    found = read_picture(data)
    assert isinstance(found, Picture), found
    return found


# ------------------------------------------------------------------------------------------------------------ real data


def real_files(shared: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (shared / folder).rglob("*") if path.is_file())


_ODD_PICTURES = {
    "Channel_digital_image_CMYK_color_no_profile.jpg", "booleanTest.jpg", "cmyk_001286.jpg", "cmyk_001360.jpg",
    "cmyk_001447.jpg", *(f"exif_Landscape_{i}.jpg" for i in range(9)),
    "grayscale_16x24_sampling2x2.jpg", "grayscale_long.jpg", "hopper.bmp", "hopper.jpg",
    "hopper.tif", "hopper.webp", "hopper_16bit_qtables.jpg", "hopper_gray.jpg",
    "hopper_idat_after_image_end.png", "hopper_orientation_2.jpg", "hopper_orientation_6.jpg", "icc_profile_big.jpg",
    "invalid-exif.jpg", "jpeg_ff00_header.jpg", "junk_jpeg_header.jpg", "mjpeg.jpg", "multiple_exif.jpg",
    "pil_sample_cmyk.jpg", "progressive3.jpg", "restarts.jpg", "rgb.jpg",
    "truncated_app14.jpg",
}  # fmt: skip
_ODD_REASONS = {
    "16-bit-grey-alpha.png": probe.DEEP,
    "65536-uint32-limit.png": probe.TOO_LARGE,
    "Flag_of_the_Netherlands-16bit.png": probe.DEEP,
    "animated-loop-3.gif": probe.ANIMATION,
    "check.svg": probe.NOT_AN_IMAGE,
    "decompression_bomb.gif": probe.TOO_LARGE,
    "empty.jpg": probe.EMPTY,
    "extraneous-data.jpg": probe.CORRUPT,
    "full-transparent.png": probe.TRANSPARENCY,
    "giant-image.jpg": probe.TOO_LARGE,
    "grey-8bit-alpha.png": probe.ALPHA,
    "hopper.Lab.tif": probe.COLOUR,
    "hopper_bad_exif.jpg": probe.CORRUPT,
    "hopper_16bit.pgm": probe.NOT_AN_IMAGE,
    "partial_progressive.jpg": probe.CORRUPT,
    "rotating-squares.webp": probe.ANIMATION,
    "tbgn2c16.png": probe.DEEP,
    "truncated.jpg": probe.TRUNCATED,
    "truncated.png": probe.TRUNCATED,
    "truncated_jpeg.jpg": probe.TRUNCATED,
    "with-alpha.png": probe.ALPHA,
    "ycck.jpg": probe.CMYK_PROFILE,
}


def test_odd_files_are_pictures_or_have_a_reason(shared: Path) -> None:
    files = real_files(shared, "odd")
    assert len(files) > 70
    for path in files:
        data = path.read_bytes()
        started = time.perf_counter()
        found = read_picture(data)
        assert time.perf_counter() - started < 5, path.name
        if path.name in _ODD_PICTURES:
            assert isinstance(found, Picture), (path.name, found)
        else:
            assert isinstance(found, Unsuitable), path.name
            expected = _ODD_REASONS.get(path.name, found.reason)
            assert found.reason == expected, path.name
            assert found.reason in probe.REASONS


_READ_ODD = """
import resource, sys
from pathlib import Path
from zippy_batch.images.pixels import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        read_picture(path.read_bytes())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_odd_files_take_little_memory_and_print_nothing(shared: Path) -> None:
    command = [sys.executable, "-W", "always", "-c", _READ_ODD, str(shared / "odd")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stderr == ""
    assert int(result.stdout) < 200, "MiB above what the imports take"


def test_odd_pictures_come_back_with_their_metadata(shared: Path) -> None:
    for path in real_files(shared, "odd"):
        picture = read_picture(path.read_bytes())
        if isinstance(picture, Unsuitable) or picture.pixels.size > 3_000_000:
            continue
        for format in ("jpeg", "png", "webp"):
            written = write_picture(picture.pixels, picture.facts, format)
            again = picture_of(written)
            assert (again.facts.exif, again.facts.icc) == (picture.facts.exif, picture.facts.icc), path.name
            assert again.facts.mode == ("RGB" if format == "webp" else picture.facts.mode)
            decoded = decode_written(written, picture.pixels.ndim == 2)
            assert decoded.shape == picture.pixels.shape
            if format == "png":
                assert np.array_equal(decoded, picture.pixels)
            if format == "jpeg" and picture.facts.format == "jpeg":
                assert again.facts.jpeg_tables == picture.facts.jpeg_tables, path.name


@pytest.mark.parametrize("folder", ["celebF", "celeba", "congress", "lfw_gray", "synthetic", "utk"])
def test_real_faces_come_back_with_their_own_tables(shared: Path, folder: str) -> None:
    files = real_files(shared, f"faces/test/{folder}")[:60]
    sizes = []
    for path in files:
        data = path.read_bytes()
        picture = picture_of(data)
        assert picture.facts.mode == ("L" if folder == "lfw_gray" else "RGB")
        written = write_picture(picture.pixels, picture.facts)
        assert read_jpeg(written) == read_jpeg(data), path.name
        error = decode_written(written, picture.pixels.ndim == 2).astype(float) - picture.pixels
        assert (error**2).mean() < 20, "on its own lattice a JPEG hardly changes"
        sizes.append(len(written) / len(data))
    assert np.mean(sizes) < 1.1


def read_jpeg(data: bytes) -> tuple[object, ...]:
    """What Pillow knows of a JPEG's tables and layers, as a second opinion."""
    with Image.open(io.BytesIO(data)) as image:
        layers = [(h, v) for _, h, v, _ in image.layer]  # type: ignore[attr-defined]
        tables = [image.quantization[layer[3]] for layer in image.layer]  # type: ignore[attr-defined]
        return layers, tables, image.size, image.mode


# -------------------------------------------------------------------------------------------------------------- reading


def test_pixels_keep_their_stored_orientation_and_the_tag() -> None:
    pixels = smooth(20, 30)
    for format in ("JPEG", "PNG", "WEBP"):
        picture = picture_of(encoded(pixels, format, exif=b"Exif\0\0" + EXIF))
        assert picture.pixels.shape == (20, 30, 3)
        assert picture.facts.exif == EXIF
        for target in ("jpeg", "png", "webp"):
            with Image.open(io.BytesIO(write_picture(picture.pixels, picture.facts, target))) as image:
                assert image.size == (30, 20)
                assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_orientation_becomes_exif(compression: str | None) -> None:
    pixels = smooth(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A camera"
    if compression is None:  # Pillow cannot write a directory of EXIF tags into a compressed TIFF
        exif[0x8769] = {0x9003: "2020:01:02 03:04:05"}
    picture = picture_of(encoded(pixels, "TIFF", exif=exif.tobytes(), compression=compression))
    assert np.array_equal(picture.pixels, pixels), "not turned"
    with Image.open(io.BytesIO(write_picture(picture.pixels, picture.facts, "png"))) as image:
        restored = image.getexif()
        assert (restored[0x0112], restored[0x010F]) == (6, "A camera")
        assert compression or restored.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
        assert 0x0111 not in restored, "nothing about strips"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_grey_in_colour_is_read_as_one_channel_and_written_as_three(format: str) -> None:
    grey = smooth(19, 23)[..., 1]
    options = {"lossless": True} if format == "WEBP" else {}
    picture = picture_of(encoded(np.repeat(grey[..., None], 3, axis=2), format, **options))
    assert picture.pixels.shape == (19, 23)
    assert picture.facts.mode == "RGB"
    for target in ("jpeg", "png", "webp"):
        written = write_picture(picture.pixels, picture.facts, target)
        with Image.open(io.BytesIO(written)) as image:
            assert image.mode == "RGB"
        decoded = decode_written(written, grey=True)
        assert decoded.shape == (19, 23)
        assert np.abs(decoded.astype(int) - picture.pixels).mean() < 3


def test_almost_grey_is_colour() -> None:
    pixels = np.repeat(smooth(9, 9)[..., :1], 3, axis=2)
    pixels[8, 8, 2] ^= 1
    assert picture_of(encoded(pixels, "PNG")).pixels.shape == (9, 9, 3)


def test_grey_files_stay_grey() -> None:
    grey = smooth(19, 23)[..., 1]
    for format in ("JPEG", "PNG", "TIFF", "BMP"):
        picture = picture_of(encoded(grey, format))
        assert picture.pixels.shape == (19, 23)
        if format != "BMP":  # greyscale in a BMP is a palette
            assert picture.facts.mode == "L"
            with Image.open(io.BytesIO(write_picture(picture.pixels, picture.facts))) as image:
                assert image.mode == "L"


def test_pixels_may_be_written_to() -> None:
    for format in ("JPEG", "PNG"):
        picture_of(encoded(smooth(8, 8), format)).pixels[0, 0] = 0


def test_cmyk_without_a_profile_becomes_rgb() -> None:
    stream = io.BytesIO()
    Image.fromarray(smooth(16, 16)).convert("CMYK").save(stream, "JPEG", quality=100)
    picture = picture_of(stream.getvalue())
    assert picture.facts.mode == "RGB"
    assert np.abs(picture.pixels.astype(int) - smooth(16, 16)).mean() < 3


def test_a_text_named_like_a_picture_is_a_value_not_an_error() -> None:
    assert read_picture(b"not a jpeg") == Unsuitable(probe.NOT_AN_IMAGE, None, None, None)


def test_threads_may_read_at_once() -> None:
    sources = [encoded(smooth(30, 30, i), format) for i in range(8) for format in ("JPEG", "TIFF", "PNG")]
    expected = [picture_of(data).pixels for data in sources]
    failures: list[int] = []

    def read_all() -> None:
        for _ in range(5):
            failures.extend(
                i for i, data in enumerate(sources) if not np.array_equal(picture_of(data).pixels, expected[i])
            )

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_results_pickle() -> None:
    picture = picture_of(encoded(smooth(8, 8)))
    again = pickle.loads(pickle.dumps(picture))
    assert again.facts == picture.facts
    assert np.array_equal(again.pixels, picture.pixels)


# -------------------------------------------------------------------------------------------------------------- writing


def test_suffix_is_appended_where_the_format_changes() -> None:
    assert restored_path(b"x/a.jpeg", "jpeg", "jpeg") == b"x/a.jpeg"
    assert restored_path(b"x/a.png", "png", "jpeg") == b"x/a.png.jpg"
    assert restored_path(b"x/a.jpg", "jpeg", "png") == b"x/a.jpg.png"
    assert restored_path(b"a", "gif", "webp") == b"a.webp"
    assert restored_path(b"a.webp", "webp", "webp") == b"a.webp"


def test_a_path_that_ends_as_the_new_format_does_gets_no_second_suffix() -> None:
    assert restored_path(b"a.jpg", "png", "jpeg") == b"a.jpg"
    assert restored_path(b"x/A.JPEG", "webp", "jpeg") == b"x/A.JPEG"
    assert restored_path(b"a.png", "jpeg", "png") == b"a.png"
    assert restored_path(b"a.png", "jpeg", "webp") == b"a.png.webp"


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [1, 30, 75, 100])
def test_tables_and_subsampling_survive(subsampling: int, quality: int) -> None:
    data = encoded(smooth(33, 41), quality=quality, subsampling=subsampling)
    picture = picture_of(data)
    assert picture.facts.jpeg_quality == quality
    assert read_jpeg(write_picture(picture.pixels, picture.facts)) == read_jpeg(data)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_unusual_tables_survive(count: int) -> None:
    rng = np.random.default_rng(count)
    tables = rng.integers(1, 256, (count, 64)).tolist()
    data = encoded(smooth(16, 16), qtables=tables, subsampling=0)
    picture = picture_of(data)
    assert read_jpeg(write_picture(picture.pixels, picture.facts))[:2] == read_jpeg(data)[:2]


def test_rgb_jpegs_stay_rgb() -> None:
    data = encoded(smooth(16, 16), keep_rgb=True, quality=60)
    picture = picture_of(data)
    written = write_picture(picture.pixels, picture.facts)
    facts = probe.read_header(written).jpeg
    assert facts is not None
    assert facts.is_rgb
    assert picture_of(written).facts.jpeg_tables == picture.facts.jpeg_tables


def test_quality_overrides_the_tables() -> None:
    picture = picture_of(encoded(smooth(16, 16), quality=75))
    again = picture_of(write_picture(picture.pixels, picture.facts, jpeg_quality=40))
    assert again.facts.jpeg_quality == 40
    assert again.facts.jpeg_tables is not None
    assert JpegTables.from_bytes(again.facts.jpeg_tables).sampling == ((1, 1), (1, 1), (1, 1))


def test_without_tables_quality_is_95() -> None:
    picture = picture_of(encoded(smooth(16, 16), "PNG"))
    assert picture.facts.jpeg_tables is None
    assert picture_of(write_picture(picture.pixels, picture.facts)).facts.jpeg_quality == 95


def test_huffman_tables_are_optimised() -> None:
    picture = picture_of(encoded(smooth(42, 42), optimize=False))
    assert len(write_picture(picture.pixels, picture.facts)) < len(encoded(smooth(42, 42), optimize=False)) - 200


def test_noise_on_a_fine_lattice_is_written_all_the_same() -> None:
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (1024, 1024, 3))
    data = encoded(noise, quality=100, subsampling=0)
    picture = picture_of(data)
    assert read_jpeg(write_picture(picture.pixels, picture.facts)) == read_jpeg(data)


@pytest.mark.parametrize("size", [1, 65527, 65528, 200_000, 2_000_000, probe.MAX_PROFILE_BYTES])
def test_metadata_of_any_size_comes_back(size: int) -> None:
    blob = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    picture = picture_of(encoded(smooth(8, 8), "PNG"))
    facts = Facts("png", "RGB", 8, 8, exif=blob, icc=blob)
    for format in ("jpeg", "png", "webp"):
        again = picture_of(write_picture(picture.pixels, facts, format))
        assert again.facts.exif == blob, format
        assert again.facts.icc == blob, format
        decode_written(write_picture(picture.pixels, facts, format), grey=False)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(["jpeg", "png", "webp"]))
@settings(max_examples=60, deadline=None)
def test_any_shape_is_written_and_read(height: int, width: int, grey: bool, format: str) -> None:
    pixels = smooth(height, width)
    facts = Facts("png", "L" if grey else "RGB", width, height)
    shown = pixels[..., 0] if grey else pixels
    decoded = decode_written(write_picture(shown, facts, format), grey)
    assert decoded.shape == shown.shape
    if format == "png":
        assert np.array_equal(decoded, shown)


def test_colour_cannot_be_written_as_grey() -> None:
    with pytest.raises(ValueError, match="greyscale"):
        write_picture(smooth(8, 8), Facts("png", "L", 8, 8))


# --------------------------------------------------------------------------------------------------------- JPEG tables


def test_table_bytes_are_as_specified() -> None:
    luma, chroma = tuple(range(1, 65)), (99,) * 64
    tables = JpegTables(False, ((2, 2), (1, 1), (1, 1)), (luma, chroma, chroma))
    blob = tables.to_bytes()
    assert blob == bytes([0, 3, 0x22, 0x11, 0x11, 0, 1, 1, *luma, *chroma])
    assert JpegTables.from_bytes(blob) == tables
    grey = JpegTables(False, ((1, 1),), (luma,))
    assert grey.to_bytes() == bytes([0, 1, 0x11, 0, *luma])
    assert JpegTables.from_bytes(grey.to_bytes()) == grey


@given(st.binary(max_size=210))
@settings(max_examples=300)
def test_damaged_table_bytes_are_archive_errors(blob: bytes) -> None:
    with pytest.raises(ArchiveError):
        JpegTables.from_bytes(blob)


@given(st.integers(0, 135), st.integers(0, 255))
def test_changed_table_bytes_are_errors_or_other_tables(at: int, value: int) -> None:
    blob = bytearray(JpegTables(False, ((2, 2), (1, 1), (1, 1)), ((7,) * 64, (9,) * 64, (9,) * 64)).to_bytes())
    blob[at] = value
    with contextlib.suppress(ArchiveError):
        assert JpegTables.from_bytes(bytes(blob)).to_bytes() == blob


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_quality_is_estimated_exactly_for_standard_tables(mode: str) -> None:
    image = Image.fromarray(smooth(8, 8)).convert(mode)
    for quality in range(1, 101):
        assert picture_of(encoded(np.asarray(image), quality=quality)).facts.jpeg_quality == quality


def test_quality_of_other_tables_is_near_or_unknown() -> None:
    fine = (2,) * 64
    assert 95 < (estimate_jpeg_quality((fine, fine)) or 0) <= 100
    assert estimate_jpeg_quality(((151,) * 64,)) is None
    assert estimate_jpeg_quality(()) is None
