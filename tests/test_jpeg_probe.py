"""Damage inside the entropy-coded data of JPEG files."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zippy_batch.images import probe
from zippy_batch.images.pixels import Picture, Unsuitable, read_picture
from zippy_batch.jpeg.faults import Malformed
from zippy_batch.jpeg.probe import JpegProbe


def jpeg(height: int, width: int, grey: bool = False, seed: int = 0, **options: object) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    (image.convert("L") if grey else image).save(stream, "JPEG", **options)
    return stream.getvalue()


def scan_start(data: bytes) -> int:
    return data.index(b"\xff\xda") + 2 + int.from_bytes(data[data.index(b"\xff\xda") + 2 :][:2], "big")


# DC codes: 0 -> size 0, 10 -> size 2; AC codes: 0 -> end of block, 10 -> run 0 size 1
DC = bytes([1, 1, *[0] * 14, 0, 2])
AC = bytes([1, 1, *[0] * 14, 0x00, 0x01])


def segment(marker: int, body: bytes) -> bytes:
    return bytes([255, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def grey_file(scan: bytes, blocks: int, restart: int = 0, ac: bytes = AC) -> bytes:
    """A file of one component, a row of so many blocks, with these entropy-coded data."""
    head = segment(0xDB, b"\0" + bytes([1]) * 64) + segment(
        0xC0, bytes([8, 0, 8, *(8 * blocks).to_bytes(2, "big")]) + b"\1\1\x11\0"
    )
    head += segment(0xC4, b"\0" + DC + b"\x10" + ac) + segment(0xDD, restart.to_bytes(2, "big"))
    return b"\xff\xd8" + head + segment(0xDA, b"\1\1\0\0\x3f\0") + scan + b"\xff\xd9"


def is_whole(data: bytes) -> bool:
    try:
        JpegProbe().read(data)
    except Malformed:
        return False
    return True


@pytest.mark.parametrize(
    ("bits", "blocks", "whole"),
    [
        ("0 0", 1, True),
        ("10 11 0", 1, True),
        ("10 11 10 1 10 0 0", 1, True),
        ("10 11 10 1 10 0 0" + " 0 0", 2, True),
        ("10 11 10 1 10 0 0", 2, False),
        ("0 11", 1, False),
        ("0" + " 10 1" * 63, 1, True),
        ("0" + " 10 1" * 64, 2, False),
        ("0 0" + " 1" * 6 + " 1" * 8 * 4, 1, True),
        ("0 0" + " 1" * 6 + " 1" * 8 * 5, 1, False),
        ("", 1, False),
    ],
)
def test_codes_are_walked_as_the_standard_says(bits: str, blocks: int, whole: bool) -> None:
    packed = bits.replace(" ", "")
    packed += "1" * (-len(packed) % 8)
    data = bytes(int(packed[i : i + 8], 2) for i in range(0, len(packed), 8)).replace(b"\xff", b"\xff\0")
    assert is_whole(grey_file(data, blocks)) == whole


def test_restart_markers_must_come_in_order_and_number() -> None:
    piece = b"\x3f"  # two bits for a block, six of padding

    def whole(*pieces: bytes, blocks: int = 3) -> bool:
        return is_whole(grey_file(b"".join(pieces), blocks, 1))

    assert whole(piece, b"\xff\xd0", piece, b"\xff\xd1", piece)
    assert whole(piece, b"\xff\xff\xd0", piece, b"\xff\xd1", piece)
    assert whole(piece, b"\xff\xd0", piece, b"\xff\xd1", piece, b"\xff\xd2")
    assert not whole(piece, b"\xff\xd1", piece, b"\xff\xd0", piece)
    assert not whole(piece, b"\xff\xd0", piece)
    assert not whole(piece, b"\xff\xd0", piece, b"\xff\xd1", piece, blocks=4)
    assert not whole(piece, b"\xff\xd0", piece, b"\xff\xd1", piece, b"\xff\xd2", piece * 5)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([5, 75, 100]),
    st.booleans(),
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_sound_files_are_whole(
    height: int,
    width: int,
    grey: bool,
    subsampling: int,
    quality: int,
    optimize: bool,
    restart: int,
    progressive: bool,
) -> None:
    options: dict[str, object] = {"quality": quality, "optimize": optimize, "restart_marker_blocks": restart}
    options["progressive"] = progressive
    if not grey:
        options["subsampling"] = subsampling
    assert isinstance(read_picture(jpeg(height, width, grey, seed=height, **options)), Picture)


@pytest.mark.parametrize("progressive", [False, True])
def test_data_cut_out_of_a_scan_is_noticed(progressive: bool) -> None:
    data = jpeg(100, 100, progressive=progressive)
    start = data.rindex(b"\xff\xda") + 10 if progressive else scan_start(data)
    for kept in range(start, len(data) - 10, 7):
        found = read_picture(data[:kept] + b"\xff\xd9")
        assert isinstance(found, Unsuitable)
        assert found.reason in (probe.CORRUPT, probe.TRUNCATED)


@pytest.mark.parametrize("progressive", [False, True])
def test_most_overwritten_data_is_noticed(progressive: bool) -> None:
    data = jpeg(200, 200, quality=90, progressive=progressive)
    start, rng = scan_start(data), random.Random(0)
    noticed = 0
    for _ in range(100):
        at = rng.randrange(start, len(data) - 66)
        damaged = data[:at] + rng.randbytes(64) + data[at + 64 :]
        noticed += isinstance(read_picture(damaged), Unsuitable)
    assert noticed > 80


@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_noise_is_walked_without_harm(data: bytes, symbols: bytes, blocks: int, restart: int) -> None:
    counts = bytes(min(255, value) for value in (symbols + bytes(16))[:16])
    table = counts + bytes(sum(counts)) if sum(counts) <= 256 else DC
    assert is_whole(grey_file(data, blocks, restart, table)) in (True, False)


def test_real_photographs_are_whole(shared: Path) -> None:
    files = [path for folder in ("faces/test", "photos") for path in sorted((shared / folder).rglob("*.jpg"))]
    refused = [path.name for path in files[::3] if isinstance(read_picture(path.read_bytes()), Unsuitable)]
    assert len(files) > 1000
    assert not refused


def test_examples_of_seldom_kinds_are_whole(shared: Path) -> None:
    for path in sorted((shared / "cases/jpeg-exact").glob("*.jpg")):
        assert isinstance(read_picture(path.read_bytes()), Picture), path.name


def test_a_progressive_scan_that_refines_what_was_not_coded_is_noticed() -> None:
    data = jpeg(40, 40, progressive=True)
    last = data.rindex(b"\xff\xda")
    repeated = data[:-2] + data[last:]
    found = read_picture(repeated)
    assert isinstance(found, Unsuitable)
    assert found.reason == probe.CORRUPT
