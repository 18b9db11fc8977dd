"""Rows and their checksum; the specification against the code."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import face_rows, mixed_rows, raw_row

from zippy_batch.archives.schema import (
    COLUMNS,
    FORMAT_VERSION,
    METADATA_KEY,
    Row,
    fields_of,
    problem_of,
    row_crc,
    row_of,
    stored_psnr,
    stored_ssim,
)

LATENT = Row(
    path=b"a/b.jpg",
    codec="latent",
    payload=b"\x01\x02\x03",
    raw_reason=None,
    width=42,
    height=41,
    mode="RGB",
    grey=False,
    quality=75,
    source_bytes=925,
    source_format="jpeg",
    jpeg_quality=75,
    jpeg_tables=b"\x05\x06",
    psnr=28.5,
    ssim=0.875,
    exif=None,
    icc=b"",
    mtime_s=1_700_000_000,
)

PINNED_CRC = 0xFC555A09
"""Bytes on disk are API: this number never changes for this row."""


def test_checksum_is_what_the_specification_says() -> None:
    def text(number: int, value: bytes) -> bytes:
        return struct.pack("<BQ", number, len(value)) + value

    def integer(number: int, value: int) -> bytes:
        return struct.pack("<Bq", number, value)

    written = b"".join(
        [
            text(1, b"a/b.jpg"),
            text(3, b"latent"),
            text(4, b"\x01\x02\x03"),
            integer(7, 42),
            integer(8, 41),
            text(9, b"RGB"),
            integer(10, 0),
            integer(11, 75),
            integer(12, 925),
            text(13, b"jpeg"),
            integer(14, 75),
            text(15, b"\x05\x06"),
            struct.pack("<Bf", 16, 28.5),
            struct.pack("<Bf", 17, 0.875),
            text(19, b""),
            integer(20, 1_700_000_000),
        ]
    )
    assert row_crc(fields_of(LATENT)) == zlib.crc32(written) == PINNED_CRC


def test_checksum_of_a_long_field_is_the_same_in_pieces() -> None:
    row = raw_row(b"x", bytes(range(256)) * 100)
    written = b"".join(
        struct.pack("<BQ", column.number, len(value)) + value
        if isinstance(value, bytes)
        else struct.pack("<Bq", column.number, value)
        for column, value in zip(COLUMNS, fields_of(row).values(), strict=False)
        if value is not None
    )
    assert row_crc(fields_of(row)) == zlib.crc32(written)


@pytest.mark.parametrize("name", [field.name for field in fields(Row)])
def test_checksum_covers_every_field(name: str) -> None:
    changed = {
        "path": b"a/c.jpg",
        "codec": "raw",
        "payload": b"\x01\x02\x04",
        "raw_reason": "",
        "mode": "L",
        "grey": True,
        "source_format": "png",
        "jpeg_tables": None,
        "psnr": None,
        "ssim": 0.878,
        "exif": b"",
        "icc": None,
        "label": "id_0001",
    }
    other = replace(LATENT, **{name: changed.get(name, 1)})  # type: ignore[arg-type]
    assert row_crc(fields_of(other)) != row_crc(fields_of(LATENT))


@pytest.mark.parametrize(
    ("label", "written"), [(None, b""), ("", b"\x17" + bytes(8)), ("ä", b"\x17\2" + bytes(7) + b"\xc3\xa4")]
)
def test_checksum_ends_with_the_label(label: str | None, written: bytes) -> None:
    row = replace(LATENT, label=label)
    assert row_crc(fields_of(row)) == zlib.crc32(written, PINNED_CRC)
    assert row_of(fields_of(row)) == row


@pytest.mark.parametrize("row", mixed_rows(8), ids=lambda row: row.path.decode(errors="replace"))
def test_row_comes_back_from_its_fields(row: Row) -> None:
    assert row_of(fields_of(row)) == row


@given(st.binary(min_size=1, max_size=40))
def test_any_path_comes_back_and_shows_as_text(path: bytes) -> None:
    stored = fields_of(replace(LATENT, path=path))
    assert row_of(stored).path == path
    assert isinstance(stored["path"], bytes)
    stored["path"].decode()


@given(st.floats(0, 99), st.floats(-1, 1))
def test_quality_is_rounded_down_and_only_once(psnr: float, ssim: float) -> None:
    assert psnr - 1 / 16 <= stored_psnr(psnr) <= psnr
    assert ssim - 1 / 512 <= stored_ssim(ssim) <= ssim
    assert stored_psnr(stored_psnr(psnr)) == stored_psnr(psnr)
    assert struct.unpack("<f", struct.pack("<f", stored_psnr(psnr)))[0] == stored_psnr(psnr)


@pytest.mark.parametrize(
    "change",
    [
        {"label": "x" * 65_537},
        {"codec": "jpeg2000"},
        {"path": b""},
        {"path": b"x" * 65_537},
        {"width": None},
        {"width": 0},
        {"height": 4097},
        {"mode": "RGBA"},
        {"quality": 0},
        {"quality": 101},
        {"source_bytes": -1},
        {"psnr": float("nan")},
        {"ssim": float("inf")},
        {"codec": "raw"},
        {"codec": "raw", "raw_reason": "corrupt"},
    ],
    ids=str,
)
def test_rows_that_no_reader_would_believe_are_refused(change: dict[str, Any]) -> None:
    row = replace(LATENT, **change)
    assert problem_of(row)
    if "psnr" not in change and "ssim" not in change:
        with pytest.raises(ValueError, match=r"\w"):
            row_of(fields_of(row))


@pytest.mark.parametrize(
    "change",
    [{"path": b"other"}, {"path_bytes": b"a/b.jpg"}, {"raw": b"file"}, {"payload": None}, {"codec": b"\xff"}],
    ids=str,
)
def test_fields_at_odds_are_refused(change: dict[str, Any]) -> None:
    stored = fields_of(replace(LATENT, path=b"\xff"))
    with pytest.raises(ValueError, match=r"\w"):
        row_of({**stored, **change})


def test_plain_rows_have_no_problem() -> None:
    assert [problem_of(row) for row in (*face_rows(3), *mixed_rows(16))] == [None] * 19


def test_specification_lists_every_column(root: Path) -> None:
    text = (root / "docs/format.md").read_text()
    assert f"format {FORMAT_VERSION}" in text.lower()
    assert f"`{METADATA_KEY}`" in text
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([^|]+) \| (yes|no) \| ([^|]+) \|", text, re.MULTILINE)
    types = {"text": "string", "bytes": "binary", "bool": "boolean", "float32": "float"}
    written = [
        (
            str(column.number),
            column.name,
            types.get(column.kind, column.kind),
            "yes" if column.nullable else "no",
            column.encoding if column.zstd_level is None else f"{column.encoding}, zstd",
        )
        for column in COLUMNS
    ]
    assert [tuple(cell.strip() for cell in row) for row in rows] == written
