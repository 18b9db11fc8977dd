"""Listing directories, reading pictures, writing them back."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
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

from zippy_batch import headers, images
from zippy_batch.errors import ArchiveError, SourceError, UsageError
from zippy_batch.images import (
    Facts,
    JpegTables,
    Listing,
    Picture,
    SourceFile,
    Unsuitable,
    decode_written,
    display_path,
    estimate_jpeg_quality,
    list_files,
    read_file,
    read_picture,
    restored_path,
    safe_relative_path,
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


# -------------------------------------------------------------------------------------------------------------- listing


def paths_of(listing: Listing) -> list[bytes]:
    return [file.path for file in listing.files]


def test_listing_is_sorted_by_bytes_and_complete(tmp_path: Path) -> None:
    names = [
        "b/2.jpg",
        "b/1.jpg",
        "b.jpg",
        "B.jpg",
        "a b/c'd\n\"e.jpg",
        "-dash",
        ".hidden",
        "ünï/文字.png",
        "b/x/y",
        "a:b*?",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "nothing" / "at all").mkdir(parents=True)
    listing = list_files(tmp_path)
    assert paths_of(listing) == sorted(os.fsencode(name) for name in names)
    assert listing.empty_directories == 1
    for file in listing.files:
        assert read_file(tmp_path, file) == file.path
        assert file.size_bytes == len(file.path)
        assert file.mtime_s == os.stat(os.path.join(os.fsencode(tmp_path), file.path)).st_mtime_ns // 10**9


def test_names_that_are_not_text_are_kept_byte_for_byte(tmp_path: Path) -> None:
    names = [b"\xff\xfe.jpg", b"caf\xe9.jpg", b"\x80/\xc3\x28.png"]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"x")
    assert paths_of(list_files(tmp_path)) == sorted(names)


def test_times_before_1970_round_down(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    os.utime(tmp_path / "old", ns=(-1_500_000_000, -1_500_000_000))
    (file,) = list_files(tmp_path).files
    assert file == SourceFile(b"old", 0, -2)
    assert read_file(tmp_path, file) == b""


def test_links_inside_the_tree_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "people").mkdir(parents=True)
    (root / "people" / "a.jpg").write_bytes(b"face")
    (root / "relative.jpg").symlink_to("people/a.jpg")
    (root / "absolute.jpg").symlink_to(root / "people" / "a.jpg")
    (root / "folder").symlink_to("people", target_is_directory=True)
    (root / "chain").symlink_to("folder")
    listing = list_files(root)
    assert paths_of(listing) == [b"absolute.jpg", b"chain/a.jpg", b"folder/a.jpg", b"people/a.jpg", b"relative.jpg"]
    assert {read_file(root, file) for file in listing.files} == {b"face"}


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"1")
    (tmp_path / "real" / "b").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "alias").symlink_to("real")
    listing = list_files(tmp_path / "alias")
    assert paths_of(listing) == [b"a", b"b"]
    assert read_file(tmp_path / "alias", listing.files[1]) == b"1"


def test_links_that_cannot_be_followed_are_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "secret").write_bytes(b"s")
    (root / "outside.jpg").symlink_to("/etc/passwd")
    (root / "beside").symlink_to("../root-beside")
    (root / "broken.jpg").symlink_to("nowhere")
    (root / "self").symlink_to("self")
    (root / "sub" / "up").symlink_to("..")
    with pytest.raises(UsageError) as caught:
        list_files(root)
    message = str(caught.value)
    assert "5 entries" in message
    for name in ("outside.jpg: link to something outside", "beside: link to something outside", "broken.jpg: broken"):
        assert name in message
    assert "self: broken or circular" in message
    assert "sub/up: link to a directory that it is in" in message


def test_links_that_multiply_are_refused(tmp_path: Path) -> None:
    for level in range(14):
        (tmp_path / str(level)).mkdir()
    for level in range(13):
        for name in "ab":
            (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
    started = time.perf_counter()
    with pytest.raises(UsageError, match="1000 paths"):
        list_files(tmp_path)
    assert time.perf_counter() - started < 60


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        previous = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(previous)
        with pytest.raises(UsageError, match="neither a file nor a directory") as caught:
            list_files(tmp_path)
    assert "2 entries" in str(caught.value)


def test_large_files_are_refused_by_name(tmp_path: Path) -> None:
    for i in range(15):
        with (tmp_path / f"large-{i:02d}").open("wb") as stream:
            stream.truncate(images.MAX_FILE_BYTES + 1)
    with (tmp_path / "just-right").open("wb") as stream:
        stream.truncate(images.MAX_FILE_BYTES)
    with pytest.raises(UsageError) as caught:
        list_files(tmp_path)
    message = str(caught.value)
    assert "15 entries" in message
    assert "large-00: 1073741825 bytes" in message
    assert "and 5 more" in message
    assert "just-right" not in message


def test_unreadable_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the super-user may read anything
    with pytest.raises(UsageError, match=r"one entry .*\n +secret.jpg: may not be read"):
        list_files(tmp_path)


def test_names_that_could_not_be_restored_are_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "NUL").write_bytes(b"x")
    with pytest.raises(UsageError, match="NUL: reserved name"):
        list_files(tmp_path)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_only_a_directory_can_be_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="not a directory"):
        list_files(tmp_path / name)


def test_deep_trees_are_walked(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"1")
    (file,) = list_files(tmp_path).files
    assert file.path == b"d/" * 300 + b"f"


def test_changed_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    (file,) = list_files(tmp_path).files
    os.utime(path, (1, 1))
    with pytest.raises(SourceError, match=r"a\.jpg: changed during the run"):
        read_file(tmp_path, file)
    path.write_bytes(b"123456")
    with pytest.raises(SourceError, match="expected 5 bytes"):
        read_file(tmp_path, file)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        read_file(tmp_path, file)
    os.mkfifo(path)
    with pytest.raises(SourceError, match="changed"):
        read_file(tmp_path, file)


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    [
        b"", b"/", b"/etc/passwd", b"..", b"../a", b"a/../b", b"a/..", b".", b"./a", b"a//b", b"a/", b"a/./b", b"a\0b",
        b"..\\a", b"a\\..\\..\\b", b"\\a", b"\\\\host\\share", b"C:\\a", b"c:/a", b"z:", b"CON", b"nul", b"a/Aux",
        b"com1", b"a/LPT9/b", b"con ", b"nul.",
    ],
)  # fmt: skip
def test_paths_that_leave_the_destination_are_refused(path: bytes) -> None:
    with pytest.raises(ArchiveError, match="refused to restore"):
        safe_relative_path(path)


@pytest.mark.parametrize(
    "path",
    [
        b"a", b"a/b/c.jpg", b"...", b"..a", b"a..", b".hidden", b"-rf", b"a b", b"a\nb", b"a:b", b"CONSOLE", b"con.jpg",
        b"nul.tar.gz", b"com10", b"a\\b", b"\xff\xfe", "ü/文.jpg".encode(), b"~", b"$HOME",
    ],
)  # fmt: skip
def test_odd_but_harmless_paths_are_taken(path: bytes) -> None:
    safe_relative_path(path)


@pytest.mark.parametrize("path", [b"con.jpg", b"a:b", b"a.", b"a ", b"a/b?", b"a\\b", b"x\ny"])
def test_windows_refuses_more(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    problem = images.path_problem(path)
    monkeypatch.undo()
    assert problem == "reserved name"


@given(st.binary(max_size=30))
@settings(max_examples=500)
def test_safe_paths_stay_inside(path: bytes) -> None:
    try:
        safe_relative_path(path)
    except ArchiveError:
        return
    joined = os.path.normpath(os.path.join(b"/destination", path))
    assert joined == b"/destination/" + path


def test_paths_are_shown_as_text() -> None:
    assert display_path("ü/文.jpg".encode()) == "ü/文.jpg"
    assert display_path(b"caf\xe9.jpg") == "caf\\xe9.jpg"
    assert display_path(b"a\nb") == "a\nb"
    assert display_path("\ud800".encode("utf-8", "surrogatepass")).encode()


def test_suffix_is_appended_where_the_format_changes() -> None:
    assert restored_path(b"x/a.jpeg", "jpeg", "jpeg") == b"x/a.jpeg"
    assert restored_path(b"x/a.png", "png", "jpeg") == b"x/a.png.jpg"
    assert restored_path(b"x/a.jpg", "jpeg", "png") == b"x/a.jpg.png"
    assert restored_path(b"a", "gif", "webp") == b"a.webp"
    assert restored_path(b"a.webp", "webp", "webp") == b"a.webp"


# ------------------------------------------------------------------------------------------------------------ real data


def real_files(shared: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (shared / folder).rglob("*") if path.is_file())


_ODD_PICTURES = {
    "Channel_digital_image_CMYK_color_no_profile.jpg", "booleanTest.jpg", "cmyk_001286.jpg", "cmyk_001360.jpg",
    "cmyk_001447.jpg", "f6b4389c3cf0f5997b2e5a4b905aea8d.jpg", *(f"exif_Landscape_{i}.jpg" for i in range(9)),
    "grayscale_16x24_sampling2x2.jpg", "grayscale_long.jpg", "hopper.bmp", "hopper.jpg",
    "hopper.tif", "hopper.webp", "hopper_16bit_qtables.jpg", "hopper_gray.jpg",
    "hopper_idat_after_image_end.png", "hopper_orientation_2.jpg", "hopper_orientation_6.jpg", "icc_profile_big.jpg",
    "invalid-exif.jpg", "jpeg_ff00_header.jpg", "junk_jpeg_header.jpg", "mjpeg.jpg", "multiple_exif.jpg",
    "partial_progressive.jpg", "pil_sample_cmyk.jpg", "progressive3.jpg", "restarts.jpg", "rgb.jpg",
    "truncated_app14.jpg",
}  # fmt: skip
_ODD_REASONS = {
    "16-bit-grey-alpha.png": headers.DEEP,
    "65536-uint32-limit.png": headers.TOO_LARGE,
    "Flag_of_the_Netherlands-16bit.png": headers.DEEP,
    "animated-loop-3.gif": headers.ANIMATION,
    "check.svg": headers.NOT_AN_IMAGE,
    "decompression_bomb.gif": headers.TOO_LARGE,
    "empty.jpg": headers.EMPTY,
    "extraneous-data.jpg": headers.CORRUPT,
    "full-transparent.png": headers.TRANSPARENCY,
    "giant-image.jpg": headers.TOO_LARGE,
    "grey-8bit-alpha.png": headers.ALPHA,
    "hopper.Lab.tif": headers.COLOUR,
    "hopper_bad_exif.jpg": headers.CORRUPT,
    "hopper_16bit.pgm": headers.NOT_AN_IMAGE,
    "rotating-squares.webp": headers.ANIMATION,
    "tbgn2c16.png": headers.TRANSPARENCY,
    "truncated.jpg": headers.TRUNCATED,
    "truncated.png": headers.TRUNCATED,
    "truncated_jpeg.jpg": headers.TRUNCATED,
    "with-alpha.png": headers.ALPHA,
    "ycck.jpg": headers.CMYK_PROFILE,
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
            assert found.reason in headers.REASONS


_READ_ODD = """
import resource, sys
from pathlib import Path
from zippy_batch.images import read_picture
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
    assert read_picture(b"not a jpeg") == Unsuitable(headers.NOT_AN_IMAGE, None, None, None)


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
    facts = headers.read_header(written).jpeg
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


@pytest.mark.parametrize("size", [1, 65527, 65528, 200_000, 2_000_000, headers.MAX_PROFILE_BYTES])
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
