"""JPEG files, taken apart and put together again bit for bit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zippy_batch.errors import DamagedRow
from zippy_batch.jpeg import huffman
from zippy_batch.jpeg.file import JpegImage, Unrebuildable, parse, read_frame, rebuild
from zippy_batch.jpeg.recipe import MAX_LEFT_OUT, Run, kind_of, read_recipe, write_recipe
from zippy_batch.jpeg.tables import STANDARD, Table, write_segment


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(small).astype(int) + rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def jpeg(height: int, width: int, mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture(height, width, seed).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(data: bytes, marker: int) -> int:
    """Position of the first segment of this kind."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["RGB", "L"]),
    st.fixed_dictionaries(
        {"quality": st.integers(1, 100), "optimize": st.booleans(), "subsampling": st.integers(0, 2)},
        optional={"restart_marker_blocks": st.integers(1, 9), "comment": st.binary(max_size=50)},
    ),
    st.binary(max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_a_file_comes_back_from_header_and_coefficients(
    height: int, width: int, mode: str, options: dict[str, Any], tail: bytes
) -> None:
    data = jpeg(height, width, mode, **options) + tail
    image = parse(data)
    assert rebuild(image.header, image.coefficients) == data
    frame = read_frame(image.header)
    assert (frame.height, frame.width) == (height, width)
    assert [c.shape for c in image.coefficients] == frame.shapes
    # nothing of the picture's edge is coded twice, and no table that follows from the coefficients is kept
    assert frame.shapes[0][:2] == (-(-height // 8), -(-width // 8))
    assert len(image.header) < 420 + len(tail) + len(options.get("comment", b""))


def test_coefficients_are_those_of_the_picture() -> None:
    """Against the definition: dequantised and transformed back they give the pixels that Pillow decodes."""
    data = jpeg(40, 56, "L", quality=90)
    image = parse(data)
    table = image.frame.components[0].table.astype(float)
    zigzag = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
    n = np.arange(8)
    basis = np.sqrt(np.where(n == 0, 1, 2) / 8)[:, None] * np.cos((2 * n + 1) * n[:, None] * np.pi / 16)
    blocks = np.zeros((5, 7, 64))
    blocks[..., zigzag] = image.coefficients[0] * table
    spatial = basis.T @ blocks.reshape(5, 7, 8, 8) @ basis + 128
    pixels = spatial.transpose(0, 2, 1, 3).reshape(40, 56)
    expected = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    assert np.abs(np.clip(pixels, 0, 255) - expected).max() < 1.5


def test_files_that_differ_in_the_picture_alone_share_a_header() -> None:
    for optimize in (True, False):
        headers = {parse(jpeg(42, 42, seed=seed, quality=80, optimize=optimize)).header for seed in range(10)}
        assert len(headers) == 1


def test_optimised_tables_are_not_stored() -> None:
    optimised, standard = (parse(jpeg(64, 64, optimize=o)) for o in (True, False))
    assert abs(len(optimised.header) - len(standard.header)) < 10
    assert max(len(optimised.header), len(standard.header)) < 230


def test_tables_of_their_own_are_stored() -> None:
    data = jpeg(32, 32, "L")
    at = segment(data, 0xC4)
    # exchange the last two values, which this picture does not use
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    other = data[: end - 2] + data[end - 1 : end] + data[end - 2 : end - 1] + data[end:]
    image = parse(other)
    assert rebuild(image.header, image.coefficients) == other
    assert len(image.header) > len(parse(data).header) + (end - at) - 6


def dht(tables: list[tuple[int, Table]]) -> bytes:
    return write_segment(tables)


def with_tables(data: bytes, *segments: bytes) -> bytes:
    """The file with table segments of these bytes ahead of its scan."""
    at = segment(data, 0xDA)
    return data[:at] + b"".join(segments) + data[at:]


def test_a_segment_of_hundreds_of_tables_is_kept_as_it_is() -> None:
    data = jpeg(16, 16, "L")
    crowded = with_tables(data, dht([(0, STANDARD[0])] * 300))
    image = parse(crowded)
    assert rebuild(image.header, image.coefficients) == crowded
    assert len(image.header) > 300 * 17


def test_of_many_table_segments_some_are_left_out() -> None:
    data = with_tables(jpeg(16, 16, "L"), *[dht([(0, STANDARD[0])])] * 3_000)
    image = parse(data)
    assert rebuild(image.header, image.coefficients) == data
    assert len(read_recipe(image.header).runs[0].left_out) == MAX_LEFT_OUT


def test_the_last_table_of_a_destination_counts() -> None:
    """A table that is kept, behind one of the same destination that is left out."""
    data = jpeg(32, 32, "L", quality=60)
    swapped = STANDARD[4].values.copy()
    swapped[[-1, -2]] = swapped[[-2, -1]]
    for behind in (Table(STANDARD[4].counts, swapped), Table(STANDARD[4].counts, np.roll(STANDARD[4].values, 0))):
        other = with_tables(data, dht([(4, behind)]), dht([(0, STANDARD[0])]))
        image = parse(other)
        assert rebuild(image.header, image.coefficients) == other
    # and another file's coefficients under this recipe are coded with the kept table
    kept = parse(with_tables(data, dht([(4, Table(STANDARD[4].counts, swapped))])))
    plan = read_recipe(kept.header)
    assert plan.tables[0][4].to_bytes() == Table(STANDARD[4].counts, swapped).to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.left_out.append((1, [kind_of(0, False)])), "out of place"),
        (lambda run: run.left_out.append((10**6, [kind_of(0, False)])), "does not end with a scan header"),
        (lambda run: run.left_out.extend([(2, [kind_of(0, False)])] * 40), "expected at most 32"),
        (lambda run: run.left_out.append((2, [kind_of(0, False)] * 9)), "expected at most 8"),
        (lambda run: run.left_out.append((2, [4])), "no table of the kind 4"),
        (lambda run: run.left_out.append((2, [kind_of(2, False)])), "no table of the kind 2"),
        (lambda run: setattr(run, "data", b"\xff\xff" + run.data[2:]), "does not begin as a JPEG"),
    ],
)
def test_recipes_that_no_writer_makes_are_refused(change: Callable[[Run], object], message: str) -> None:
    run = read_recipe(parse(jpeg(16, 16, "L")).header).runs[0]
    changed = Run(run.data, run.pad, [])
    change(changed)
    with pytest.raises(DamagedRow, match=message):
        read_frame(write_recipe([changed], b"\xff\xd9", padded=False))


