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
from zippy_batch.jpeg.probe import Scan, is_whole


def jpeg(height: int, width: int, grey: bool = False, seed: int = 0, **options: object) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    (image.convert("L") if grey else image).save(stream, "JPEG", **options)
    return stream.getvalue()


def scan_start(data: bytes) -> int:
    return data.index(b"\xff\xda") + 2 + int.from_bytes(data[data.index(b"\xff\xda") + 2 :][:2], "big")


# one component, one block a unit; DC codes: 0 -> size 0, 10 -> size 2; AC codes: 0 -> end of block, 10 -> run 0 size 1
DC = bytes([1, 1, *[0] * 14, 0, 2])
AC = bytes([1, 1, *[0] * 14, 0x00, 0x01])


@pytest.mark.parametrize(
    ("bits", "units", "whole"),
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
def test_codes_are_walked_as_the_standard_says(bits: str, units: int, whole: bool) -> None:
    packed = bits.replace(" ", "")
    packed += "1" * (-len(packed) % 8)
    data = bytes(int(packed[i : i + 8], 2) for i in range(0, len(packed), 8)).replace(b"\xff", b"\xff\0")
    assert is_whole(Scan(data, ((0, 1),), (DC, AC), units, 0)) == whole


def test_restart_markers_must_come_in_order_and_number() -> None:
    piece = b"\x3f"  # two bits for a block, six of padding
    tables = (DC, AC)

    def whole(*pieces: bytes, units: int = 3) -> bool:
        return is_whole(Scan(b"".join(pieces), ((0, 1),), tables, units, 1))

    assert whole(piece, b"\xff\xd0", piece, b"\xff\xd1", piece)
    assert whole(piece, b"\xff\xff\xd0", piece, b"\xff\xd1", piece)
    assert not whole(piece, b"\xff\xd1", piece, b"\xff\xd0", piece)
    assert not whole(piece, b"\xff\xd0", piece)
    assert not whole(piece, b"\xff\xd0", piece, b"\xff\xd1", piece, units=2)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([5, 75, 100]),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_sound_files_are_whole(
    height: int, width: int, grey: bool, subsampling: int, quality: int, optimize: bool, restart: int
) -> None:
    options: dict[str, object] = {"quality": quality, "optimize": optimize, "restart_marker_blocks": restart}
    if not grey:
        options["subsampling"] = subsampling
    assert isinstance(read_picture(jpeg(height, width, grey, seed=height, **options)), Picture)


def test_data_cut_out_of_a_scan_is_noticed() -> None:
    data = jpeg(100, 100)
    start = scan_start(data)
    for kept in range(start, len(data) - 10, 7):
        found = read_picture(data[:kept] + b"\xff\xd9")
        assert isinstance(found, Unsuitable)
        assert found.reason in (probe.CORRUPT, probe.TRUNCATED)


def test_most_overwritten_data_is_noticed() -> None:
    data = jpeg(200, 200, quality=90)
    start, rng = scan_start(data), random.Random(0)
    noticed = 0
    for _ in range(100):
        at = rng.randrange(start, len(data) - 66)
        damaged = data[:at] + rng.randbytes(64) + data[at + 64 :]
        noticed += isinstance(read_picture(damaged), Unsuitable)
    assert noticed > 80


@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_noise_is_walked_without_harm(data: bytes, symbols: bytes, units: int, interval: int) -> None:
    counts = bytes(min(255, value) for value in (symbols + bytes(16))[:16])
    table = counts + bytes(sum(counts)) if sum(counts) <= 256 else DC
    assert is_whole(Scan(data, ((0, 1), (1, 0)), (table, AC), units, interval)) in (True, False)


def test_real_photographs_are_whole(shared: Path) -> None:
    files = [path for folder in ("faces/test", "photos") for path in sorted((shared / folder).rglob("*.jpg"))]
    refused = [path.name for path in files[::3] if isinstance(read_picture(path.read_bytes()), Unsuitable)]
    assert len(files) > 1000
    assert not refused
