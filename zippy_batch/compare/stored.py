"""What files take in Parquet: in the smallest file that a careful user would write."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zippy_batch.paths import display_path

FILE_ENCODINGS = ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY")
"""Encodings of the column of files: each length beside its file, or all lengths in front of all files."""

_CAREFULLY: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 19,
    # the least and the greatest value of a column of files are two files
    "write_statistics": False,
    # no two files are equal, so that a dictionary holds them all
    "use_dictionary": False,
    "store_schema": False,
    # one page and one row group: what files have in common is said once
    "data_page_size": 1 << 30,
    "write_batch_size": 1 << 20,
}


def parquet_file(names: Sequence[bytes], files: Sequence[bytes]) -> bytes:
    """A Parquet file with a column of names, `path`, and one of files, `image`, under zstd level 19.

    Paths are delta-coded. Of the two encodings that files can have the smaller one is taken.
    """
    columns = {"path": pa.array(map(display_path, names), pa.string()), "image": pa.array(files, pa.binary())}
    return min((_written(pa.table(columns), encoding) for encoding in FILE_ENCODINGS), key=len)


def parquet_bytes(names: Sequence[bytes], files: Sequence[bytes]) -> int:
    """Size of `parquet_file`."""
    return len(parquet_file(names, files))


def _written(table: pa.Table, file_encoding: str) -> bytes:
    sink = io.BytesIO()
    encodings = {"path": "DELTA_BYTE_ARRAY", "image": file_encoding}
    pq.write_table(table, sink, row_group_size=max(1, len(table)), column_encoding=encodings, **_CAREFULLY)
    return sink.getvalue()