def test_rare_symbols_get_at_most_sixteen_bits() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    frequency = np.zeros(256, np.int64)
    frequency[: len(fibonacci)] = fibonacci
    counts, values, n = huffman.optimal_table(frequency)
    assert n == counts.sum() == 30
    assert sorted(values[:n]) == list(range(30))
    # one code of all ones stays free
    assert (counts * 2.0 ** -np.arange(1, 17)).sum() <= 1 - 2.0**-16


def test_standard_tables_are_those_that_encoders_write() -> None:
    data = jpeg(16, 16)
    for key, table in STANDARD.items():
        assert bytes([key // 4 << 4 | key & 3]) + table.to_bytes() in data


def test_motion_jpeg_without_tables() -> None:
    data = jpeg(24, 24, "L")
    at = segment(data, 0xC4)
    while data[at + 1] == 0xC4:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert rebuild(parse(data).header, parse(data).coefficients) == data


def test_blocks_outside_the_picture_are_kept_where_they_are_not_alike() -> None:
    """A 24 x 24 file whose header says 17 x 17 has whole blocks beyond its edge."""
    data = bytearray(jpeg(32, 32, subsampling=2))
    at = segment(bytes(data), 0xC0)
    data[at + 5 : at + 9] = b"\0\x11\0\x11"
    image = parse(bytes(data))
    assert image.frame.shapes == [(4, 4, 64), (2, 2, 64), (2, 2, 64)]
    assert rebuild(image.header, image.coefficients) == bytes(data)


def test_padding_with_zeros() -> None:
    data = jpeg(8, 8, "L", quality=40)
    image = parse(data)
    flipped = image.header[:3] + b"\0" + image.header[4:]
    other = rebuild(flipped, image.coefficients)
    assert other != data
    assert parse(other).header == flipped


def test_missing_end_and_fill_bytes() -> None:
    data = jpeg(30, 20)
    at = segment(data, 0xDB)
    for other in (data[:-2], data[:at] + b"\xff\xff" + data[at:], data[:-2] + b"garbage"):
        assert rebuild(parse(other).header, parse(other).coefficients) == other


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG"),
        (b"\x89PNG\r\n", "not a JPEG"),
        (jpeg(16, 16, progressive=True), "progressive"),
        (jpeg(16, 16, "CMYK"), "one or three components"),
        (jpeg(64, 64)[:700], "truncated"),
        (jpeg(64, 64)[:40], "segment runs past"),
        (b"\xff\xd8\xff\xd9", "without a scan"),
    ],
)
def test_what_cannot_be_rebuilt_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unrebuildable, match=reason):
        parse(data)


SEEDS = [
    jpeg(33, 47, optimize=True),
    jpeg(20, 20, "L", restart_marker_blocks=2),
    jpeg(40, 24, subsampling=1, comment=b"hello"),
]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0, 1),
)
@settings(max_examples=400, deadline=None)
def test_damaged_files_are_proved_or_refused(data: bytes, changes: list[tuple[float, int]], cut: float) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    if cut < 0.3:
        damaged = damaged[: int(len(damaged) * (0.5 + cut))]
    try:
        image = parse(bytes(damaged))
    except Unrebuildable:
        return
    assert rebuild(image.header, image.coefficients) == bytes(damaged)


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
    st.binary(max_size=4),
    st.integers(-32768, 32767),
)
@settings(max_examples=400, deadline=None)
def test_hostile_headers_are_refused_or_give_a_file(
    data: bytes, changes: list[tuple[float, int]], extra: bytes, value: int
) -> None:
    image = parse(data)
    header = bytearray(image.header)
    for place, byte in changes:
        header[int(place * min(len(header), 250))] = byte
    coefficients = [c.copy() for c in image.coefficients]
    coefficients[0][0, 0, : len(changes)] = value
    with contextlib.suppress(DamagedRow):
        read_frame(bytes(header) + extra)
        rebuild(bytes(header) + extra, coefficients)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_is_no_header(data: bytes) -> None:
    with pytest.raises(DamagedRow):
        read_frame(data)


@pytest.mark.parametrize("folder", ["celebF", "celeba", "congress", "lfw_gray", "synthetic", "utk"])
def test_real_files(shared: Path, folder: str) -> None:
    files = sorted((shared / "faces/test" / folder).rglob("*.jpg"))[:60]
    images = [parse(path.read_bytes()) for path in files]
    assert images
    if folder != "congress":
        assert len({image.header for image in images}) == 1


def test_odd_files_are_proved_or_refused(shared: Path) -> None:
    outcomes: dict[str, int] = {}
    for path in sorted((shared / "odd").rglob("*")):
        if path.is_file():
            try:
                outcome = type(parse(path.read_bytes())).__name__
            except Unrebuildable:
                outcome = "refused"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes[JpegImage.__name__] >= 20
    assert outcomes["refused"] >= 20
