"""Rows of archives that another library has read: tables with an archive's columns -> pictures and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zippy_batch.archives.part_file import plain_values
from zippy_batch.archives.schema import BY_NAME, METADATA_KEY, Row, Value, arrow_schema, row_crc, row_of
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import DamagedRow, UsageError
from zippy_batch.run.row_decoder import NO_PICTURE, RowDecoder, require_builtin

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED = ("codec", "payload", "raw", "raw_reason", "width", "height", "grey", "quality", "source_bytes", "jpeg_header")
"""Columns without which a row has no picture."""
STORED = ("payload", "raw", "jpeg_header", "jpeg_tables", "crc")
"""Columns that mean nothing any more beside the picture."""
IMAGE = "image"


def decode_batch(table: pa.Table, archive: str | Path | None = None, device: str = "cpu") -> pa.Table:
    """Decode the rows of an archive that another library has read, as one batch.

    `table` has the columns of an archive, all of them or at least codec, payload, raw, raw_reason, width, height, grey,
    quality, source_bytes and jpeg_header; where it has all, each row's checksum is looked at. The result has a column
    `image`, a struct of height, width and rgb (3 bytes a pixel, row by row; null for what is no picture), in place of
    those that hold what is stored. `archive` is where models are that are not built in. `map_batches` of Ray Data takes
    this function with `batch_format="pyarrow"`.

    Raises UsageError for a table without these columns, DamagedRow for a row that is not what was written, and
    ModelError where the rows need another model.
    """
    import pyarrow as pa

    rows = rows_of(table)
    if archive is None:
        _require_builtin(table)
    pictures = image_structs(rows, decoder_of(archive, device))
    kept = [name for name in table.column_names if name not in (*STORED, IMAGE)]
    return table.select(kept).append_column(IMAGE, pa.array(pictures, image_type()))


def image_type() -> pa.DataType:
    """struct<height, width, rgb>."""
    import pyarrow as pa

    return pa.struct([("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.binary())])


def image_structs(rows: Sequence[Row], decoder: RowDecoder) -> list[dict[str, Any] | None]:
    """What `image_type` is of, of each row. Raises DamagedRow."""
    return [
        None if found is None else {"height": found.shape[0], "width": found.shape[1], "rgb": found.tobytes()}
        for found in pictures_or_none(rows, decoder)
    ]


def pictures_or_none(rows: Sequence[Row], decoder: RowDecoder) -> list[Any]:
    """Pixels (H, W, 3) of each row, None for what is no picture. Raises DamagedRow."""
    shown = [at for at, row in enumerate(rows) if row.raw_reason not in NO_PICTURE]
    found = dict(zip(shown, decoder.rgb([rows[at] for at in shown]), strict=True))
    return [found.get(at) for at in range(len(rows))]


@lru_cache(maxsize=8)
def decoder_of(archive: str | Path | None, device: str) -> RowDecoder:
    """A decoder with the models of an archive, or with the built-in ones."""
    if archive is not None:
        return open_archive(archive, device)._decoder
    return RowDecoder.builtin(device)


def _require_builtin(table: pa.Table) -> None:
    """Raises ModelError where the table says that it needs other models than the built-in ones; not all tools keep what
    an archive says of itself."""
    try:
        needed = dict(json.loads((table.schema.metadata or {})[METADATA_KEY.encode()])["models"])
    except (KeyError, ValueError, TypeError):
        return
    require_builtin(needed)


def rows_of(table: pa.Table) -> list[Row]:
    """Raises UsageError, and DamagedRow for rows that are not what was written."""
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        raise UsageError(f"the table has no column {', '.join(missing)}; read all columns of the archive")
    names = [name for name in BY_NAME if name in table.column_names]
    schema = arrow_schema()
    columns = {name: plain_values(table.column(name).cast(schema.field(name).type)) for name in names}
    whole = len(names) == len(BY_NAME)
    return [_row({name: columns[name][at] for name in names}, at, whole) for at in range(table.num_rows)]


def _row(fields: dict[str, Value], at: int, whole: bool) -> Row:
    """A row by its fields, of which some may be missing unless it is `whole`."""
    crc = fields.pop("crc", None)
    name = fields.get("path") or f"row {at}".encode()
    shown = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    if whole and crc != row_crc(fields):
        raise DamagedRow(f"{shown}: its bytes are not what was written (checksum)")
    defaults: dict[str, Value] = {
        **dict.fromkeys(BY_NAME),
        "path": name,
        "mode": b"L" if fields["grey"] else b"RGB",
        "mtime_s": 0,
    }
    del defaults["crc"]
    try:
        return row_of(fields if whole else {**defaults, **fields})
    except (ValueError, TypeError) as error:
        raise DamagedRow(f"{shown}: its fields contradict each other: {error}") from error
