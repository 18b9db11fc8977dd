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
from zippy_batch.jpeg.file import JpegImage, Unrebuildable, parse, read_frame, rebuild
from zippy_batch.jpeg.recipe import MAX_LEFT_OUT, Run, read_recipe, write_recipe
from zippy_batch.jpeg.tables import STANDARD, Table, kind_of, optimal, write_segment


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
    swapped = STANDARD[4][:-2] + STANDARD[4][:-3:-1]
    for behind in (swapped, STANDARD[4]):
        other = with_tables(data, dht([(4, behind)]), dht([(0, STANDARD[0])]))
        image = parse(other)
        assert rebuild(image.header, image.coefficients) == other
    # and another file's coefficients under this recipe are coded with the kept table
    kept = parse(with_tables(data, dht([(4, swapped)])))
    assert read_recipe(kept.header).scans[0].tables[4] == swapped


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
    frequency = np.zeros((8, 256), np.int64)
    frequency[5, : len(fibonacci)] = fibonacci
    ((key, table),) = optimal(frequency).items()
    counts = np.frombuffer(table[:16], np.uint8)
    assert key == 5
    assert counts.sum() == len(table) - 16 == 30
    assert sorted(table[16:]) == list(range(30))
    # one code of all ones stays free
    assert (counts * 2.0 ** -np.arange(1, 17)).sum() <= 1 - 2.0**-16


def test_standard_tables_are_those_that_encoders_write() -> None:
    data = jpeg(16, 16)
    for key, table in STANDARD.items():
        assert bytes([key // 4 << 4 | key & 3]) + table in data


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
    flipped = image.header[:3] + bytes([image.header[3] & ~1]) + image.header[4:]
    other = rebuild(flipped, image.coefficients)
    assert other != data
    assert parse(other).header == flipped


def test_missing_end_and_fill_bytes() -> None:
    data = jpeg(30, 20)
    at = segment(data, 0xDB)
    for other in (data[:-2], data[:at] + b"\xff\xff" + data[at:], data[:-2] + b"garbage"):
        assert rebuild(parse(other).header, parse(other).coefficients) == other


def framed(
    marker: int,
    height: int = 8,
    width: int = 8,
    components: int = 1,
    precision: int = 8,
    extra: bytes = b"",
    scan: bytes = b"",
) -> bytes:
    """A file with a frame of this kind, and a scan of its first component."""
    quantisation = b"\xff\xdb\0\x43\0" + bytes([1]) * 64
    frame = bytes([precision, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), components])
    frame += b"".join(bytes([k + 1, 0x11, 0]) for k in range(components))
    start = b"\xff\xd8" + quantisation + bytes([255, marker]) + (len(frame) + 2).to_bytes(2, "big") + frame + extra
    return start + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + scan + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG"),
        (b"\x89PNG\r\n", "not a JPEG"),
        (framed(0xC9), "arithmetic-coded"),
        (framed(0xC3), "lossless"),
        (framed(0xC6), "hierarchical"),
        (framed(0xC1, precision=12), "8 bits per sample"),
        (framed(0xC0, components=2), "two, or of more than four"),
        (framed(0xC0, height=0), "a height that is not 1 to 4096"),
        (jpeg(64, 64)[:700], "truncated"),
        (jpeg(64, 64)[:40], "segment runs past"),
        (jpeg(64, 64, progressive=True)[:600], "truncated"),
        (b"\xff\xd8\xff\xd9", "without all of its scans"),
    ],
)
def test_what_cannot_be_rebuilt_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unrebuildable, match=reason):
        parse(data)


# ---- progressive files, and what encoders seldom write ----


def check(data: bytes) -> JpegImage:
    image = parse(data)
    assert rebuild(image.header, image.coefficients) == data
    return image


