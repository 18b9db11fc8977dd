"""One row of an archive: its columns, how each is laid out in Parquet, and the checksum over all of them.

`docs/format.md` is written from this module; a change of what is here is a new FORMAT_VERSION. Everything of more than
one byte is little-endian.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 3

METADATA_KEY = "zippy_batch"
"""Key in the Parquet file's metadata whose value is a JSON object about the archive."""

MAX_ROWS_PER_GROUP = 4096
"""The grain of random access: pyarrow reads whole row groups."""

MAX_GROUPS = 8192
"""Row groups of a file: a footer is read as a whole, and takes some ms for every ten of them."""

GROUP_BYTES = 64 << 20
"""Paths, payloads and attachments of a row group; only a single row may hold more."""

MAX_SIDE = 4096
"""Pixels; larger images are kept raw."""

PSNR_CAP_DB = 99.0
"""PSNR of identical images, and the most that any image is given."""

MAX_STORED_PATH_BYTES = 1 << 16
MAX_LABEL_BYTES = 1 << 16
MAX_STORED_BYTES = 1 << 30
"""Most bytes of one payload or kept file; none larger is archived."""

HEADER_MARGIN = 256
"""What a jpeg_header may be longer than its file, which has all that is in it but counts and positions."""

PSNR_STEPS_PER_DB = 16
SSIM_STEPS = 512
"""psnr and ssim are rounded down to a multiple of 1/16 dB and of 1/512: and so kept; they take 1 byte each."""

CODECS = ("latent", "exact", "raw")
CODED = ("latent", "exact")
"""Codecs whose payloads need a model."""
MODES = ("RGB", "L")

LABEL = "label"

Kind = Literal["text", "bytes", "int32", "int64", "float32", "bool", "uint32"]
Encoding = Literal[
    "DICTIONARY", "PLAIN", "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"
]


@dataclass(frozen=True)
class Column:
    number: int
    """Names the field in the checksum; never given to another column."""
    name: str
    kind: Kind
    encoding: Encoding
    zstd_level: int | None = None
    """None is stored as it is."""
    nullable: bool = True


COLUMNS = (
    Column(1, "path", "text", "DELTA_BYTE_ARRAY", 19, nullable=False),
    Column(2, "path_bytes", "bytes", "DELTA_LENGTH_BYTE_ARRAY", 19),
    Column(3, "codec", "text", "DICTIONARY", nullable=False),
    Column(4, "payload", "bytes", "DELTA_LENGTH_BYTE_ARRAY"),
    # level 9: what is kept raw is mostly compressed already, and 19 takes ten times as long
    Column(5, "raw", "bytes", "DELTA_LENGTH_BYTE_ARRAY", 9),
    Column(6, "raw_reason", "text", "DICTIONARY", 19),
    Column(7, "width", "int32", "DICTIONARY"),
    Column(8, "height", "int32", "DICTIONARY"),
    Column(9, "mode", "text", "DICTIONARY"),
    Column(10, "grey", "bool", "PLAIN", 19, nullable=False),
    Column(11, "quality", "int32", "DICTIONARY"),
    Column(12, "source_bytes", "int64", "DELTA_BINARY_PACKED", nullable=False),
    Column(13, "source_format", "text", "DICTIONARY"),
    Column(14, "jpeg_quality", "int32", "DICTIONARY"),
    Column(15, "jpeg_tables", "bytes", "DICTIONARY", 19),
    Column(16, "psnr", "float32", "BYTE_STREAM_SPLIT", 19),
    Column(17, "ssim", "float32", "BYTE_STREAM_SPLIT", 19),
    Column(18, "exif", "bytes", "DELTA_LENGTH_BYTE_ARRAY", 19),
    Column(19, "icc", "bytes", "DICTIONARY", 19),
    Column(20, "mtime_s", "int64", "DELTA_BINARY_PACKED", nullable=False),
    Column(22, "jpeg_header", "bytes", "DICTIONARY", 19),
    Column(23, LABEL, "text", "DICTIONARY", 19),
    Column(21, "crc", "uint32", "PLAIN", nullable=False),
)
BY_NAME = {column.name: column for column in COLUMNS}


@dataclass(frozen=True)
class Row:
    """One file of the archived directory."""

    path: bytes
    """Relative, "/"-separated, as the file system has it."""
    codec: str
    """One of CODECS."""
    payload: bytes
    """What the codec made of the picture or of its coefficients, or the file itself where codec is raw."""
    raw_reason: str | None
    width: int | None
    height: int | None
    """Pixels."""
    mode: str | None
    """One of MODES: that of the source."""
    grey: bool
    """Whether the payload holds one channel."""
    quality: int | None
    """Quality index of the payload, 1..100."""
    source_bytes: int
    source_format: str | None
    jpeg_quality: int | None
    jpeg_tables: bytes | None
    psnr: float | None
    """dB."""
    ssim: float | None
    exif: bytes | None
    icc: bytes | None
    mtime_s: int
    """Seconds since 1970-01-01 UTC."""
    jpeg_header: bytes | None = None
    """For exact rows: what the file is rebuilt from besides its coefficients (`jpeg.file`)."""
    label: str | None = None
    """What the source says the file shows: a class, an identity."""


Value = bytes | int | float | bool | None


def fields_of(row: Row) -> dict[str, Value]:
    """Column name -> what is stored for it, text as UTF-8; all columns but crc, in the order of COLUMNS."""
    path, path_bytes = stored_path(row.path)
    raw = row.codec == "raw"
    return {
        "path": path,
        "path_bytes": path_bytes,
        "codec": row.codec.encode(),
        "payload": None if raw else row.payload,
        "raw": row.payload if raw else None,
        "raw_reason": _utf8(row.raw_reason),
        "width": row.width,
        "height": row.height,
        "mode": _utf8(row.mode),
        "grey": row.grey,
        "quality": row.quality,
        "source_bytes": row.source_bytes,
        "source_format": _utf8(row.source_format),
        "jpeg_quality": row.jpeg_quality,
        "jpeg_tables": row.jpeg_tables,
        "psnr": None if row.psnr is None else stored_psnr(row.psnr),
        "ssim": None if row.ssim is None else stored_ssim(row.ssim),
        "exif": row.exif,
        "icc": row.icc,
        "mtime_s": row.mtime_s,
        "jpeg_header": row.jpeg_header,
        "label": _utf8(row.label),
    }


def row_of(fields: dict[str, Value]) -> Row:
    """Inverse of `fields_of`, for fields whose checksum is right. Raises ValueError for fields at odds."""
    text = {name: _text(fields[name]) for name in ("codec", "raw_reason", "mode", "source_format", "label")}
    path_bytes = fields["path_bytes"]
    path = fields["path"] if path_bytes is None else path_bytes
    rest = {name: fields[name] for name in Row.__dataclass_fields__ if name not in ("path", "payload", *text)}
    payload = fields["raw" if text["codec"] == "raw" else "payload"]
    row = Row(path=path, payload=payload, **text, **rest)  # type: ignore[arg-type]
    if stored_path(row.path) != (fields["path"], path_bytes):
        raise ValueError("path and path_bytes differ")
    if fields["payload" if row.codec == "raw" else "raw"] is not None:
        raise ValueError("both payload and raw are there")
    problem = problem_of(row)
    if problem:
        raise ValueError(problem)
    return row


def problem_of(row: Row) -> str | None:
    """What keeps a row from being stored or believed, whatever its checksum says."""
    if row.codec not in CODECS:
        return f"unknown codec {row.codec!r}"
    if not 0 < len(row.path) <= MAX_STORED_PATH_BYTES:
        return f"path of {len(row.path)} bytes"
    if row.payload is None or len(row.payload) > MAX_STORED_BYTES:
        return "no payload" if row.payload is None else f"payload of {len(row.payload)} bytes"
    if not 0 <= row.source_bytes <= MAX_STORED_BYTES:
        return f"source_bytes is {row.source_bytes}"
    if any(value is not None and not math.isfinite(value) for value in (row.psnr, row.ssim)):
        return f"psnr {row.psnr}, ssim {row.ssim}"
    if row.label is not None and len(row.label.encode()) > MAX_LABEL_BYTES:
        return f"label of {len(row.label.encode())} bytes"
    if row.codec != "exact" and row.jpeg_header is not None:
        return f"a jpeg_header of a row whose codec is {row.codec}"
    if row.codec == "raw":
        return _problem_of_raw(row)
    return _problem_of_coded(row) or (_problem_of_exact(row) if row.codec == "exact" else _problem_of_latent(row))