def segments_of(data: bytes) -> list[tuple[int, int]]:
    """Marker and position of all segments, restart markers and the end of the image left out."""
    out: list[tuple[int, int]] = []
    at = 2
    while True:
        at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker == 0xD9:
            return out
        if marker == 0 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        out.append((marker, at))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.fixed_dictionaries(
        {"quality": st.integers(1, 100), "progressive": st.booleans()},
        optional={
            "restart_marker_blocks": st.integers(1, 30),
            "restart_marker_rows": st.integers(1, 3),
            "subsampling": st.integers(0, 2),
            "keep_rgb": st.just(True),
        },
    ),
)
@settings(max_examples=100, deadline=None)
def test_files_of_several_scans_and_components_come_back(
    height: int, width: int, mode: str, options: dict[str, Any]
) -> None:
    if mode != "RGB" or "subsampling" in options:
        options.pop("keep_rgb", None)
    image = check(jpeg(height, width, mode, **options))
    assert len(image.frame.components) == {"RGB": 3, "L": 1, "CMYK": 4}[mode]


def test_a_progressive_file_has_the_coefficients_of_the_sequential_one() -> None:
    for restart in (0, 5):
        options: dict[str, Any] = {"quality": 85, "restart_marker_blocks": restart}
        one, other = (parse(jpeg(70, 50, progressive=p, **options)) for p in (False, True))
        assert all(np.array_equal(a, b) for a, b in zip(one.coefficients, other.coefficients, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_script_of_libjpeg_takes_no_room(mode: str) -> None:
    sequential, progressive = (parse(jpeg(42, 42, mode, optimize=True, progressive=p)) for p in (False, True))
    assert len(progressive.header) < len(sequential.header)
    assert len({parse(jpeg(42, 42, mode, seed=seed, progressive=True)).header for seed in range(10)}) == 1


def scan_at(data: bytes, number: int) -> tuple[int, int]:
    """Where a scan's entropy-coded data begin, and where they end."""
    found = segments_of(data)
    scans = [i for i, (marker, _) in enumerate(found) if marker == 0xDA]
    begin = found[scans[number]][1]
    end = found[scans[number] + 1][1] if scans[number] + 1 < len(found) else data.index(b"\xff\xd9", begin)
    return begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big"), end


def test_runs_of_ends_that_stop_early() -> None:
    """A scan of AC in which every block ends by itself, as some encoders write it."""
    flat = Image.new("L", (80, 16), 128)
    stream = io.BytesIO()
    flat.save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    begin, end = scan_at(data, 1)
    # 20 blocks that are empty: one run of 20, a code of one bit and four more bits
    assert data[begin:end] == b"\x27"
    dht = data.rindex(b"\xff\xc4", 0, begin)
    one_by_one = bytes.fromhex("ffc40014 10 01000000000000000000000000000000 00".replace(" ", ""))
    sos = data.index(b"\xff\xda", dht)
    other = data[:dht] + one_by_one + data[sos:begin] + b"\0\0\x0f" + data[end:]
    image = check(other)
    assert read_recipe(image.header).runs[1].odd.stops == list(range(19))


def test_restart_markers_and_padding_where_they_are_not_needed() -> None:
    data = jpeg(32, 64, "L", restart_marker_blocks=4, quality=90)
    first = data.index(b"\xff\xd0")
    end = data.rindex(b"\xff\xd9")
    more = data[:first] + b"\xff\0\x55" + data[first:end] + b"\xff\xd7\xff\xd9"
    odd = read_recipe(check(more).header).runs[0].odd
    assert [(n, extra) for n, _, extra in odd.endings] == [(0, b"\xff\x55")]


def test_padding_of_mixed_bits() -> None:
    data = jpeg(32, 64, "L", restart_marker_blocks=2, quality=90)
    changed = bytearray(data)
    count = 0
    for number in range(8):
        at = data.index(bytes([0xFF, 0xD0 + number])) - 1
        if data[at] & 3 == 3 and changed[at] != 0:
            changed[at] &= 0xFE
            image = parse(bytes(changed))
            endings = read_recipe(image.header).runs[0].odd.endings
            count += any(n == number for n, _, _ in endings)
    assert count > 2
    check(bytes(changed))


def test_runs_of_zeros_before_the_end_of_a_block() -> None:
    """Sixteen zeros coded where EOB would do: T.81 allows it, and some cameras write it."""
    tables = write_segment([(0, bytes([1, *[0] * 15, 0])), (4, bytes([1, 0, 0, 1, *[0] * 12, 0x00, 0xF0]))])
    # of two blocks: DC, ZRL, EOB; DC, EOB
    bits = "0" + "1000" + "0" + "0" + "0"
    scan = bytes([int(bits + "1" * (-len(bits) % 8), 2)])
    data = framed(0xC0, width=16, extra=tables, scan=scan)
    assert read_recipe(check(data).header).runs[0].odd.zeros == [(0, 1)]


@pytest.mark.parametrize("blocks", [3, 80, 500])
def test_every_block_may_have_runs_of_zeros_before_its_end(blocks: int) -> None:
    tables = write_segment([(0, bytes([1, *[0] * 15, 0])), (4, bytes([1, 0, 0, 1, *[0] * 12, 0x00, 0xF0]))])
    bits = "0" + "10001000" + "0"
    bits *= blocks
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big")
    data = framed(0xC0, width=8 * blocks, extra=tables, scan=scan)
    if blocks < 500:
        assert read_recipe(check(data).header).runs[0].odd.zeros == [(n, 2) for n in range(blocks)]
    else:
        with pytest.raises(Unrebuildable, match="too many places"):
            parse(data)


def test_a_height_behind_the_scan() -> None:
    data = jpeg(30, 40, quality=80)
    frame = segment(data, 0xC0)
    end = data.rindex(b"\xff\xd9")
    number_of_lines = b"\xff\xdc\0\4" + data[frame + 5 : frame + 7]
    check(data[:end] + number_of_lines + data[end:])
    left_open = data[: frame + 5] + b"\0\0" + data[frame + 7 : end] + number_of_lines + data[end:]
    assert check(left_open).frame.height == 30
    # the frame header says more lines than there are
    too_high = data[: frame + 5] + b"\0\x90" + data[frame + 7 : end] + number_of_lines + data[end:]
    assert check(too_high).frame.height == 30
    assert rebuild(parse(too_high).header, parse(data).coefficients) == too_high


def test_scans_without_number_are_refused() -> None:
    data = jpeg(64, 64, "L", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(Unrebuildable, match="coded before"):
        parse(data[:scan] + data[scan:-2] * 5_000 + data[-2:])
    # a scan for each bit of each coefficient, which is more than any encoder writes
    body = data[scan:-2]
    every = b"".join(
        body[:7] + bytes([k, k, low | (low + 1 if low < 13 else 0) << 4]) + b"\x7f"
        for low in range(13, -1, -1)
        for k in range(1, 64)
    )
    start = segment(data, 0xDA)
    with pytest.raises(Unrebuildable, match=r"more than 100 scans|damaged|truncated"):
        parse(data[:start] + every + b"\xff\xd9")


def test_examples_of_seldom_kinds(shared: Path) -> None:
    files = sorted((shared / "cases/jpeg-exact").glob("*.jpg"))
    assert len(files) == 4
    for path in files:
        check(path.read_bytes())


SEEDS = [
    jpeg(33, 47, optimize=True),
    jpeg(20, 20, "L", restart_marker_blocks=2),
    jpeg(40, 24, subsampling=1, comment=b"hello"),
    jpeg(33, 47, progressive=True),
    jpeg(20, 40, "L", progressive=True, restart_marker_blocks=3),
    jpeg(20, 20, "CMYK", progressive=True),
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
    assert outcomes[JpegImage.__name__] >= 35
    assert outcomes["refused"] >= 20