def _problem_of_raw(row: Row) -> str | None:
    if row.raw_reason is None:
        return "kept raw for no reason"
    if len(row.payload) != row.source_bytes:
        return f"{len(row.payload)} bytes of a file of {row.source_bytes}"
    return None


def _problem_of_coded(row: Row) -> str | None:
    if any(side is None or not 1 <= side <= MAX_SIDE for side in (row.width, row.height)):
        return f"width {row.width}, height {row.height}"
    if row.mode not in MODES:
        return f"mode {row.mode!r}"
    return None


def _problem_of_exact(row: Row) -> str | None:
    if row.jpeg_header is None or len(row.jpeg_header) > row.source_bytes + HEADER_MARGIN:
        return "no jpeg_header, or a longer one than the file can have"
    others = {"quality": row.quality, "psnr": row.psnr, "ssim": row.ssim, "jpeg_tables": row.jpeg_tables}
    others |= {"exif": row.exif, "icc": row.icc}
    there = [name for name, value in others.items() if value is not None]
    return f"{', '.join(there)} of a file that comes back as it was" if there else None


def _problem_of_latent(row: Row) -> str | None:
    if row.quality is None or not 1 <= row.quality <= 100:
        return f"quality {row.quality}"
    return None


def stored_path(path: bytes) -> tuple[bytes, bytes | None]:
    """What the columns path and path_bytes hold: the latter only where the path is not UTF-8."""
    shown = path.decode("utf-8", errors="backslashreplace").encode()
    return shown, None if shown == path else path


def stored_psnr(psnr_db: float) -> float:
    return math.floor(psnr_db * PSNR_STEPS_PER_DB) / PSNR_STEPS_PER_DB if math.isfinite(psnr_db) else psnr_db


def stored_ssim(ssim: float) -> float:
    return math.floor(ssim * SSIM_STEPS) / SSIM_STEPS if math.isfinite(ssim) else ssim


_INTEGER = struct.Struct("<Bq")
_FLOAT = struct.Struct("<Bf")
_LENGTH = struct.Struct("<BQ")
_NUMBERED = tuple((column.number, column.name, column.kind) for column in COLUMNS if column.name != "crc")


def row_crc(fields: dict[str, Value]) -> int:
    """CRC-32 (that of zlib) over every field that is not null, in column order; see docs/format.md."""
    crc, pending = 0, bytearray()
    for number, name, kind in _NUMBERED:
        value = fields[name]
        if value is None:
            continue
        if isinstance(value, bytes):
            pending += _LENGTH.pack(number, len(value))
            if len(value) > 4096:
                crc = zlib.crc32(value, zlib.crc32(pending, crc))
                pending.clear()
            else:
                pending += value
        elif kind == "float32":
            pending += _FLOAT.pack(number, value)
        else:
            pending += _INTEGER.pack(number, value)
    return zlib.crc32(pending, crc)


def arrow_schema() -> pa.Schema:
    """The schema of all columns: an archive's schema does not depend on what is in it."""
    import pyarrow as pa

    kinds = {
        "text": pa.string(),
        "bytes": pa.binary(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float32": pa.float32(),
        "bool": pa.bool_(),
        "uint32": pa.uint32(),
    }
    return pa.schema([pa.field(column.name, kinds[column.kind], column.nullable) for column in COLUMNS])


def _utf8(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _text(value: Value) -> str | None:
    return None if value is None else bytes(value).decode()  # type: ignore[arg-type]
